"""Sample sheets, folds, the comparison table."""

import json
import re
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from launching import gigapipe
from scipy.special import expit

from gigapipe.errors import InputError
from gigapipe.evaluation.comparison import compare
from gigapipe.evaluation.comparison_text import as_html, as_markdown
from gigapipe.evaluation.folds import given_folds, make_folds, read_folds, roles
from gigapipe.evaluation.networks import read_networks
from gigapipe.evaluation.predictions import read_predictions
from gigapipe.evaluation.report import all_figures, found, of_table
from gigapipe.slides.phantom import cohort, sheet_row
from gigapipe.slides.sheet import UNKNOWN, read_sheet


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
        (lambda sheet: sheet.drop(columns="label"), "no column label"),
        (lambda sheet: sheet[sheet["label"] == "solid"], "needs two labels or more, but has 1 \\(solid\\)"),
        (lambda sheet: sheet.iloc[:0], "needs two labels or more, but has 0 \\(no slides\\)"),
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
    pd.testing.assert_frame_equal(read_folds(tmp_path / "folds.tsv").drop(columns=["fold", "split"]), numbered)


def test_folds_share_no_patient_and_keep_the_balance(sheet):
    table = make_folds(sheet, folds=4, seed=0, by="patient")
    assert (table.groupby("patient")["fold"].nunique() == 1).all() and set(table["split"]) == {"patient"}
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


@pytest.mark.parametrize("by", ["site", "patient"])
def test_labels_belong_to_slides_and_patients_stay_together(sheet, by, tmp_path):
    """As in a public cohort, of whose 16 patients 5 have several grades."""
    several = sheet.index[sheet["patient"].duplicated()][:5]
    sheet.loc[several, "label"] = sheet.loc[several, "label"].map({"acinar": "solid", "solid": "acinar"})
    table = make_folds(read_sheet(written(sheet, tmp_path)), folds=4, seed=0, by=by)
    assert (table.groupby("patient")["label"].nunique() == 2).sum() == 5
    assert (table.groupby("patient")["fold"].nunique() == 1).all()
    share = table.groupby("fold")["label"].apply(lambda labels: (labels == "solid").mean())
    assert len(share) == 4 and abs(share - (sheet["label"] == "solid").mean()).max() < 0.15


def test_patients_whose_site_is_not_known_stay_together(sheet):
    sheet["site"] = sheet["site"].where(sheet["site"] != sheet["site"].iloc[0], UNKNOWN)
    unknown = sheet[sheet["site"] == UNKNOWN]
    assert unknown["patient"].nunique() > 3 and unknown["patient"].duplicated().any()
    for seed in range(5):
        table = make_folds(sheet, folds=3, seed=seed)
        assert (table.groupby("patient")["fold"].nunique() == 1).all()
        assert table[table["site"] == UNKNOWN]["fold"].nunique() > 1


def test_given_folds_that_part_a_patient_are_refused(sheet, tmp_path):
    given = pd.DataFrame({"slide": sheet["slide"], "fold": [i % 3 for i in range(len(sheet))]})
    given.to_csv(tmp_path / "folds.csv", index=False)
    twice = sheet["patient"].value_counts()
    assert twice.max() > 1
    with pytest.raises(InputError, match=r"patient \S+ is in \d folds; give one"):
        given_folds(sheet, tmp_path / "folds.csv")


def test_folds_that_cannot_be_made_are_refused(sheet):
    with pytest.raises(InputError, match="too few"):
        make_folds(sheet, folds=2, seed=0)
    with pytest.raises(InputError, match="too few"):
        make_folds(sheet[sheet["patient"] < "PH-006"], folds=4, seed=0)
    with pytest.raises(InputError, match="folds 0 to 3"):
        roles(make_folds(sheet, folds=4, seed=0), 4)


