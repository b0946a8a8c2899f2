"""Sample sheets, folds, AUC and its interval, the comparison table."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import gigapipe
from sklearn.metrics import roc_auc_score

from gigapipe.errors import InputError
from gigapipe.evaluation.comparison import as_markdown, compare, draw
from gigapipe.evaluation.folds import make_folds, read_folds, roles
from gigapipe.evaluation.metrics import auc_interval, fold_auc
from gigapipe.slides.phantom import cohort, sheet_row
from gigapipe.slides.sheet import read_sheet


@pytest.fixture
def sheet() -> pd.DataFrame:
    return pd.DataFrame(map(sheet_row, cohort(patients=32)))


def written(sheet: pd.DataFrame, tmp_path):
    sheet.to_csv(tmp_path / "slides.tsv", sep="\t", index=False)
    return tmp_path / "slides.tsv"


def test_a_sheet_is_read_as_it_stands(sheet, tmp_path):
    pd.testing.assert_frame_equal(read_sheet(written(sheet, tmp_path)), sheet)


def test_a_sheet_may_leave_out_site_and_source(sheet, tmp_path):
    path = tmp_path / "slides.csv"
    sheet[["slide", "label", "patient"]].to_csv(path, index=False)
    read = read_sheet(path, source="slides/{slide}.svs")
    assert set(read["site"]) == {"unknown"}
    assert read["source"].iloc[0] == f"slides/{sheet['slide'].iloc[0]}.svs"
    with pytest.raises(InputError, match="no column source"):
        read_sheet(path)


def spoil(column, value, row=3):
    def change(sheet):
        sheet.loc[row, column] = value
        return sheet

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (spoil("label", ""), "slide PH-002-A has no label"),
        (spoil("patient", ""), "slide PH-002-A has no patient"),
        (spoil("slide", ""), "row 4 has no slide"),
        (spoil("slide", "../x"), "'../x' names files"),
        (spoil("slide", "PH-000-A"), "PH-000-A is listed twice"),
        (spoil("source", "PH-000-A.svs"), "file PH-000-A.svs is listed twice"),
        (spoil("label", "solid", row=0), "patient PH-000 has labels acinar and solid"),
        (lambda sheet: sheet.drop(columns="label"), "no column label"),
        (lambda sheet: sheet[sheet["label"] == "solid"], "needs two labels, but has 1 \\(solid\\)"),
        (lambda sheet: sheet.iloc[:0], "needs two labels, but has 0 \\(no slides\\)"),
    ],
)
def test_a_wrong_sheet_is_refused_in_one_line(sheet, change, message, tmp_path):
    path = written(change(sheet), tmp_path)
    with pytest.raises(InputError, match=message) as error:
        read_sheet(path)
    assert "\n" not in str(error.value) and "slides.tsv" in str(error.value)


def test_the_verb_says_just_that_line(sheet, tmp_path):
    path = written(spoil("label", "")(sheet), tmp_path)
    done = gigapipe("folds", path, tmp_path / "folds", check=False)
    assert done.returncode == 1
    assert done.stdout == f"gigapipe: sample sheet {path}: slide PH-002-A has no label; fill it in, or remove the row\n"
    assert not (tmp_path / "folds").exists()


def test_names_that_look_like_numbers_stay_names(sheet, tmp_path):
    numbered = sheet.assign(
        slide=[f"{i:03d}" for i in range(len(sheet))], label=sheet["label"].map({"acinar": "9", "solid": "10"})
    )
    # A byte order mark and a separator too many on each line, as spreadsheet programs write them.
    text = "\ufeff" + numbered.to_csv(sep="\t", index=False).replace("\n", "\t\n").replace("\t\n", "\n", 1)
    (tmp_path / "slides.tsv").write_text(text)
    gigapipe("folds", tmp_path / "slides.tsv", tmp_path)
    pd.testing.assert_frame_equal(read_folds(tmp_path / "folds.tsv").drop(columns="fold"), numbered)


def test_folds_share_no_patient_and_keep_the_balance(sheet):
    table = make_folds(sheet, folds=4, seed=0, by="patient")
    assert (table.groupby("patient")["fold"].nunique() == 1).all()
    share = table.groupby("fold")["label"].apply(lambda labels: (labels == "solid").mean())
    assert len(share) == 4 and abs(share - (sheet["label"] == "solid").mean()).max() < 0.1
    for fold in range(4):
        parts = roles(table, fold)
        patients = [set(part["patient"]) for part in parts.values()]
        assert not any(a & b for i, a in enumerate(patients) for b in patients[:i])
        assert sum(map(len, parts.values())) == len(sheet)
        assert (parts["test"]["fold"] == fold).all()
    pd.testing.assert_frame_equal(table, make_folds(sheet, folds=4, seed=0, by="patient"))
    assert (table["fold"] != make_folds(sheet, folds=4, seed=1, by="patient")["fold"]).any()


def test_folds_that_cannot_be_made_are_refused(sheet):
    with pytest.raises(InputError, match="too few"):
        make_folds(sheet, folds=2, seed=0)
    with pytest.raises(InputError, match="too few"):
        make_folds(sheet[sheet["patient"] < "PH-006"], folds=4, seed=0)
    with pytest.raises(InputError, match="folds 0 to 3"):
        roles(make_folds(sheet, folds=4, seed=0), 4)


def predictions(rng, patients: int, signal: float, folds: int = 2) -> pd.DataFrame:
    rows = [
        {"patient": p, "fold": p % folds, "positive": p // folds % 2 == 1, "score": rng.normal() + effect}
        for p in range(patients)
        for effect in [rng.normal() + signal * (p // folds % 2)]
        for _ in range(2)
    ]
    return pd.DataFrame(rows)


def test_auc_is_never_ranked_across_folds():
    table = predictions(np.random.default_rng(0), 40, 1.0)
    expected = np.mean([roc_auc_score(t["positive"], t["score"]) for _, t in table.groupby("fold")])
    assert fold_auc(table) == pytest.approx(expected, abs=1e-12)
    table.loc[table["fold"] == 1, "score"] += 100  # another model, another scale
    assert fold_auc(table) == pytest.approx(expected, abs=1e-12)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    # Score differences are normal, of variance 2 (1 + 1): the true AUC is Φ(signal / 2).
    from scipy.stats import norm

    truth = norm.cdf(1.0 / 2)
    covered = 0
    for seed in range(60):
        low, high = auc_interval(predictions(np.random.default_rng(seed), 60, 1.0, folds=1), resamples=100, seed=seed)
        covered += low <= truth <= high
    assert covered >= 48  # 95 % of 60 is 57; three standard deviations below it


def test_the_comparison_has_a_row_a_resolution(tmp_path):
    rng = np.random.default_rng(0)
    tables, records = [], []
    for mpp, signal in ((8, 0.0), (2, 6.0)):
        table = predictions(rng, 40, signal)
        for fold, held_out in table.groupby("fold"):
            held_out = held_out.assign(mpp=mpp, label=np.where(held_out["positive"], "solid", "acinar"), slide="s")
            tables.append(tmp_path / f"{mpp}-{fold}.tsv")
            held_out.drop(columns="positive").to_csv(tables[-1], sep="\t", index=False)
            records.append(tmp_path / f"{mpp}-{fold}.json")
            cost = {"seconds_per_step": 1.0 + fold, "peak_memory_per_rank_mb": 100.0 + fold}
            settings = {"mpp": mpp, "canvas": 64}
            records[-1].write_text(json.dumps({"settings": settings, "mesh": [1, 2, 2], **cost}))
    comparison = compare(tables, records)
    assert list(comparison["mpp"]) == [8, 2]
    assert list(comparison["ranks"]) == [4, 4]
    assert list(comparison["seconds_per_step"]) == [1.5, 1.5]
    assert list(comparison["peak_memory_per_rank_mb"]) == [101, 101]
    assert comparison["auc"].iloc[0] < 0.7 < 0.9 < comparison["auc"].iloc[1]
    assert ((comparison["auc_low"] <= comparison["auc"]) & (comparison["auc"] <= comparison["auc_high"])).all()
    text = as_markdown(comparison)
    assert len(text.splitlines()) == 4 and f"{comparison['auc'].iloc[1]:.3f}" in text
    draw(comparison, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
