"""The road under a real Slurm of two nodes: trainings over both, cancelled and killed, go on to the same weights."""

import os
import re
import signal
import subprocess
import threading
import time

import pytest
import torch
import yaml
from conftest import ROOT
from test_workflow import fresh_copy, snakemake, start

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    up = subprocess.run([ROOT / "tests/slurm/up.sh", folder], capture_output=True, text=True)
    if up.returncode:
        pytest.skip(f"no Slurm: {up.stderr.strip()}")
    yield
    subprocess.run([ROOT / "tests/slurm/down.sh", folder], check=True)


def running(fold: int) -> str | None:
    """Slurm's number of the job that trains a fold now."""
    listed = subprocess.run(["squeue", "--noheader", "--states=R", "--format=%i %k"], capture_output=True, text=True)
    found = re.search(rf"^(\d+) rule_train_\S*_{fold}$", listed.stdout, re.MULTILINE)
    return found and found[1]


def test_the_road_under_slurm_with_trainings_cancelled_and_killed(slurm, tmp_path):
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
    ends = {0: ["scancel"], 1: ["scancel", "--full", "--signal=KILL"]}  # as a user does; as at the end of its time
    stopped = set()
    try:
        while process.poll() is None:
            for fold, end in ends.items():
                trained = list(project.glob(f"results/8um/fold-{fold}/checkpoints/*.pt"))
                if fold not in stopped and trained and (job := running(fold)):
                    subprocess.run([*end, job], check=True)
                    stopped.add(fold)
            time.sleep(0.2)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    reader.join()
    assert process.returncode == 0, output[0]
    assert stopped == {0, 1}
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