def network(folder: Path, mpp: float, signal: float, seed=0, fold=0, split="site", mesh=(1, 1, 1), **record):
    """What one network leaves behind: `predictions.tsv` and `training.json` of 24 slides it was not trained on.

    Which slides are difficult is the same at any resolution, as it is in truth.
    """
    rng, own = np.random.default_rng([seed, fold]), np.random.default_rng([seed, fold, round(mpp)])
    rows = []
    for i, part in enumerate(["test"] * 16 + ["validation"] * 8):
        patient = f"{(fold + i // 16) % 3}{i // 2:02d}"  # looks like a number
        positive = i // 2 % 2
        score = expit(rng.normal() + 0.3 * own.normal() + signal * (positive - 0.5))
        names = {"slide": f"{patient}-{i % 2}", "patient": patient, "site": "a", "label": ["acinar", "solid"][positive]}
        rows.append({**names, "part": part, "split": split, "seed": seed, "fold": fold, "mpp": mpp, "score": score})
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / "predictions.tsv", sep="\t", index=False)
    settings = {
        "precision": "float32",
        "mpp": mpp,
        "seed": seed,
        "fold": fold,
        "canvas": 64,
        "batch": 2,
        "network": "resnet18",
        "width": 64,
        "pool": "average",
        "weights": None,
    }
    record = {
        "settings": settings, "mesh": mesh, "memory": None, "streamed": False, "seconds_per_step": 1.0 + fold,
        "images_per_second": 2 / (1.0 + fold), "peak_memory_per_rank_mb": 100.0 + fold, "parameters": 1234567,
        "sent_bytes_per_step": 2e6, "joules_per_step": None, "slides_per_step": 2, "started_from": None, **record,
    }  # fmt: skip
    (folder / "training.json").write_text(json.dumps(record))
    return folder


def compared(folders) -> pd.DataFrame:
    files = ([folder / name for folder in folders] for name in ("predictions.tsv", "training.json"))
    return compare(*read_networks(*files), margin=0.02)


def test_the_comparison_has_a_row_a_resolution(tmp_path):
    energy = {8: {"joules_per_step": 12.0, "energy_counted": "processors and cards"}, 2: {}}
    folders = [
        network(tmp_path / f"{mpp}-{fold}", mpp, signal, fold=fold, mesh=(1, 2, 2), **energy[mpp])
        for mpp, signal in ((8, 0.0), (2, 3.0))
        for fold in range(3)
    ]
    table = compared(folders[::-1])
    assert list(table["mpp"]) == [8, 2]
    assert list(table["ranks"]) == [4, 4] and list(table["method"]) == ["spatial"] * 2
    assert list(table["pixels"]) == [64 * 64] * 2
    assert (table["slides"] == 48).all() and (table["patients"] == 24).all() and (table["folds"] == 3).all()
    assert list(table["seconds_per_step"]) == [2, 2] and list(table["seconds_per_slide"]) == [1, 1]
    assert list(table["peak_memory_per_rank_mb"]) == [102, 102]  # the most
    assert table["auc"].iloc[0] < 0.7 < 0.9 < table["auc"].iloc[1]
    assert ((table["auc_low"] <= table["auc"]) & (table["auc"] <= table["auc_high"])).all()
    assert np.isnan(table["delta"].iloc[0]) and list(table["joules_per_step"].isna()) == [False, True]
    assert list(table["energy_counted"]) == ["processors and cards", "unknown"]
    assert list(table["precision"]) == ["float32"] * 2
    assert table["coarser"].iloc[1] == 8 and table["p"].iloc[1] < 0.001
    assert table["delta"].iloc[1] == pytest.approx(table["auc"].iloc[1] - table["auc"].iloc[0], abs=1e-12)
    assert list(table["to_best"]) == pytest.approx([-table["delta"].iloc[1], table["delta"].iloc[1]])
    assert table["to_best_low"].iloc[1] > 0 > table["to_best_high"].iloc[0] and list(table["rival"]) == [2, 8]
    # Not known: energy, a spread over one seed, what drawing patients says where all are told apart, and how many would
    # tell what these do.
    unknown = {"joules_per_step", "auc_sd_seeds", "patient_auc_bootstrap_low", "patient_auc_bootstrap_high"}
    unknown |= {"patients_needed", "training_seconds"}
    assert table["patient_auc"].iloc[1] == 1 and 0.8 < table["patient_auc_low"].iloc[1] < 1
    assert set(table.columns[table.iloc[1].isna()]) == unknown
    text, page = as_markdown(table), as_html(table)
    for shown in (
        f"{table['auc'].iloc[1]:.3f}",
        f"{table['delta'].iloc[1]:+.3f} (p < 0.001)",
        "1,234,567",
        "1 × 2 × 2",
        "12 (processors and cards)",
    ):
        assert shown in text and escape(shown) in page
    assert "not measured" in text and "unknown" not in text  # the energy
    assert re.findall("(?:src|href)=", page) == []  # nothing beside it is needed


