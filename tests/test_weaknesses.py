"""What a design cannot show is said when it is made: when folds are, and in a dry run."""

import contextlib
import io
import re

import numpy as np
import pandas as pd
import pytest

from gigapipe.cli import main
from gigapipe.configuration import Configuration
from gigapipe.evaluation.best import of_chance
from gigapipe.evaluation.design import check_design
from gigapipe.evaluation.folds import make_folds
from gigapipe.evaluation.intervals import auc_limits
from gigapipe.evaluation.simulation import drawn
from gigapipe.evaluation.weaknesses import by_fold, enough_for_margin, told_from_chance, weaknesses


def sheet(patients: dict[str, int], slides: int = 1, site=lambda label, number: "unknown") -> pd.DataFrame:
    """So many patients of each label, with so many slides each."""
    return pd.DataFrame(
        {
            "slide": f"{label}{number:03d}-{slide}",
            "patient": f"{label}{number:03d}",
            "site": site(label, number),
            "label": label,
            "source": f"{label}{number:03d}-{slide}.svs",
        }
        for label, count in patients.items()
        for number in range(count)
        for slide in range(slides)
    )


SIXTEEN = sheet({"acinar": 9, "solid": 7}, slides=2)


def test_sixteen_patients_are_warned_of_when_folds_are_made(tmp_path):
    SIXTEEN.to_csv(tmp_path / "slides.tsv", sep="\t", index=False)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["folds", str(tmp_path / "slides.tsv"), str(tmp_path / "out"), "--by", "patient"]) == 0
    page = (tmp_path / "out/folds.md").read_text()
    assert page.strip() == printed.getvalue().strip()
    counts = by_fold(pd.read_csv(tmp_path / "out/folds.tsv", sep="\t"))
    lonely = list(counts.index[counts["solid"] == 1])
    assert len(lonely) == 1
    assert (
        f"**Warning:** fold {lonely[0]} with 1 patient of solid: no interval for this fold, so that variances are"
        in page
    )
    assert "3 folds would each have at least 2 patients of each label." in page
    assert "9 patients of acinar and 7 patients of solid: an AUC below 0.9" in page
    assert "| patients of acinar | patients of solid |" in page
    for fold, of_fold in counts.iterrows():  # after slides of each label, slides, patients and sites
        assert re.search(rf"^\| {fold} (\| \d+ ){{5}}\| {of_fold['acinar']} \| {of_fold['solid']} \|", page, re.M)


def test_a_dry_run_logs_what_the_design_cannot_show(caplog):
    resolutions = [{"mpp": mpp} for mpp in (20, 10, 5)]
    config = Configuration.of({"resolutions": resolutions, "training": {"batch": 2}, "seeds": [0, 1]})
    with caplog.at_level("WARNING", logger="gigapipe"):
        check_design(SIXTEEN, config)
    lines = caplog.messages
    assert len(set(lines)) == len(lines) and all(line.startswith("folds by patient: ") for line in lines)
    assert any("with 1 patient of solid: no interval for this fold" in line for line in lines)
    assert any("9 patients of acinar and 7 patients of solid: an AUC below" in line for line in lines)
    assert any(
        re.search(r"within 0.05 of another one, .* about \d+ patients are needed, not 16$", line) for line in lines
    )
    caplog.clear()
    with caplog.at_level("WARNING", logger="gigapipe"):
        check_design(sheet({"acinar": 200, "solid": 200}), config)
        check_design(SIXTEEN, Configuration.of({"task": "tissue", "training": {"batch": 2}}))  # knows no labels
    assert caplog.messages == []


def test_other_numbers_of_folds_are_proposed_where_they_would_do_better():
    fifty = make_folds(sheet({"acinar": 30, "solid": 30}), 3, 0, "patient")
    (line,) = weaknesses(fifty)
    assert line.startswith("3 folds train each network on 33% of the patients; 5 folds train it on 60%")
    assert weaknesses(make_folds(sheet({"acinar": 30, "solid": 30}), 4, 0, "patient")) == []
    few = make_folds(sheet({"acinar": 9, "solid": 6}), 5, 0, "patient")
    assert any("; 3 folds would each have at least 2 patients of each label" in line for line in weaknesses(few))
    assert any("; more patients are needed" in line for line in weaknesses(few.assign(split="given")))
    none = few[(few["fold"] != 1) | (few["label"] == "acinar")]
    assert any("fold 1 with no patients of solid: no AUC" in line for line in weaknesses(none))


def test_sites_that_tell_the_label_are_told():
    by_label = sheet({"acinar": 30, "solid": 30}, site=lambda label, number: f"{label}-{number % 5}")
    shared, apart = (weaknesses(make_folds(by_label, 4, 0, by)) for by in ("patient", "site"))
    assert any("these folds share sites, and the site alone predicts the label (AUC 1.00" in line for line in shared)
    assert any("the site alone predicts the label (AUC 1.00" in line and "share no site" in line for line in apart)
    mixed = sheet({"acinar": 30, "solid": 30}, site=lambda label, number: f"{number % 5}")
    assert weaknesses(make_folds(mixed, 4, 0, "site")) == []


@pytest.mark.parametrize("patients, folds", [({"a": 9, "b": 7}, 4), ({"a": 20, "b": 20}, 4), ({"a": 100, "b": 60}, 3)])
def test_what_is_likely_to_be_told_is_told_in_most_cohorts(patients, folds):
    table = make_folds(sheet(patients), folds, 0, "patient")
    lowest, z = told_from_chance(table, resolutions=3), of_chance(3)
    counts = by_fold(table)

    def share(auc: float) -> float:
        found = drawn([auc], list(zip(counts["b"], counts["a"], strict=True)), 1000, np.random.default_rng(7))
        return (auc_limits(found.auc, found.deviation, z, found.separated(z)).low > 0.5).mean()

    assert share(lowest) > 0.7 and share(lowest - 0.08) < 0.7


def test_the_margin_takes_more_patients_the_smaller_it_is():
    table = make_folds(sheet({"a": 40, "b": 40}), 4, 0, "patient")
    small, large = (enough_for_margin(table, margin) for margin in (0.02, 0.05))
    assert 150 < small < 500 and large == 80  # these
    assert enough_for_margin(table, 0.0001) is None
