"""A number of each slide: folds balanced by it, a network that learns it of phantoms, and what that is worth."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import yaml
from cohorts import REGIONS, SMALL_NETWORK
from launching import gigapipe
from projects import fresh_copy, snakemake
from sklearn.metrics import mean_absolute_error, r2_score

from gigapipe.configuration import Configuration
from gigapipe.errors import InputError
from gigapipe.evaluation.design import check_design
from gigapipe.evaluation.folds import make_folds, read_folds
from gigapipe.evaluation.maps import extremes_of_numbers
from gigapipe.evaluation.regression import bca, figures, spearman
from gigapipe.pyramids.maps import read_map
from gigapipe.slides import phantom
from gigapipe.slides.numbers import number_groups, numbers_of
from gigapipe.slides.sheet import read_sheet

MPP, CANVAS, FOLDS = 8, 56, 3


def some_predictions(patients=30, seeds=2, noise=0.1) -> pd.DataFrame:
    """Of three folds and some seeds, two slides a patient, each network with an offset of its own."""
    rng, rows = np.random.default_rng(0), []
    for patient in range(patients):
        for slide in range(2):
            number = patient / patients + 0.05 * slide
            for seed in range(seeds):
                offset = 0.02 * (patient % 3) + 0.01 * seed
                rows.append((f"p{patient:02d}", f"s{patient:02d}{slide}", seed, patient % 3, number, number + offset))
    table = pd.DataFrame(rows, columns=["patient", "slide", "seed", "fold", "number", "predicted"])
    return table.assign(predicted=table["predicted"] + rng.normal(0, noise, len(table)))


def test_figures_are_those_of_libraries_and_their_intervals_by_patients():
    table = some_predictions()
    found = figures(table)
    seeds = [rows for _, rows in table.groupby("seed")]
    assert found.found[0] == pytest.approx(np.mean([r2_score(s["number"], s["predicted"]) for s in seeds]))
    absolute = np.mean([mean_absolute_error(s["number"], s["predicted"]) for s in seeds])
    assert found.found[2] == pytest.approx(absolute)
    networks = [
        scipy.stats.spearmanr(n["number"], n["predicted"]).statistic for _, n in table.groupby(["seed", "fold"])
    ]
    assert found.found[1] == pytest.approx(np.mean(networks))
    # A drawn cohort is what it would be of its slides, repeated.
    for weights, drawn in ((np.arange(30) % 3, 0), (np.r_[np.zeros(20), np.ones(10)], 1)):
        order = sorted(table["patient"].unique())
        times = table["patient"].map(dict(zip(order, weights, strict=True))).to_numpy()
        again = table.loc[table.index.repeat(times.astype(int))]
        expected = scipy.stats.spearmanr(again["number"], again["predicted"]).statistic
        ours = spearman(table["number"].to_numpy(), table["predicted"].to_numpy(), times[None].astype(float))
        assert ours[0] == pytest.approx(expected), drawn
    without = figures(table[table["patient"] != "p07"]).found
    assert found.left_out[:, 7] == pytest.approx(without)
    assert np.isnan(spearman(np.ones(4), np.arange(4.0), np.ones((1, 4)))[0])


def test_the_interval_of_the_error_is_scipy_s():
    error = np.random.default_rng(1).gamma(1, 1, 80)
    table = pd.DataFrame({"patient": [f"p{i:02d}" for i in range(80)], "number": np.arange(80.0), "seed": 0, "fold": 0})
    found = figures(table.assign(slide=table["patient"], predicted=table["number"] + error))
    theirs = scipy.stats.bootstrap((error,), np.mean, n_resamples=20000, rng=np.random.default_rng(0), method="BCa")
    low, high = found.interval("mean_absolute_error")
    assert [low, high] == pytest.approx(list(theirs.confidence_interval), abs=0.03)
    assert np.isnan(bca(0.5, np.full(9, 0.5), np.full(5, 0.5))).all()


def test_groups_have_patients_of_like_numbers_and_are_spread_over_folds():
    rng = np.random.default_rng(0)
    sheet = pd.DataFrame({"patient": [f"p{i // 2:02d}" for i in range(80)], "slide": [f"s{i:02d}" for i in range(80)]})
    sheet = sheet.assign(site="unknown", age=np.round(rng.gamma(2, 10, 80), 1).astype(str))
    values = numbers_of(sheet, "age", "sheet")
    sheet["label"] = number_groups(sheet, values, 4)
    assert sheet.groupby("patient")["label"].nunique().max() == 1
    of_group = values.groupby(sheet["patient"]).mean().groupby(sheet.groupby("patient")["label"].first())
    assert of_group.size().tolist() == [10, 10, 10, 10]
    spans = of_group.agg(["min", "max"]).to_numpy().ravel()
    assert (np.diff(spans) > 0).all() and sheet["label"].min().startswith("1 of 4: ")
    folds = make_folds(sheet, 4, 0)
    means = values.groupby(folds["fold"]).mean()
    assert means.max() - means.min() < 0.5 * values.std()
    few = number_groups(sheet, (values > 5).astype(float).rename("late"), 4)  # most are the same
    assert few.nunique() <= 2
    with pytest.raises(InputError, match="late is 1 for all slides"):
        number_groups(sheet, pd.Series(1.0, sheet.index, name="late"), 4)


def test_no_fold_is_empty_where_few_sites_are_divided_by_many_labels():
    sheet = pd.DataFrame(map(phantom.sheet_row, phantom.cohort(regions=True)))
    shares = numbers_of(sheet, "tumour_share", "sheet")
    table = make_folds(sheet.assign(label=number_groups(sheet, shares, 4)), 4, 0)
    assert table["fold"].nunique() == table["site"].nunique() == 4
    assert (table.groupby("site")["fold"].nunique() == 1).all()


def test_what_is_no_number_is_refused_by_slide(tmp_path):
    rows = {"slide": ["a", "b", "c"], "patient": ["1", "2", "3"], "source": ["a.svs", "b.svs", "c.svs"]}

    def read(values, target="Age"):
        pd.DataFrame({**rows, "age ": values}).to_csv(tmp_path / "sheet.tsv", sep="\t", index=False)
        return read_sheet(tmp_path / "sheet.tsv", labelled=False, target=target)

    assert read(["1,5", "2", " 3e1"])["Age"].tolist() == ["1.5", "2.0", "30.0"]
    for values, target, message in (
        (["1", "", "x"], "Age", "slide b: Age is empty, not a number .1 more such slides."),
        (["1", "inf", "2"], "Age", "slide b: Age is inf, not a number"),
        (["1", "2", "3"], "weight", "has no column weight, the `target`; found are the columns 'slide', 'patient'"),
        (["1", "2", "3"], "label", "label is a reserved column"),
    ):
        with pytest.raises(InputError, match=message):
            read(values, target)
    sheet = read(["1", "2", "3"])
    config = {"task": "regression", "target": "Age", "slides": "sheet.tsv", "folds": {"number": 3}}
    with pytest.raises(InputError, match="1 training slides of fold 0 are fewer than a step of 4"):
        check_design(sheet, Configuration.of(config))


def run(folder: Path, output: Path, fold: int, epochs=12, more=(), ranks=1) -> None:
    common = ["--folds", folder / "folds.tsv", "--pyramids", folder / "pyramids"]
    learning = ["--fold", fold, "--mpp", MPP, "--canvas", CANVAS, "--epochs", epochs, "--batch", 2]
    options = ["--learning-rate", 0.003, "--target", "tumour_share", *SMALL_NETWORK, *more]
    gigapipe("train", *common, *learning, *options, "--output", output / "model.pt", ranks=ranks)
    gigapipe("predict", *common, "--model", output / "model.pt", "--output", output / "predictions.tsv")


def test_a_phantom_s_number_is_learnt_and_stands_in_table_maps_and_report(regions, tmp_path):
    folds = [tmp_path / f"8um/fold-{fold}" for fold in range(FOLDS)]
    for fold, folder in enumerate(folds):
        run(regions, folder, fold)
    found = [folder / "predictions.tsv" for folder in folds]
    gigapipe(
        "evaluate", "--predictions", *found, "--trainings", *(f / "training.json" for f in folds), "--output", tmp_path
    )
    print((tmp_path / "comparison.md").read_text())
    predictions = pd.concat(pd.read_csv(path, sep="\t") for path in found)
    test = predictions[predictions["part"] == "test"].set_index("slide")
    shares = {slide.slide: slide.tumour_share for slide in phantom.cohort(**REGIONS)}
    assert test["number"].to_dict() == shares
    row = pd.read_csv(tmp_path / "comparison.tsv", sep="\t").iloc[0]
    assert row["r2"] == pytest.approx(r2_score(test["number"], test["predicted"]), abs=1e-4)
    assert row["r2_low"] < row["r2"] < row["r2_high"] and row["r2"] > 0.6 and row["r2_high"] > 0.8
    assert row["spearman_high"] > 0.9 and row["mean_absolute_error"] < 0.07 and row["target"] == "tumour_share"
    errors = (test["predicted"] - test["number"]).groupby(test["patient"]).mean()
    assert abs(errors.mean()) < max(0.02, 3 * errors.sem())

    models = ["--models", *(folder / "model.pt" for folder in folds)]
    gigapipe(
        "map", *models, "--predictions", *found, "--pyramids", regions / "pyramids", "--number", 1,
        "--output", tmp_path / "8um/maps",
    )  # fmt: skip
    maps = pd.read_csv(tmp_path / "8um/maps/maps.tsv", sep="\t").set_index("chosen")
    chosen = maps.loc["highest"]
    activation = read_map(tmp_path / "8um/maps" / chosen["slide"])
    assert activation.classes == ["tumour_share"]
    mean = chosen["predicted"] - activation.evidence("tumour_share").mean()  # what the network says of nothing
    assert 0.2 < mean < 0.5
    assert set(extremes_of_numbers(test.reset_index(), 1).values()) == {"highest", "lowest", "most wrong"}
    gigapipe("report", tmp_path, "--output", tmp_path / "report.html")
    page = re.sub(r'"data:[^"]*"', "", (tmp_path / "report.html").read_text())  # letters of a picture spell anything
    assert "Largest errors" in page and "tumour_share is 0" in page
    assert "How does resolution affect the prediction of tumour_share" in page and "R²" in page and "AUC" not in page
    assert f"{chosen['slide']} is {chosen['number']:.3g}; predicted tumour_share" in page


def test_folds_keep_the_numbers_and_tell_their_groups(regions):
    table = read_folds(regions / "folds.tsv")
    assert table["tumour_share"].astype(float).between(0.1, 0.6).all()
    means = table["tumour_share"].astype(float).groupby(table["fold"]).mean()
    assert means.max() - means.min() < 0.1
    assert "share of 1 of 4: 0." in (regions / "folds.md").read_text()


def test_a_number_is_learnt_alike_on_two_ranks(regions, tmp_path):
    norm = ("--norm", "group")
    run(regions, tmp_path / "one", 0, 1, norm)
    run(regions, tmp_path / "two", 0, 1, (*norm, "--mesh", 1, 2, 1), ranks=2)
    one, two = (pd.read_csv(tmp_path / name / "predictions.tsv", sep="\t") for name in ("one", "two"))
    assert two["predicted"].to_numpy() == pytest.approx(one["predicted"].to_numpy(), abs=1e-4)
    assert one["predicted"].std() > 1e-3  # of which the ranks know a half each


@pytest.mark.slow
def test_the_workflow_of_a_number_has_the_rules_of_classes_with_its_column(tmp_path):
    project = fresh_copy(tmp_path)
    _, output = snakemake(project, "-n", "--printshellcmds", "--configfile", "config/regression.yaml")
    assert output.count("--target tumour_share") == 2 * 4 + 1  # trainings and folds
    for rule in ("predict", "evaluate", "map", "page"):
        assert f"\nrule {rule}:" in output or f"\nlocalrule {rule}:" in output
    (project / "own.yaml").write_text(yaml.safe_dump({"task": "regression", "phantom": {"regions": True}}))
    status, output = snakemake(project, "-n", "--configfile", "own.yaml", check=False)
    assert status and "config: target: task regression needs the column of the sample sheet" in output
