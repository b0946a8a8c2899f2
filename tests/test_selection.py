"""Which slides of an archive are a cohort's, whatever it is made from, and what becomes of tumour and normal tissue."""

import re

import numpy as np
import pandas as pd
import pytest
from gdc_server import Archive, name_of, serving
from launching import gigapipe

from gigapipe.errors import InputError
from gigapipe.evaluation.columns import COSTS
from gigapipe.evaluation.comparison import compare
from gigapipe.evaluation.comparison_text import as_markdown
from gigapipe.evaluation.folds import read_folds, roles
from gigapipe.gdc.cohort import from_manifests
from gigapipe.slides.sheet import read_sheet


def cohort_of(*slides: tuple[str, str]) -> Archive:
    """An archive of the slides of patients: `(name_of(…), project)` each."""
    archive = Archive()
    for i, (name, project) in enumerate(slides, start=1):
        strategy = "Diagnostic Slide" if "-DX" in name else "Tissue Slide"
        hospital, md5 = f"H{i % 3}", f"{i:032x}"
        archive.add(None, name, md5=md5, size=1, project=project, site=hospital, experimental_strategy=strategy)
    return archive


MIXED = [
    (name_of(1, "01Z-00-DX1"), "TCGA-LUAD"),
    (name_of(1, "01A-01-TS1"), "TCGA-LUAD"),
    (name_of(1, "11A-01-TS1"), "TCGA-LUAD"),
    (name_of(2, "01A-01-BS1"), "TCGA-LUAD"),
    (name_of(3, "01Z-00-DX1"), "TCGA-LUSC"),
    (name_of(3, "11A-01-TS1"), "TCGA-LUSC"),
    (name_of(4, "06A-01-TS1"), "TCGA-LUSC"),
]
CHOICES = {
    "": ["1-01Z-00-DX1", "3-01Z-00-DX1"],
    "--strategy=all": ["1-01A-01-TS1", "1-01Z-00-DX1", "2-01A-01-BS1", "3-01Z-00-DX1", "4-06A-01-TS1"],
    "--strategy=Tissue Slide": ["1-01A-01-TS1", "2-01A-01-BS1", "4-06A-01-TS1"],
    "--samples=normal": ["1-11A-01-TS1", "3-11A-01-TS1"],
    "--label=sample_type": ["1-01A-01-TS1", "1-11A-01-TS1", "2-01A-01-BS1", "3-11A-01-TS1", "4-06A-01-TS1"],
}


@pytest.mark.parametrize("option", CHOICES)
def test_a_cohort_is_of_one_tissue_and_kind_however_it_is_made(option, tmp_path):
    """Asked for, from manifests, from the portal's sheet: the same slides, and the same counts of the others."""
    options = [option] if option else []
    archive = cohort_of(*MIXED)
    header = "File ID\tFile Name\tProject ID\tCase ID\tTissue Type\tTumor Descriptor\n"
    lines = {project: ["id\tfilename\tmd5\tsize\tstate\n"] for project in ("TCGA-LUAD", "TCGA-LUSC")}
    portal = [header]
    for file_id, file in archive.files.items():
        of = file.metadata
        project, name = of["cases.0.project.project_id"], of["file_name"]
        lines[project].append(f"{file_id}\t{name}\t{of['md5sum']}\t1\treleased\n")
        tissue = "Normal\tNot Applicable" if "-11A-" in name else "Tumor\tPrimary"
        portal.append(f"{file_id}\t{name}\t{project}\t{of['cases.0.submitter_id']}\t{tissue}\n")
    (tmp_path / "portal.tsv").write_text("".join(portal))
    for project, of in lines.items():
        (tmp_path / project).write_text("".join(of))
    with serving(archive) as url:
        ways = {
            "query": ["query", "--project=TCGA-LUAD", "--project=TCGA-LUSC", f"--api={url}", *options],
            "portal": ["sheet", "--portal-sheet", tmp_path / "portal.tsv", *options],
            "manifest": ["sheet", *(f"--manifest={project}={tmp_path / project}" for project in lines), *options],
        }
        if "label" in option:  # a manifest's label is its own
            del ways["manifest"]
        for way, (verb, *asked) in ways.items():
            done = gigapipe("gdc", verb, tmp_path / f"{way}.tsv", *asked)
            sheet = read_sheet(tmp_path / f"{way}.tsv")
            assert [slide.removeprefix("TCGA-05-000") for slide in sheet["slide"]] == CHOICES[option]
            assert set(sheet["kind"]) <= {"diagnostic", "frozen"}
            assert all(("11A" in row.slide) == (row.sample_type == "normal tissue") for row in sheet.itertuples())
            first = (tmp_path / f"{way}.tsv").read_text().partition("\n")[0]
            for said in (done.stdout, first):
                counted = [int(n) for n in re.findall(r"excluded (\d+)| and (\d+) slides? of", said) for n in n if n]
                assert sum(counted) == len(MIXED) - len(sheet), said
                assert ("--samples all" in said) == ("sample" not in option or "normal" in option)


