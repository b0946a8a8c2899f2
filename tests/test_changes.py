"""What is made again when something has changed: only what depends on it, and a dry run says why."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from launching import gigapipe
from projects import fresh_copy, plan, snakemake

from gigapipe.pyramids import Pyramid
from gigapipe.pyramids.build import build_pyramid
from gigapipe.slides.phantom import cohort, render, sheet_row, write_slide

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]

FINE = {"mpp": 8, "canvas": 52, "mesh": [1, 1, 1]}
COARSE = {"mpp": 32, "canvas": 13, "mesh": [1, 1, 1]}
BASE = {
    "slides": "sheet.tsv",
    "folds": {"number": 3, "by": "patient"},
    "resolutions": [FINE, COARSE],
    "training": {"batch": 2, "epochs": 1, "width": 8, "network": "resnet10"},
}
PATIENTS = 6


STUB = """#!/bin/bash
cp -rn kept/. results # what this job's outputs were, which Snakemake has removed
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project with slides of its own, and all that a run has made of them, as Snakemake has noted it.

    Slides, pyramids and folds are real; networks, and what follows from them, are empty files.
    """
    project = fresh_copy(tmp_path_factory.mktemp("changes") / "project")
    (project / "my").mkdir()
    phantoms = list({p.patient: p for p in cohort(patients=PATIENTS, sites=3, folder="my")}.values())
    for phantom in phantoms:
        write_slide(project / phantom.source, render(phantom))
        build_pyramid(project / phantom.source, project / "kept/pyramids" / phantom.slide, [8.0, 32.0])
    pd.DataFrame(map(sheet_row, phantoms)).to_csv(project / "sheet.tsv", sep="\t", index=False)
    gigapipe("folds", "sheet.tsv", "kept", "--folds", 3, "--by", "patient", cwd=project)
    networks = [f"{mpp}um/fold-{fold}" for mpp in (8, 32) for fold in range(3)]
    files = [f"{of}/{name}" for of in networks for name in ("model.pt", "training.json", "predictions.tsv")]
    files += [f"comparison.{kind}" for kind in ("tsv", "md", "html", "png")]
    files += ["slides.tsv", "slides.png", "report.html", "8um/maps/maps.tsv", "32um/maps/maps.tsv", "figures/a.svg"]
    files += ["ro-crate-metadata.json", "provenance/workflow/Snakefile"]
    for name in files:
        (project / "kept" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "kept" / name).write_text(name)
    stub = tmp_path_factory.mktemp("bin") / "gigapipe"
    stub.write_text(STUB)
    stub.chmod(0o755)
    configure(project)
    path = f"PATH={stub.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    snakemake(project, "--cores", 1, "--configfile", "mine.yaml", before=["env", path])
    shutil.rmtree(project / "kept")
    return project


def configure(project, **changes):
    (project / "mine.yaml").write_text(yaml.safe_dump(BASE | changes))


def again(project, *arguments, **changes) -> tuple[int, int, int, int]:
    """How many pyramids, resolutions of pyramids, trainings and predictions a dry run would make."""
    configure(project, **changes)
    jobs = plan(project, "--configfile", "mine.yaml", *arguments)
    return tuple(jobs.get(rule, 0) for rule in ("pyramid", "add", "train", "predict"))


def change_sheet(project, change) -> None:
    table = pd.read_csv(project / "sheet.tsv", sep="\t", dtype=str, keep_default_na=False)
    change(table).to_csv(project / "sheet.tsv", sep="\t", index=False)


def reorder(project) -> None:
    change_sheet(project, lambda table: table.iloc[::-1])


def give_masks(project) -> None:
    change_sheet(project, lambda table: table.assign(mask=table["source"]))


def correct_labels(project) -> None:
    def exchanged(table):
        first, last = table.index[0], table[table["label"] != table["label"].iloc[0]].index[-1]
        table.loc[[first, last], "label"] = table.loc[[last, first], "label"].tolist()
        return table

    change_sheet(project, exchanged)


def touch_slides(project) -> None:
    for slide in (project / "my").glob("*.svs"):
        os.utime(slide)


def replace_slide(project) -> None:
    """Other bytes, as many, and a date before everything."""
    slide = min((project / "my").glob("*.svs"))
    text = bytearray(slide.read_bytes())
    text[-1] ^= 1
    slide.write_bytes(bytes(text))
    os.utime(slide, (1e9, 1e9))


ALL, OF_ONE = 2 * 3, 3  # networks; of one resolution
NOTHING = (0, 0, 0, 0)
MIDDLE = {"mpp": 16, "canvas": 26, "mesh": [1, 1, 1]}
MESHED = [COARSE | {"mesh": [1, 2, 1]}]
IN_LESS = BASE["training"] | {"memory": "700MB", "keep_checkpoints": 1}
CHANGES = {
    # Changes of files and of the config; how many pyramids, resolutions of them, trainings and predictions are made.
    # What makes nothing is changed all at once: a dry run says which change is to blame.
    "nothing; a resolution removed, rows reordered, a mask column added, slides touched, another mesh, less memory, "
    "other cores": ([reorder, give_masks, touch_slides], {"resolutions": MESHED, "training": IN_LESS}, NOTHING),
    "seeds and a kind of folds added": (
        [],
        {"seeds": [0, 7], "folds": {"number": 3, "by": ["patient", "site"]}},
        (0, 0, 3 * ALL, 3 * ALL),
    ),
    "a slide replaced": ([replace_slide], {}, (1, 0, ALL, ALL)),
    "labels corrected": ([correct_labels], {}, (0, 0, ALL, ALL)),
    "another canvas": ([], {"resolutions": [FINE | {"canvas": 60}, COARSE]}, (0, 0, OF_ONE, OF_ONE)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_only_what_depends_on_a_change_is_made_again(made, name):
    changes, config, expected = CHANGES[name]
    files = [made / "sheet.tsv", *(made / "my").glob("*.svs")]
    kept = [shutil.copy2(path, path.with_suffix(".kept")) for path in files]
    try:
        for change in changes:
            change(made)
        assert again(made, "--cores", 7, **config) == expected
    finally:
        for path, copy in zip(files, kept, strict=True):
            copy.replace(path)


def test_another_profile_makes_nothing_again(made):
    configure(made)
    _, output = snakemake(made, "-n", "--configfile", "mine.yaml", "--profile", "ci-slurm")
    assert "Nothing to be done" in output


def test_a_dry_run_is_a_screenful_and_says_why(made):
    configure(made, resolutions=[FINE, MIDDLE, COARSE], training=BASE["training"] | {"epochs": 2})
    _, output = snakemake(made, "-n", "--cores", 2, "--configfile", "mine.yaml")
    lines = output.splitlines()
    assert len(lines) < 60, output
    first = next(line for line in lines if line.startswith("To compute: "))
    assert (
        f"{PATIENTS} resolutions added to pyramids, " in first
        and "9 trainings, 9 predictions, 3 resolutions' maps; about" in first
    )
    assert re.search(r"; about \d+ (s|min) \(", first)
    assert re.search(r"models \S+ MB \(until it ends, a training has up to \S+ MB of checkpoints\), maps \d+ MB", first)
    reasons = {tuple(line.split(maxsplit=2)) for line in lines if re.match(r" +\d+ \w+ ", line)}
    assert ("6", "train", "epochs 2, was 1") in reasons and ("3", "train", "not computed yet") in reasons
    assert ("6", "predict", "follows from trainings") in reasons


def test_what_is_added_is_made_and_nothing_else_and_then_all_is_done(made, tmp_path):
    """Really run: rows reordered and a slide touched at once, a resolution added, one removed, another mesh."""
    project = shutil.copytree(made, tmp_path / "project", symlinks=True)
    reorder(project)
    touch_slides(project)
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in project.glob("results/*um/fold-*/model.pt")
        if path.is_file()
    }
    pyramids = sorted((project / "results/pyramids").glob("[!.]*"))
    chunks = {path: path.stat().st_mtime_ns for of in pyramids for path in of.glob("image.zarr/[01]/c/**/*")}
    configure(project, resolutions=[FINE, MIDDLE | {"mesh": [1, 2, 1]}, COARSE])
    wanted = "--cores", 2, "--configfile", "mine.yaml", "--"
    networks = [f"results/16um/fold-{fold}/predictions.tsv" for fold in range(1)]
    others = [f"results/{mpp}um/fold-{fold}/predictions.tsv" for mpp in (8, 32) for fold in range(3)]
    _, output = snakemake(project, *wanted, *networks, *others)
    assert {rule: int(n) for n, rule in re.findall(r"^ +(\d+) (\w+) ", output, re.MULTILINE)} == {
        "add": len(pyramids),
        "train": 1,
        "predict": 1,
    }
    assert (
        "resolutions added to pyramids: " in output and "Expected time: about " in output and "Actual time: " in output
    )
    assert all(Pyramid(folder).resolutions == [8.0, 16.0, 32.0] for folder in pyramids)
    assert all(path.stat().st_mtime_ns == then for path, then in chunks.items()) and chunks
    assert all((path.stat().st_mtime_ns, path.read_bytes()) == then for path, then in before.items()) and before
    assert json.loads((project / "results/16um/fold-0/training.json").read_text())["settings"]["mpp"] == 16
    # The mesh is another, a resolution is gone, all slides are touched again: all is done.
    touch_slides(project)
    configure(project, resolutions=[MIDDLE, COARSE])
    assert "Nothing to be done" in snakemake(project, *wanted, *networks, *others[3:])[1]
    # Its slide gone, a resolution is made of the pyramid's next finer one.
    gone = next((project / "my").glob("*.svs"))
    gone.unlink()
    configure(project, resolutions=[MIDDLE, COARSE, {"mpp": 64, "canvas": 7, "mesh": [1, 1, 1]}])
    snakemake(project, *wanted, f"results/pyramids/.added/{gone.stem}/64um.json")
    assert Pyramid(project / "results/pyramids" / gone.stem).made_from[64.0]["level"] == 32.0


def test_a_failed_rule_says_its_line_however_quiet(made, tmp_path):
    project = shutil.copytree(made, tmp_path / "project", symlinks=True)
    slide = next((project / "my").glob("*.svs"))
    slide.write_bytes(slide.read_bytes()[:5000])
    configure(project)
    wanted = f"results/pyramids/{slide.stem}"
    for quiet in ([], ["all"]):
        code, output = snakemake(
            project, "--cores", 2, "--configfile", "mine.yaml", "--quiet", *quiet, "--", wanted, check=False
        )
        said = [line for line in output.splitlines() if line.startswith("pyramid failed: ")]
        assert code == 1 and len(said) == 1 and f"{slide.stem}.svs" in said[0] and "gigapipe: " in said[0], output
