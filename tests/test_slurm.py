"""The road under a real Slurm of two nodes: trainings over both, cancelled and killed, go on to the same weights."""

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cohorts import same, weights
from launching import GIGAPIPE, ROOT
from projects import configured, fresh_copy, make_results, processes_of, snakemake, start, watched

from gigapipe.pyramids import Pyramid
from gigapipe.pyramids.build import build_pyramid
from gigapipe.slides import phantom

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Callable[..., str]:
    """What a command prints that is run where this Slurm is; `slurm.before` starts any command there."""
    folder = tmp_path_factory.mktemp("slurm")
    environment = os.environ | {"KILL_WAIT": "5"}  # seconds from SIGTERM to SIGKILL
    up = subprocess.run([ROOT / "tests/slurm/up.sh", folder], stderr=subprocess.PIPE, text=True, env=environment)
    try:
        if up.returncode:
            pytest.skip(f"no Slurm: {up.stderr.strip()}")
        before = [str(ROOT / "tests/slurm/enter.sh"), str(folder)]

        def run(*command: str) -> str:
            return subprocess.run([*before, *command], stdout=subprocess.PIPE, text=True, check=True).stdout

        run.before = before
        yield run
    finally:
        subprocess.run([ROOT / "tests/slurm/down.sh", folder], check=True)


def test_the_road_under_slurm_with_trainings_cancelled_killed_and_out_of_time(slurm, tmp_path):
    project = fresh_copy(tmp_path / "project")
    phantom = {"patients": 6, "sites": 3}
    make_results(project, [8.0], leave=1, **phantom)
    arguments = ["--profile", "ci-slurm"] + configured(
        project,
        phantom=phantom,
        folds={"number": 3},
        resolutions=[{"mpp": 8, "canvas": 52, "mesh": [1, 2, 2]}],
        training={"epochs": 10, "batch": 2, "network": "resnet10", "width": 8},
        maps=0,
    )
    # As a user does; as what kills without warning; as Slurm does when a job's time is over.
    ends = [["scancel"], ["scancel", "--full", "--signal=KILL"], ["scontrol", "update", "TimeLimit=1", "JobId"]]
    stopped: list[str] = []
    last = 0.0

    def stop() -> None:
        """End the training of fold 0 in one way after another, each time when it has got on."""
        nonlocal last
        states = [path.stat().st_mtime for path in project.glob("results/8um/fold-0/checkpoints/*.pt")]
        listed = slurm("squeue", "--noheader", "--states=R", "--format=%i %k")
        running = re.search(r"^(\d+) rule_train_\S*_0$", listed, re.MULTILINE)
        if len(stopped) == len(ends) or max(states, default=0) <= last or not running or running[1] in stopped:
            return
        *end, flag = ends[len(stopped)]
        if flag == "JobId":
            # One rank stands still, as a process does that waits for a file system which is gone; or the training
            # would be over before that minute is.
            processes_of(project, GIGAPIPE, "train", "--fold", "0")[-1].suspend()
            slurm(*end, f"JobId={running[1]}")
        else:
            slurm(*end, flag, running[1])
        stopped.append(running[1])
        last = time.time()

    process = start(project, *arguments, before=slurm.before)
    output = watched(process, stop)
    assert process.returncode == 0, output
    assert len(stopped) == len(ends), output
    assert "JobState=TIMEOUT" in slurm("scontrol", "show", "job", stopped[-1])
    assert "resumed after epoch" in (project / "results/logs/train/8um/fold-0.log").read_text()
    assert "-N 2 -n 4 --ntasks-per-node=2" in output
    assert (project / "results/comparison.tsv").exists()

    model = project / "results/8um/fold-0/model.pt"
    interrupted = weights(model)
    snakemake(project, *arguments, "-R", "train", "--", "results/8um/fold-0/model.pt", before=slurm.before)
    assert same(weights(model), interrupted)


def test_a_pyramid_by_jobs_that_dask_submits(slurm, tmp_path, monkeypatch):
    slide = phantom.cohort(seed=3, patients=2, folder=str(tmp_path))[0]
    phantom.write_slide(Path(slide.source), phantom.render(slide))
    for name, value in {"CORES": 1, "MEMORY": "1GB", "WALLTIME": "00:05:00", "DEATH_TIMEOUT": 60}.items():
        monkeypatch.setenv(f"DASK_JOBQUEUE__SLURM__{name}", str(value))
    monkeypatch.chdir(tmp_path)
    build_pyramid(Path(slide.source), tmp_path / "here", [2.0, 8.0])
    there = str(tmp_path / "there")
    print(slurm(GIGAPIPE, "pyramid", slide.source, there, "--mpp", "2", "8", "--scheduler", "slurm"))
    assert slurm("squeue", "--noheader", "--states=all", "--format=%j %T").count("dask-worker") >= 1
    for mpp in (2.0, 8.0):
        here, there = (Pyramid(tmp_path / name).array(mpp)[:] for name in ("here", "there"))
        assert (here == there).all()