def test_manifests_of_tumour_and_of_normal_tissue_are_of_one_kind(tmp_path):
    for label, mark in (("tumour", ("01A", "01Z")), ("normal", ("11A",))):
        names = [name for name, _ in MIXED if name.split("-")[3] in mark]
        ids = [f"{i:08x}-0000-4000-8000-{label == 'normal':012}" for i in range(len(names))]
        rows = [f"{i}\t{name}\t\t1\n" for i, name in zip(ids, names, strict=True)]
        (tmp_path / label).write_text("id\tfilename\tmd5\tsize\n" + "".join(rows))
    sheet = from_manifests({label: tmp_path / label for label in ("tumour", "normal")})
    assert set(sheet["kind"]) == {"frozen"} and list(sheet["label"]) == ["tumour", "normal", "tumour", "normal"]
    assert sheet.attrs["notes"] == ["excluded 2 diagnostic slides (--strategy all includes them)"]


@pytest.mark.parametrize(
    "name, patient",
    [
        ("HCM-BROD-0002-C71-01A-01-S1-HE", "HCM-BROD-0002-C71"),
        ("BLGSP-71-06-00001-01A-01-S1", "BLGSP-71-06-00001"),
        ("C3L-00001-21", "C3L-00001"),
        ("MSB-00241-01-05", "MSB-00241"),
    ],
)
def test_slides_of_other_programs_are_their_patients(name, patient, tmp_path):
    archive = Archive()
    ids = [
        archive.add(None, f"{name}{i}.{i:08x}-0000-4000-8000-000000000000.svs", md5=f"{i:032x}", size=1, project="X")
        for i in range(1, 3)
    ]
    for i, file_id in enumerate(ids):
        archive.files[file_id].metadata["cases.0.submitter_id"] = patient
        archive.files[file_id].metadata["cases.0.samples.0.sample_type"] = ("Primary Tumor", "Solid Tissue Normal")[i]
    with serving(archive) as url:
        asked = ["gdc", "query", tmp_path / "s.tsv", "--project=X", f"--api={url}", "--samples=all"]
        if "-01A-" in name:  # whose name says what it is of, and not what the archive says
            assert f"{name}2" in gigapipe(*asked).stdout
            archive.files[ids[1]].metadata["cases.0.samples.0.sample_type"] = "Primary Tumor"
        said = gigapipe(*asked).stdout
    sheet = read_sheet(tmp_path / "s.tsv", labelled=False)
    assert list(sheet["slide"]) == [f"{name}1", f"{name}2"] and set(sheet["patient"]) == {patient}
    assert sheet["sample_type"][1] == ("primary tumour" if "-01A-" in name else "normal tissue")
    assert "All have the same label" in said


def test_what_the_archive_has_twice_is_decided_in_a_line(tmp_path):
    archive = cohort_of(*[(name_of(i), ("A", "B")[i % 2]) for i in range(8)])
    ids = list(archive.files)
    archive.add(None, name_of(1), "99999999-0000-4000-8000-000000000000", md5="9" * 32, size=9, project="A")
    archive.files[ids[3]].metadata["md5sum"] = archive.files[ids[2]].metadata["md5sum"].upper()
    again = name_of(4).replace("DX1", "DX2")
    archive.add(None, again, md5=archive.files[ids[4]].metadata["md5sum"], size=1, project="A")
    another = {"cases.1.submitter_id": "TCGA-05-0006", "cases.1.project.project_id": "B"}
    archive.files[ids[5]].metadata.update(another)
    with serving(archive) as url:
        done = gigapipe("gdc", "query", tmp_path / "s.tsv", "--project=A", "--project=B", "--api", url)
    assert list(read_sheet(tmp_path / "s.tsv")["slide"]) == [f"TCGA-05-{i:04d}-01Z-00-DX1" for i in (0, 4, 6, 7)]
    for said in (
        "excluded 2 slides whose file names have two ids",
        "excluded 2 slides that are the same file (md5) for two patients or labels: TCGA-05-0002-01Z-00-DX1, TCGA-",
        "excluded 1 slide that are the same file (md5) as another slide of the patient: TCGA-05-0004-01Z-00-DX2",
        f"excluded: '{name_of(5)}' belongs to several patients, TCGA-05-0005, TCGA-05-0006",
    ):
        assert said in done.stdout, done.stdout


