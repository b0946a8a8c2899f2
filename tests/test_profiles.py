"""Profiles from a fresh copy: what they plan, submit and refuse; the road under a simulation of Summit's LSF."""

import collections
import os
import re
import shutil
import subprocess

import pytest
import torch
from projects import configured, make_results, plan, snakemake, start, watched

SITES = ["slurm", "frontier", "perlmutter", "lsf", "summit"]
SUMMIT = ["--profile", "summit"]
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def account(monkeypatch):
    monkeypatch.setenv("GIGAPIPE_ACCOUNT", "abc123")


@pytest.fixture
def lsf(project, tmp_path, monkeypatch, account):
    monkeypatch.setenv("SIMULATED_LSF", str(tmp_path))
    monkeypatch.setenv("PATH", f"{project / 'tests/lsf'}:{os.environ['PATH']}")
    return tmp_path


@pytest.mark.parametrize("profile", ["local", "ci-slurm", *SITES])
def test_every_profile_plans_the_road(project, account, profile):
    assert plan(project, "--profile", profile)["train"] == 12


@pytest.mark.parametrize("profile", SITES)
def test_a_missing_account_is_said_in_one_line(project, profile, monkeypatch):
    monkeypatch.delenv("GIGAPIPE_ACCOUNT", raising=False)
    status, output = snakemake(project, "--profile", profile, "-n", check=False)
    assert status and "GIGAPIPE_ACCOUNT is not set; export GIGAPIPE_ACCOUNT=" in output


def test_2304_ranks_are_384_nodes_of_summit(project, account):
    resolution = {"mpp": 0.5, "canvas": 22528, "mesh": [36, 8, 8]}
    arguments = configured(project, resolutions=[resolution], training={"batch": 36})
    _, output = snakemake(project, *SUMMIT, "-n", "--printshellcmds", *arguments)
    lines = collections.Counter(re.findall(r"(jsrun .*-b rs) gigapipe (\w+)", output))
    print(lines)
    assert lines["jsrun -n 2304 -r 6 -a 1 -c 7 -g 1 -b rs", "train"] == 4
    assert lines["jsrun -n 1 -a 1 -c 42 -g 6 -b rs", "pyramid"] == 63
    assert len(re.findall(r"resources: .*nodes=384,.* tasks=2304,", output)) == 9  # 4 trainings, 4 predictions, maps


@pytest.mark.parametrize(
    "mesh, message",
    [
        ([1, 7, 1], "7 ranks do not spread evenly over 2 nodes of 6; give a mesh of 6 or 12"),
        ([1, 200, 300], "60000 ranks need 10000 nodes of 6, and the profile has 4608"),
    ],
)
def test_a_mesh_that_fits_no_nodes_is_refused_before_anything_is_submitted(project, account, mesh, message):
    arguments = configured(project, resolutions=[{"mpp": 2, "canvas": 208, "mesh": mesh}])
    status, output = snakemake(project, *SUMMIT, *arguments, check=False)
    assert status and message in output, output


def test_the_simulation_refuses_what_summit_refuses(lsf):
    def said(*command) -> str:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "SIMULATED_NODES": "2"})
        assert done.returncode
        return done.stderr

    assert "needs -P, -W and -nnodes" in said("bsub", "-P", "abc123", "-W", "10", "script")
    assert "neither -n nor -R" in said("bsub", "-P", "a", "-W", "1", "-nnodes", "1", "-R", "span[ptile=1]", "script")
    assert "no script" in said("bsub", "-P", "a", "-W", "1", "-nnodes", "1")
    assert "do not fit a node" in said("jsrun", "-n", "7", "-r", "7", "-a", "1", "-c", "7", "-g", "1", "true")
    assert "do not fit 2 nodes" in said("jsrun", "-n", "13", "-r", "6", "-a", "1", "-c", "7", "-g", "1", "true")


@pytest.mark.xdist_group("simulation")
def test_the_road_under_the_simulation(lsf, project, tmp_path):
    shutil.copytree(project, tmp_path / "project", symlinks=True)
    own = tmp_path / "project"
    phantom = {"patients": 6, "sites": 3}
    make_results(own, [8.0], leave=1, **phantom)
    arguments = configured(
        own,
        phantom=phantom,
        folds={"number": 3},
        resolutions=[{"mpp": 8, "canvas": 52, "mesh": [2, 2, 2]}],
        training={"epochs": 3, "batch": 2, "network": "resnet10", "width": 8},
    )
    # As on Summit, but looked at more often than GPFS likes.
    often = ["--max-status-checks-per-second", "10", "--seconds-between-status-checks", "1"]
    process = start(own, *arguments, *SUMMIT, *often, "--jobs", "2", "--latency-wait", "5")
    killed = []

    def kill() -> None:
        if not killed and list(own.glob("results/8um/fold-0/checkpoints/*.pt")):
            submitted = [line for line in (lsf / "lines").read_text().splitlines() if line.startswith("bsub")]
            trainings = [i for i, line in enumerate(submitted, start=1) if "gigapipe.train." in line]
            killed.append(next(i for i in trainings if (lsf / f"{i}.state").read_text() == "RUN"))
            subprocess.run(["bkill", str(killed[0])], check=True)

    output = watched(process, kill)
    assert process.returncode == 0, output
    assert (own / "results/comparison.tsv").exists()
    assert killed and (lsf / f"{killed[0]}.state").read_text() == "EXIT"
    lines = (lsf / "lines").read_text().splitlines()
    trained = [line for line in lines if line.startswith("bsub") and "-J gigapipe.train." in line]
    assert len(trained) == 4  # three folds, one of them again
    assert all("-P abc123 -q batch -W 120 -nnodes 2 -alloc_flags smt1" in line for line in trained), trained
    assert sum(line.startswith("jsrun -n 8 -r 4 -a 1 -c 7 -g 1 -b rs gigapipe train") for line in lines) == 4
    for fold in range(3):
        assert torch.load(own / f"results/8um/fold-{fold}/model.pt", weights_only=True)["task"] == "classes"
