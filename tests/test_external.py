"""Slides of other cohorts: what all networks say of them together, and how far that is from the test folds."""

import numpy as np
import pandas as pd
import pytest
import yaml
from projects import fresh_copy, snakemake
from sklearn.metrics import roc_auc_score

from gigapipe.configuration import Configuration
from gigapipe.errors import InputError
from gigapipe.evaluation.external import as_markdown, compare_external
from gigapipe.evaluation.report_tables import external as table_of_report
from gigapipe.slides import phantom
from gigapipe.slides.written_tables import write_table


def scored(slides: int, separation: float, rng, held_out: bool) -> pd.DataFrame:
    """Three networks' scores of slides; each of its own fold only, if they are held out."""
    rows = []
    for network in range(3):
        for slide in range(slides):
            if not held_out or slide % 3 == network:
                score = 1 / (1 + np.exp(separation * (0.5 - slide % 2) - rng.normal()))
                label, who = ("luad", "lusc")[slide % 2], f"{slide:02d}"
                rows.append((f"s{who}", f"p{who}", "x", label, 0, network, 8.0, "", f"n{network}", score))
    names = ["slide", "patient", "site", "label", "seed", "fold", "mpp", "method_name", "identity", "score"]
    table = pd.DataFrame(rows, columns=names)
    return table.assign(part="test", split="site") if held_out else table.assign(cohort="b")


def test_the_drop_is_of_single_networks_and_the_auc_of_their_mean(tmp_path):
    rng = np.random.default_rng(0)
    inside, outside = scored(60, 2.5, rng, True), scored(40, 1.0, rng, False)
    table = compare_external(inside, outside)
    row = table.iloc[0]
    assert len(table) == 1 and (row["networks"], row["slides"], row["patients"]) == (3, 40, 40)
    mean = outside.groupby(["slide", "label"])["score"].mean().reset_index()
    assert row["auc"] == pytest.approx(roc_auc_score(mean["label"] == "lusc", mean["score"]))

    def of_networks(table):
        return np.mean([roc_auc_score(one["label"] == "lusc", one["score"]) for _, one in table.groupby("fold")])

    assert row["internal_auc"] == pytest.approx(of_networks(inside))
    assert row["drop"] == pytest.approx(of_networks(inside) - of_networks(outside))
    assert row["single_network_auc"] < row["auc"]  # whose mean is better
    assert row["drop_low"] < row["drop"] < row["drop_high"]
    assert row["brier"] == pytest.approx(((mean["score"] - (mean["label"] == "lusc")) ** 2).mean())
    text = as_markdown(table)
    assert f"| {row['auc']:.3f} ({row['auc_low']:.3f}–{row['auc_high']:.3f}) |" in text and "| 40 (40) |" in text
    write_table(table, tmp_path / "external.tsv")
    shown = table_of_report(tmp_path, pd.DataFrame({"mpp": [8.0]}))
    assert shown is not None and shown.rows[0][:2] == ["8", "b"]
    with pytest.raises(InputError, match="of b at 8 µm/px: are not from the compared networks"):
        compare_external(inside, outside.assign(identity="another"))


def test_as_good_elsewhere_is_within_the_interval_of_the_drop():
    """Of 40 pairs of cohorts without a drop, about 38 intervals contain 0."""
    rng = np.random.default_rng(1)
    rows = [
        compare_external(scored(60, 1.5, rng, True), scored(40, 1.5, rng, False)).iloc[0].to_dict() for _ in range(40)
    ]
    table = pd.DataFrame(rows)
    assert ((table["drop_low"] < 0) & (table["drop_high"] > 0)).mean() >= 0.85


def test_only_classes_have_external_cohorts():
    with pytest.raises(InputError, match="external: other cohorts are compared for task classes only, not regression"):
        Configuration.of({"task": "regression", "target": "age", "slides": "a.tsv", "external": {"b": "b.tsv"}})


@pytest.mark.slow
def test_the_workflow_plans_the_cohorts_of_the_config(tmp_path):
    project = fresh_copy(tmp_path)
    rows = [phantom.sheet_row(one) for one in phantom.cohort(seed=9, patients=6, folder=".")]
    for row in rows:
        (project / row["source"]).touch()

    def planned(**changes) -> str:
        sheet = pd.DataFrame(rows).assign(**({"patient": [f"x{i}" for i in range(len(rows))]} | changes))
        sheet.to_csv(project / "b.tsv", sep="\t", index=False)
        (project / "own.yaml").write_text(yaml.safe_dump({"external": {"hospital-b": "b.tsv"}}))
        return snakemake(project, "-n", "--printshellcmds", "--configfile", "own.yaml", check=False)[1]

    output = planned()
    assert output.count("gigapipe pyramid --mpp") == len(phantom.cohort()) + len(rows)
    assert output.count("gigapipe predict-external --cohort hospital-b") == 3  # resolutions
    assert output.count("gigapipe evaluate-external --external") == 1
    assert "results/2um/fold-3/model.pt --pyramids results/external/hospital-b/pyramids" in output
    other = ["other"] + ["solid"] * (len(rows) - 1)
    assert "its label other is none of those of the cohort (acinar, solid)" in planned(label=other)
    assert "1 of its patients, as PH-000, have the name of one in the cohort" in planned(patient="PH-000")