def test_a_line_of_a_manifest_twice_is_one_slide_and_under_two_labels_none(tmp_path):
    for label, number in (("a", 1), ("b", 2)):
        line = f"{number:08x}-0000-4000-8000-000000000000\t{name_of(number)}\t\t1\n"
        (tmp_path / label).write_text("id\tfilename\tmd5\tsize\n" + line * number)
    pairs = [(label, tmp_path / label) for label in "ab"]
    sheet = from_manifests(pairs)
    assert len(sheet) == 2 and sheet.attrs["notes"] == [
        f"used 1 slide once, although listed more than once: {name_of(2)}"
    ]
    assert len(from_manifests([*pairs, ("b", tmp_path / "b")])) == 2  # a label may have several manifests
    with pytest.raises(InputError, match="is listed under the labels a and b; remove one"):
        from_manifests([*pairs, ("b", tmp_path / "a")])


def test_two_diagnoses_are_no_class_but_that_of_the_primary_disease_is(tmp_path):
    archive = cohort_of(*[(name_of(i), "A") for i in range(6)])
    for i, file in enumerate(archive.files.values()):
        file.metadata["cases.0.diagnoses.0.primary_diagnosis"] = ("adeno", "squamous")[i % 2]
        if i < 2:
            file.metadata["cases.0.diagnoses.1.primary_diagnosis"] = "other"
        file.metadata["cases.0.diagnoses.0.diagnosis_is_primary_disease"] = i == 1
        if i == 5:
            del file.metadata["cases.0.diagnoses.0.primary_diagnosis"]
    asked = ["--project=A", "--label=primary_diagnosis", "--class=a=adeno", "--class=s=squamous"]
    with serving(archive) as url:
        done = gigapipe("gdc", "query", tmp_path / "s.tsv", *asked, "--api", url)
        gone = gigapipe("gdc", "query", tmp_path / "t.tsv", *asked[:2], "--class=o=other", "--api", url, check=False)
    sheet = read_sheet(tmp_path / "s.tsv")
    assert list(sheet["patient"].str[-1]) == ["1", "2", "3", "4"] and list(sheet["label"]) == ["s", "a", "s", "a"]
    assert "excluded 1 slide of patients with several diagnoses: TCGA-05-0000-01Z-00-DX1 (adeno and" in done.stdout
    assert "excluded 1 slide of patients without a diagnosis: TCGA-05-0005-01Z-00-DX1" in done.stdout
    assert gone.returncode == 1 and "excluded 4 slides with other labels: squamous (2), adeno (2)" in gone.stdout


def test_tumour_against_matched_normal_tissue_comes_to_a_table(tmp_path):
    """The same patients have both: of the archive a sheet, folds, and figures of slides, but none of patients."""
    kinds = ("01A-01-TS1", "11A-01-TS1", "01Z-00-DX1")
    archive = cohort_of(*[(name_of(i, kind), "TCGA-LUAD") for i in range(12) for kind in kinds])
    with serving(archive) as url:
        asked = ["--project=TCGA-LUAD", "--label=sample_type", "--api", url]
        gigapipe("gdc", "query", tmp_path / "slides.tsv", *asked)
    report = gigapipe("folds", tmp_path / "slides.tsv", tmp_path, "--folds", 3, "--by", "patient").stdout
    assert "12 of 12 patients have slides with several labels" in report
    table = read_folds(tmp_path / "folds.tsv")
    assert len(table) == 24 and set(table["kind"]) == {"frozen"}
    assert (table.groupby("patient")["fold"].nunique() == 1).all() and set(table["label"].value_counts()) == {12}
    networks = []
    for fold in range(3):
        parts = [part.assign(part=name) for name, part in roles(table, fold).items() if name != "training"]
        scores = pd.concat(parts).assign(seed=0, fold=fold, mpp=8.0, method="whole", canvas=64, mesh="1 × 1 × 1")
        score = (scores["label"] == "primary tumour") * 0.3 + np.random.default_rng(fold).random(len(scores)) * 0.8
        networks.append(scores.assign(memory=0, network="resnet18", start="random", method_name="", score=score))
    scores = pd.concat(networks)
    costs = scores.drop_duplicates("fold").assign(
        ranks=1, precision="float32", energy_counted="unknown", **dict.fromkeys(COSTS, 1.0)
    )
    row = compare(scores, costs, margin=0.02).iloc[0]
    assert row["slides"] == 24 and row["patients"] == row["patients_of_several_labels"] == 12
    assert 0.5 < row["auc_low"] < row["auc"] < 1 and row["auc_bootstrap_low"] < row["auc"] < row["auc_bootstrap_high"]
    assert row[[name for name in row.index if name.startswith("patient_auc")]].isna().all()
    assert "none: 12 patients with several labels" in as_markdown(pd.DataFrame([row]))
