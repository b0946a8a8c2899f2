"""Profiles from a fresh copy: what they plan, submit and refuse."""

import collections
import re
import subprocess
import sys

import pytest
from projects import configured, snakemake

SITES = ["slurm", "frontier", "perlmutter", "lsf", "summit"]
SUMMIT = ["--profile", "summit"]
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def account(monkeypatch):
    monkeypatch.setenv("GIGAPIPE_ACCOUNT", "1e5")  # which is not a number


# How each starts the two ranks of the default's finest resolution.
LAUNCHERS = {
    "local": "mpiexec -n 2",
    "ci-slurm": "srun -K --mpi=pmi2 -N 1 -n 2 --ntasks-per-node=2 -c 1",
    "slurm": "srun -K --mpi=pmix -N 1 -n 2 --ntasks-per-node=2 -c 8 --gpus-per-task=1",
    "frontier": "srun -K -N 1 -n 2 --ntasks-per-node=2 -c 7 --gpus-per-task=1 --gpu-bind=closest",
    "perlmutter": "srun -K -N 1 -n 2 --ntasks-per-node=2 -c 32 --gpus-per-task=1 --gpu-bind=none",
    "lsf": "mpiexec -n 2",
    "summit": "jsrun -n 2 -r 2 -a 1 -c 7 -g 1 -b rs",
}


# How many of the default's 63 slides share a node, and of its predictions, eight of one rank and four of two.
TOGETHER = {
    "ci-slurm": ("32 jobs, up to 2 at the same time on a node", "8 jobs, up to 2"),
    "slurm": ("2 jobs, up to 32 at the same time on a node", "4 jobs, up to 4"),
    "frontier": ("2 jobs, up to 56 at the same time on a node", "2 jobs, up to 8"),
    "perlmutter": ("1 job, up to 64 at the same time on a node", "4 jobs, up to 4"),
    "lsf": ("63 jobs;", "12 jobs;"),
    "summit": ("2 jobs, up to 42 at the same time on a node", "3 jobs, up to 6"),
}


@pytest.mark.parametrize("profile", LAUNCHERS)
def test_every_profile_plans_the_road_and_starts_ranks_in_its_way(project, account, profile):
    whole = "phantom={patients: 40}"  # as the demo has
    _, output = snakemake(project, "-n", "--printshellcmds", "--cores", 2, "--profile", profile, "--config", whole)
    assert re.search(r"^train +12$", output, re.MULTILINE) and re.search(r"^pyramid +63$", output, re.MULTILINE)
    assert profile not in SITES or set(re.findall(r"(?:_account|_project)=([^,]*)", output)) == {"1e5"}
    said = dict(re.findall(r"^\d+ (pyramids|predictions): (.*) requesting", output, re.MULTILINE))
    assert said.keys() == ({"pyramids", "predictions"} if profile in TOGETHER else set())
    for line, expected in zip(said.values(), TOGETHER.get(profile, ()), strict=True):
        assert line.startswith(expected), said
    started = re.findall(r"(?:Shell command: | {8})(.*) gigapipe train .*--mpp 2 ", output)
    assert [line.strip() for line in started] == 4 * [LAUNCHERS[profile]]


# What is asked for, and starts it, where a mesh is one rank: of a cluster a launcher, and so a GPU where it gives one.
ONE_RANK = {
    "local": ("", {"tasks": "1", "nodes": "1"}),
    "slurm": (
        LAUNCHERS["slurm"].replace("2", "1"),
        {"tasks": "1", "mem_mb": "0", "slurm_extra": "--exclusive --gpus-per-node=4"},
    ),
    "frontier": (LAUNCHERS["frontier"].replace("2", "1"), {"tasks": "1", "cpus_per_task": "7"}),
    "perlmutter": (
        LAUNCHERS["perlmutter"].replace(" 2", " 1").replace("node=2", "node=1"),
        {"slurm_extra": "--gpus-per-node=4"},
    ),
    "lsf": ("mpiexec -n 1", {"span": "ptile=32", "lsf_extra": "-gpu num=4:mode=shared:j_exclusive=yes"}),
    "summit": ("jsrun -n 1 -r 1 -a 1 -c 7 -g 1 -b rs", {"nodes": "1"}),
}


@pytest.mark.parametrize("profile", ONE_RANK)
def test_one_rank_is_started_as_several_are_and_asks_for_what_they_ask_for(project, account, profile):
    arguments = configured(project, resolutions=[{"mpp": 2, "canvas": 208, "mesh": [1, 1, 1]}], folds={"number": 3})
    target = "results/2um/fold-0/model.pt"
    _, output = snakemake(
        project, "-n", "--printshellcmds", "--cores", 2, "--profile", profile, *arguments, "--", target
    )
    started = re.findall(r"(?:Shell command: | {8})(.*)gigapipe train .*--mpp 2 ", output)
    asked = re.search(r"^rule train:.*?resources: (.*?)$", output, re.MULTILINE | re.DOTALL)[1].split(", ")
    launcher, resources = ONE_RANK[profile]
    assert [line.strip() for line in started] == [launcher]
    assert {f"{name}={value}" for name, value in resources.items()} <= set(asked), asked