def test_arms_splits_and_seeds_stand_side_by_side(tmp_path):
    folders = [
        network(tmp_path / f"{mpp}-{mesh}-{split}-{seed}-{fold}", mpp, signal, seed, fold, split, mesh, **arm)
        for mpp, mesh, arm in (
            (8, (1, 1, 1), {}),
            (2, (2, 2, 1), {}),
            (2, (1, 1, 1), {"memory": 10**9, "streamed": True}),
        )
        for split, signal in (("site", 1.0), ("patient", 6.0))
        for seed in range(2)
        for fold in range(3)
    ]
    table = compared(folders)
    assert list(table["method"]) == ["whole", "streamed", "data-parallel + spatial"]
    assert (table["split"] == "site").all() and (table["seeds"] == 2).all()
    assert (table["auc"] + 0.1 < table["patient_split_auc"]).all()
    assert (table["patient_split_auc_low"] > 0.7).all() and (table["auc_sd_seeds"] > 0).all()
    # The arms are exact: the same scores, the same worth, whatever they cost.
    assert table["auc"].iloc[1] == table["auc"].iloc[2] and table["delta"].iloc[1] == table["delta"].iloc[2]
    assert list(table["memory"]) == [0, 10**9, 0]
    text = as_markdown(table)
    assert "AUC, folds by site" in text and "AUC, folds by patient" in text and " ± " in text
    assert f"{table['patient_split_auc'].iloc[0]:.3f} ± " in text
    # A seed more at one resolution changes no difference: networks are paired.
    more = compared([*folders, *(network(tmp_path / f"more-{fold}", 8, 1.0, 2, fold) for fold in range(3))])
    assert more["delta"].iloc[1] == table["delta"].iloc[1] and more["auc"].iloc[0] != table["auc"].iloc[0]


def test_the_reports_confusion_matrix_decides_as_the_table_does(tmp_path):
    folders = [
        network(tmp_path / f"{mpp}um/site-{seed}/fold-{fold}", mpp, 1.0, seed, fold)
        for mpp in (8, 2)
        for seed in range(2)
        for fold in range(3)
    ]
    table = compared(folders)
    predictions = of_table(read_predictions(found(tmp_path, "predictions.tsv")), table)
    figure, caption = all_figures(table, predictions, [], tmp_path)["confusion"]
    assert "at a threshold chosen on each network's validation slides" in caption and "Not shown" not in caption
    for panel, row in zip(figure.axes, table.itertuples(), strict=True):
        (acinar, wrongly_solid), (wrongly_acinar, solid) = np.reshape([int(n.get_text()) for n in panel.texts], (2, 2))
        assert acinar + wrongly_solid + wrongly_acinar + solid == 2 * row.slides
        assert solid / (solid + wrongly_acinar) == pytest.approx(row.sensitivity)
        assert acinar / (acinar + wrongly_solid) == pytest.approx(row.specificity)
        of_row = predictions[(predictions["mpp"] == row.mpp) & (predictions["part"] == "test")]
        likelier = of_row[of_row["label"] == "solid"]["score"] >= 0.5
        assert abs(likelier.mean() - row.sensitivity) > 0.01  # the matrix of the likelier class is another


def test_what_cannot_be_compared_is_said(tmp_path):
    one, other = (network(tmp_path / f"{fold}", 8, 1.0, fold=fold) for fold in range(2))
    files = [[folder / name for folder in (one, other)] for name in ("predictions.tsv", "training.json")]
    with pytest.raises(InputError, match="2 tables of predictions, but 1 trainings"):
        read_networks(files[0], files[1][:1])
    with pytest.raises(InputError, match="0/predictions.tsv: its network is given twice"):
        read_networks([*files[0], files[0][0]], [*files[1], files[1][0]])
    with pytest.raises(InputError, match="have a different fold; give the same networks, in the same order"):
        read_networks(files[0], files[1][::-1])
    with pytest.raises(InputError, match="predictions .*training.json: has no column slide, .*`gigapipe predict`"):
        read_networks(files[1], files[1])
    with pytest.raises(InputError, match="training .*predictions.tsv: cannot be read"):
        read_networks(files[0], files[0])
    table = pd.read_csv(one / "predictions.tsv", sep="\t")
    table.assign(label="mixed").to_csv(one / "predictions.tsv", sep="\t", index=False)
    with pytest.raises(InputError, match="labels acinar, mixed, solid: not all have a column score_acinar"):
        read_networks(*files)
    table.iloc[1:].assign(mpp=4.0).to_csv(one / "predictions.tsv", sep="\t", index=False)
    with pytest.raises(InputError, match="have a different mpp"):
        read_networks(*files)


def test_resolutions_tested_on_different_slides_have_no_difference(tmp_path):
    coarse, fine = (network(tmp_path / f"{mpp}", mpp, 1.0) for mpp in (8, 2))
    table = pd.read_csv(fine / "predictions.tsv", sep="\t", dtype={"patient": str})
    table.iloc[1:].to_csv(fine / "predictions.tsv", sep="\t", index=False)
    compared_ = compared([coarse, fine])
    assert np.isnan(compared_["p"].iloc[1]) and "not tested on the same slides" in as_markdown(compared_)
