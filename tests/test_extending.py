"""What is added from outside the package: nothing of gigapipe is touched, and every process finds it by its name."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from launching import ROOT, gigapipe
from projects import configured, fresh_copy, plan, snakemake

from gigapipe import named
from gigapipe.cli import parser
from gigapipe.configuration import Configuration
from gigapipe.configuration.tasks import TASKS, learning_of, task_named
from gigapipe.errors import InputError
from gigapipe.pyramids import Pyramid
from gigapipe.slides.phantom import MPP, cohort, render, sheet_row
from gigapipe.slides.reader import Slide
from gigapipe.spatial import Mesh, Plan
from gigapipe.spatial.check import compare

OUTSIDE = ROOT / "tests/outside"
TARGET = "results/8um/fold-0/predictions.tsv"


@pytest.fixture(autouse=True)
def modules_of_nobody(monkeypatch):
    """The user's modules are found anew by each test."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for path in [*OUTSIDE.glob("*.py"), Path("nothing.py")]:
        sys.modules.pop(path.stem, None)


def test_an_operation_is_added_to_a_network_of_ones_own():
    """On ranks it is in the test below."""
    torch.manual_seed(0)
    model = named.load(f"{OUTSIDE}/network.py:Medians")().double()
    images = torch.rand(1, 3, 37, 29, dtype=torch.float64)
    assert compare(model, images, Mesh(), Plan(tile=7))[0].error < 1e-10


@pytest.fixture
def project_of_a_user(tmp_path):
    """A clone of the project, in which nothing is changed; beside it all that is the user's, and slides as arrays.

    The pyramid of the last is not made yet.
    """
    project, own = fresh_copy(tmp_path / "project"), tmp_path / "own"
    shutil.copytree(OUTSIDE, own)
    phantoms = list({p.patient: p for p in cohort(seed=3, patients=6, regions=True, folder=str(own))}.values())
    rows = []
    for phantom in phantoms:
        source = Path(phantom.source).with_suffix(".npz")
        np.savez(source, pixels=render(phantom), mpp=MPP)
        row = sheet_row(phantom)
        rows.append({name: row[name] for name in ("slide", "patient", "site", "tumour_share")} | {"source": source})
        if len(rows) < len(phantoms):
            pyramid = project / "results/pyramids" / phantom.slide
            gigapipe("pyramid", source, pyramid, "--mpp", 8, "--reader", f"{own}/reader.py:Array")
    pd.DataFrame(rows).to_csv(own / "slides.tsv", sep="\t", index=False)
    return project, own


@pytest.mark.slow
def test_a_network_a_task_a_reader_and_a_profile_are_added_without_a_change_of_gigapipe(project_of_a_user):
    project, own = project_of_a_user
    arguments = configured(
        project,
        slides=str(own / "slides.tsv"),
        task=f"{own}/task.py:robust",
        target="tumour_share",
        resolutions=[{"mpp": 8, "canvas": 40, "mesh": [1, 2, 1]}],
        pyramids={"readers": {"npz": f"{own}/reader.py:Array"}},
        folds={"number": 3, "by": "patient"},
        training={
            "network": f"{own}/network.py:Medians",
            "network_options": {"width": 3},
            "batch": 1,
            "epochs": 2,
            "tensorboard": True,
        },
    )
    _, output = snakemake(project, "--profile", own / "site", "--printshellcmds", *arguments, "--", TARGET)
    assert "env RANKS_OF=site mpiexec -n 2 gigapipe train " in output

    predictions = pd.read_csv(project / TARGET, sep="\t").set_index("slide")
    sheet = pd.read_csv(own / "slides.tsv", sep="\t").set_index("slide")
    assert np.allclose(predictions["number"], sheet["tumour_share"][predictions.index])
    assert predictions["predicted"].notna().all()
    record = json.loads((project / "results/8um/fold-0/training.json").read_text())
    settings = record["settings"]
    assert settings["own_task"] == f"{own}/task.py:robust" and settings["task_code"].count("sha256") == 2
    assert list(record["history"][0]) == ["epoch", "training_loss", "validation_loss", "validation_mean_absolute_error"]
    slide = Pyramid(project / "results/pyramids" / predictions.index[0])
    assert slide.source["vendor"] == "array" and "sha256" in slide.source["reader_code"]
    assert len(list((project / "results/8um/fold-0/tensorboard").iterdir())) == 1

    # What was made belongs to this code: of another it is made again.
    learning = own / "learning.py"
    learning.write_text(learning.read_text() + "# changed\n")
    assert plan(project, *arguments, "--", TARGET) == {"train": 1, "predict": 1}
    reader = own / "reader.py"
    reader.write_text(reader.read_text() + "# changed\n")
    assert plan(project, *arguments, "--", TARGET)["pyramid"] == 1

    # What was made runs no code that is not named.
    model = ["--model", "results/8um/fold-0/model.pt", "--folds", "results/folds.tsv"]
    network = ["--network", f"{own}/network.py:Medians", "--network-options", "width=3"]
    common = ["predict", *model, "--pyramids", "results/pyramids", "--output", "none.tsv", *network]
    assert f"add --task {own}/task.py:robust" in gigapipe(*common, cwd=project, check=False).stdout
    again = ["verify", slide.folder, "--slide", own / f"{predictions.index[0]}.npz"]
    assert f"add --reader {own}/reader.py:Array" in gigapipe(*again, check=False).stdout
    assert "all pixels identical" in gigapipe(*again, "--reader", f"{own}/reader.py:Array").stdout


@pytest.mark.parametrize("name", TASKS)
def test_each_task_is_trained_and_applied_by_verbs_that_take_what_is_ones_own(name):
    task = TASKS[name]
    own = ["--network", "mine.py:net", "--network-options", "width=3", "--task", "mine.py:task"]
    common = [*own, "--folds", "f", "--pyramids", "p", "--output", "o"]
    learning = [*common, "--fold", "0", "--mpp", "8", *(["--canvas", "9"] if task.canvas else ["--masks", "m"])]
    more = ["--class", "tumour"] if task.needs == "mask" else []
    args = parser().parse_args([task.train, *learning, *more])
    assert args.network == "mine.py:net" and args.task == "mine.py:task" and not args.tensorboard
    applied = ["predict"] if task.canvas else ["segment", "--masks", "m"]
    assert parser().parse_args([*applied, *common, "--model", "m"]).task == "mine.py:task"
    assert learning_of(task).kind.task == name


def test_what_is_no_task_or_reader_is_said_in_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing.py").write_text("def task():\n    return 7\n\ndef reader(path):\n    return path.nothing\n")
    with pytest.raises(InputError, match="task nothing.py:task: makes a int, not a .*Task; correct it"):
        task_named("nothing.py:task")
    (tmp_path / "slide.nil").touch()
    with pytest.raises(InputError, match="slide .*slide.nil: its reader nothing.py:reader: AttributeError: .*; "):
        Slide(tmp_path / "slide.nil", reader="nothing.py:reader")
    with pytest.raises(InputError, match="slide .*not readable as a slide .*0 bytes; download it again"):
        Slide(tmp_path / "slide.nil", reader=f"{OUTSIDE}/reader.py:Array")
    with pytest.raises(InputError, match="config: task: found .*; allowed is classes, regression, tissue or segment"):
        Configuration.of({"task": "survival"}, "config: ")
    with pytest.raises(InputError, match="pyramids.readers: found .*; allowed is names, each with a function"):
        Configuration.of({"pyramids": {"readers": {".npz": "reader.py:Array"}}})