MARKED = """
import json, sys
from pathlib import Path
from gigapipe.attempts import Attempts
from gigapipe.errors import InputError
Attempts(Path("results/2um/fold-0/model.pt"), sys.argv[1]).note(InputError("epoch 1: the loss is nan"))
"""


def test_a_training_that_can_never_succeed_asks_for_no_ranks_and_a_corrected_one_does(project, account, tmp_path):
    target = "results/2um/fold-0/model.pt"

    def asked_for(rate: float, *more: str) -> tuple[str, set[str], str]:
        resolution = {"mpp": 2, "canvas": 208, "mesh": [1, 2, 2]}
        arguments = configured(project, resolutions=[resolution], folds={"number": 3}, training={"learning_rate": rate})
        _, output = snakemake(project, "-n", "--printshellcmds", "--profile", "slurm", *arguments, *more, "--", target)
        launcher, key = re.search(r"(?:Shell command: | {8})(.*)gigapipe train .* --attempts (\w+)", output).groups()
        resources = re.search(r"^rule train:.*?resources: (.*?)$", output, re.MULTILINE | re.DOTALL)[1]
        return launcher.strip(), set(resources.split(", ")), key

    launcher, asked, key = asked_for(1e30)
    assert (
        launcher.startswith("srun")
        and {"tasks=4", "cpus_per_task=8", "slurm_extra=--exclusive --gpus-per-node=4"} <= asked
    )
    mark = project / "results/2um/fold-0/model.pt.failed/never.json"
    subprocess.run([sys.executable, "-c", MARKED, key], cwd=project, check=True)
    launcher, asked, again = asked_for(1e30)
    assert launcher == "" and again == key
    assert {"tasks=1", "nodes=1", "mem_mb=2000", "cpus_per_task=1"} <= asked, asked
    assert not [one for one in asked if one.startswith(("mpi=", "slurm_extra="))], asked
    launcher, asked, other = asked_for(1e-4)
    assert launcher.startswith("srun") and other != key
    # So do one that is insisted on, and one whose input was made since.
    launcher, asked, again = asked_for(1e30, "-R", "train")
    assert launcher.startswith("srun") and again == key
    (project / "results/folds.tsv").write_text("made again")
    launcher, asked, again = asked_for(1e30)
    assert launcher.startswith("srun") and again == key and mark.exists()
    (project / "results/folds.tsv").unlink()


@pytest.mark.parametrize("profile", SITES)
def test_a_missing_account_is_said_in_one_line(project, profile, monkeypatch):
    monkeypatch.delenv("GIGAPIPE_ACCOUNT", raising=False)
    status, output = snakemake(project, "--profile", profile, "-n", check=False)
    assert status and "GIGAPIPE_ACCOUNT is not set; export GIGAPIPE_ACCOUNT=" in output


def test_an_environment_that_is_not_there_is_said_in_one_line(project):
    status, output = snakemake(
        project, "-n", "--cores", 1, "--default-resources", "environment=no/where.sh", check=False
    )
    assert status and "profile: environment: no/where.sh: no such file" in output.splitlines()[-1]


def test_2304_ranks_are_384_nodes_of_summit(project, account):
    resolution = {"mpp": 0.5, "canvas": 22528, "mesh": [36, 8, 8]}
    arguments = configured(project, resolutions=[resolution], training={"batch": 36}, phantom={"patients": 80})
    _, output = snakemake(project, *SUMMIT, "-n", "--printshellcmds", *arguments)
    lines = collections.Counter(re.findall(r"(jsrun .*-b rs) gigapipe (\w+)", output))
    print(lines)
    assert lines["jsrun -n 2304 -r 6 -a 1 -c 7 -g 1 -b rs", "train"] == 4
    on_nodes = re.findall(r"resources: .*node_launcher=jsrun -n 1 -a 1 -c 42 -g 6 -b rs, per_node=42", output)
    assert len(on_nodes) == 2 * 127 + 1  # phantoms, pyramids, and the phantoms' sheet
    assert len(re.findall(r"resources: .*nodes=384,.* tasks=2304,", output)) == 9  # 4 trainings, 4 predictions, maps


@pytest.mark.parametrize(
    "mesh, message",
    [
        ([1, 7, 1], "7 ranks cannot be distributed evenly over 2 nodes of 6; give a mesh of 6 or 12"),
        ([1, 200, 300], "60000 ranks need 10000 nodes of 6, and the profile has 4608"),
    ],
)
def test_a_mesh_that_fits_no_nodes_is_refused_before_anything_is_submitted(project, account, mesh, message):
    arguments = configured(project, resolutions=[{"mpp": 2, "canvas": 2080, "mesh": mesh}])
    status, output = snakemake(project, *SUMMIT, *arguments, check=False)
    assert status and message in output, output
