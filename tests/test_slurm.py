"""The road under a real Slurm of two nodes: trainings over both, cancelled and killed, go on to the same weights."""

import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, gigapipe
from test_workflow import fresh_copy, snakemake, start

from gigapipe.pyramids import Pyramid
from gigapipe.slides import phantom

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    environment = os.environ | {"KILL_WAIT": "5"}  # seconds from SIGTERM to SIGKILL
    up = subprocess.run([ROOT / "tests/slurm/up.sh", folder], capture_output=True, text=True, env=environment)
    if up.returncode:
        pytest.skip(f"no Slurm: {up.stderr.strip()}")
    yield
    subprocess.run([ROOT / "tests/slurm/down.sh", folder], check=True)


def running(fold: int) -> str | None:
    """Slurm's number of the job that trains a fold now."""
    listed = subprocess.run(["squeue", "--noheader", "--states=R", "--format=%i %k"], capture_output=True, text=True)
    found = re.search(rf"^(\d+) rule_train_\S*_{fold}$", listed.stdout, re.MULTILINE)
    return found and found[1]


def hang(fold: int) -> None:
    """Stop one rank of a training, as a process stands still that waits for a file system which is gone."""
    listed = subprocess.run(
        ["pgrep", "--full", f"python.*gigapipe train .*--fold {fold} "], capture_output=True, text=True
    )
    os.kill(int(listed.stdout.split()[-1]), signal.SIGSTOP)


def test_the_road_under_slurm_with_trainings_cancelled_killed_and_out_of_time(slurm, tmp_path):
    (project := tmp_path / "project").mkdir()
    fresh_copy(project)
    config = {
        "phantom": {"patients": 6, "sites": 3},
        "folds": {"number": 3},
        "resolutions": [{"mpp": 8, "canvas": 52, "mesh": [1, 2, 2]}],
        "training": {"epochs": 8, "batch": 2},
    }
    (project / "own.yaml").write_text(yaml.safe_dump(config))
    arguments = ["--profile", "ci-slurm", "--configfile", "own.yaml"]
    process = start(project, *arguments)
    output = []
    reader = threading.Thread(target=lambda: output.append(process.stdout.read()))
    reader.start()
    # As a user does; as what kills without warning; as Slurm does when a job's time is over.
    ends = {
        0: ["scancel"],
        1: ["scancel", "--full", "--signal=KILL"],
        2: ["scontrol", "update", "TimeLimit=1", "JobId"],
    }
    stopped: dict[int, str] = {}
    try:
        while process.poll() is None:
            for fold, end in ends.items():
                trained = list(project.glob(f"results/8um/fold-{fold}/checkpoints/*.pt"))
                if fold not in stopped and trained and (job := running(fold)):
                    if "TimeLimit=1" in end:
                        hang(fold)  # or it would be trained before that minute is over
                    subprocess.run([*end[:-1], f"{end[-1]}={job}"] if "JobId" in end else [*end, job], check=True)
                    stopped[fold] = job
            time.sleep(0.2)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    reader.join()
    assert process.returncode == 0, output[0]
    assert stopped.keys() == ends.keys()
    overrun = subprocess.run(["scontrol", "show", "job", stopped[2]], capture_output=True, text=True).stdout
    assert "JobState=TIMEOUT" in overrun, overrun
    logs = {fold: (project / f"results/logs/train/8um/fold-{fold}.log").read_text() for fold in range(3)}
    for fold, log in logs.items():
        print(fold, re.findall("resumed after.*", log))
        assert ("resumed after epoch" in log) == (fold in stopped), log
    assert "-N 2 -n 4 --ntasks-per-node=2" in output[0]
    assert (project / "results/comparison.tsv").exists()

    found = [project / f"results/8um/fold-{fold}/model.pt" for fold in range(3)]
    interrupted = [torch.load(path, weights_only=True)["model"] for path in found]
    snakemake(project, *arguments, "-R", "train", "--until", "train")
    for path, before in zip(found, interrupted, strict=True):
        whole = torch.load(path, weights_only=True)["model"]
        assert all(torch.equal(whole[name], before[name]) for name in whole)


def test_a_pyramid_by_jobs_that_dask_submits(slurm, tmp_path, monkeypatch):
    slide = phantom.cohort(seed=3, patients=2, folder=str(tmp_path))[0]
    phantom.write_slide(Path(slide.source), phantom.render(slide))
    for name, value in {"CORES": 1, "MEMORY": "1GB", "WALLTIME": "00:05:00", "DEATH_TIMEOUT": 60}.items():
        monkeypatch.setenv(f"DASK_JOBQUEUE__SLURM__{name}", str(value))
    arguments = [slide.source, "--mpp", 2, 8]
    gigapipe("pyramid", *arguments[:1], tmp_path / "here", *arguments[1:])
    done = gigapipe("pyramid", *arguments[:1], tmp_path / "there", *arguments[1:], "--scheduler", "slurm", cwd=tmp_path)
    listed = subprocess.run(["squeue", "--noheader", "--states=all", "--format=%j %T"], capture_output=True, text=True)
    assert listed.stdout.count("dask-worker") >= 1, listed.stdout + done.stdout
    for mpp in (2.0, 8.0):
        here, there = (Pyramid(tmp_path / name).array(mpp)[:] for name in ("here", "there"))
        assert (here == there).all()
