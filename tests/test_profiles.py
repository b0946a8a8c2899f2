"""Profiles from a fresh copy: what they plan, submit and refuse."""

import collections
import re

import pytest
from projects import configured, snakemake

SITES = ["slurm", "frontier", "perlmutter", "lsf", "summit"]
SUMMIT = ["--profile", "summit"]
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def account(monkeypatch):
    monkeypatch.setenv("GIGAPIPE_ACCOUNT", "abc123")


# How each starts the two ranks of the default's finest resolution.
LAUNCHERS = {
    "local": "mpiexec -n 2",
    "ci-slurm": "srun -K --mpi=pmi2 -N 1 -n 2 --ntasks-per-node=2 -c 1",
    "slurm": "srun -K --mpi=pmix -N 1 -n 2 --ntasks-per-node=2 -c 8",
    "frontier": "srun -K -N 1 -n 2 --ntasks-per-node=2 -c 7 --gpus-per-task=1 --gpu-bind=closest",
    "perlmutter": "srun -K -N 1 -n 2 --ntasks-per-node=2 -c 32 --gpus-per-task=1 --gpu-bind=none",
    "lsf": "mpiexec -n 2",
    "summit": "jsrun -n 2 -r 2 -a 1 -c 7 -g 1 -b rs",
}


@pytest.mark.parametrize("profile", LAUNCHERS)
def test_every_profile_plans_the_road_and_starts_ranks_in_its_way(project, account, profile):
    _, output = snakemake(project, "-n", "--printshellcmds", "--cores", 2, "--profile", profile)
    assert re.search(r"^train +12$", output, re.MULTILINE)
    started = re.findall(r"(?:Shell command: | {8})(.*) gigapipe train .*--mpp 2 ", output)
    assert [line.strip() for line in started] == 4 * [LAUNCHERS[profile]]


@pytest.mark.parametrize("profile", SITES)
def test_a_missing_account_is_said_in_one_line(project, profile, monkeypatch):
    monkeypatch.delenv("GIGAPIPE_ACCOUNT", raising=False)
    status, output = snakemake(project, "--profile", profile, "-n", check=False)
    assert status and "GIGAPIPE_ACCOUNT is not set; export GIGAPIPE_ACCOUNT=" in output


def test_2304_ranks_are_384_nodes_of_summit(project, account):
    resolution = {"mpp": 0.5, "canvas": 22528, "mesh": [36, 8, 8]}
    arguments = configured(project, resolutions=[resolution], training={"batch": 36}, phantom={"patients": 80})
    _, output = snakemake(project, *SUMMIT, "-n", "--printshellcmds", *arguments)
    lines = collections.Counter(re.findall(r"(jsrun .*-b rs) gigapipe (\w+)", output))
    print(lines)
    assert lines["jsrun -n 2304 -r 6 -a 1 -c 7 -g 1 -b rs", "train"] == 4
    assert lines["jsrun -n 1 -a 1 -c 42 -g 6 -b rs", "pyramid"] == 127
    assert len(re.findall(r"resources: .*nodes=384,.* tasks=2304,", output)) == 9  # 4 trainings, 4 predictions, maps


@pytest.mark.parametrize(
    "mesh, message",
    [
        ([1, 7, 1], "7 ranks do not spread evenly over 2 nodes of 6; give a mesh of 6 or 12"),
        ([1, 200, 300], "60000 ranks need 10000 nodes of 6, and the profile has 4608"),
    ],
)
def test_a_mesh_that_fits_no_nodes_is_refused_before_anything_is_submitted(project, account, mesh, message):
    arguments = configured(project, resolutions=[{"mpp": 2, "canvas": 2080, "mesh": mesh}])
    status, output = snakemake(project, *SUMMIT, *arguments, check=False)
    assert status and message in output, output
