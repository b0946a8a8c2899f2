"""The road under a simulation of Summit's LSF; and LSF that forgets jobs, or does not answer."""

import os
import shutil
import signal
import subprocess
import time

import pytest
import torch
from projects import configured, fresh_copy, make_results, processes_of, start, watched

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def lsf(project, tmp_path, monkeypatch):
    monkeypatch.setenv("GIGAPIPE_ACCOUNT", "abc123")
    monkeypatch.setenv("SIMULATED_LSF", str(tmp_path))
    monkeypatch.setenv("PATH", f"{project / 'tests/lsf'}:{os.environ['PATH']}")
    return tmp_path


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


@pytest.mark.parametrize("state, word", [("DONE", "success"), ("EXIT", "failed")])
@pytest.mark.parametrize("knows", ["bjobs", "bhist", "output"])
def test_of_a_job_that_lsf_has_forgotten_its_history_and_its_output_are_asked(
    lsf, project, tmp_path, knows, state, word
):
    (tmp_path / "1.state").write_text(state)
    for forgotten in {"bjobs": [], "bhist": ["bjobs"], "output": ["bjobs", "bhist"]}[knows]:
        (tmp_path / f"1.no-{forgotten}").touch()
    if knows == "output":
        end = "Successfully completed." if state == "DONE" else "TERM_MEMLIMIT: job killed\nExited with exit code 130."
        (tmp_path / ".snakemake/lsf").mkdir(parents=True)
        (tmp_path / ".snakemake/lsf/1.train.out").write_text(f"what it said\n{end}\n")
    assert status_of(1, project, tmp_path) == (f"{word}\n", "")


def test_a_job_of_which_nothing_is_known_has_failed_after_a_bounded_time(lsf, project, tmp_path, monkeypatch):
    (tmp_path / ".snakemake/lsf").mkdir(parents=True)
    (tmp_path / "1.state").write_text("RUN")
    for forgotten in "bjobs", "bhist":
        (tmp_path / f"1.no-{forgotten}").touch()
    assert status_of(1, project, tmp_path) == ("running\n", "")
    unknown = tmp_path / ".snakemake/lsf/1.unknown"
    os.utime(unknown, (time.time() - 601,) * 2)
    (tmp_path / "down").touch()  # for an hour that may be all
    monkeypatch.setenv("GIGAPIPE_LSF_ANSWER", "1")
    begun = time.monotonic()
    assert status_of(1, project, tmp_path) == ("running\n", "")
    assert time.monotonic() - begun < 30  # it would wait for a minute
    monkeypatch.delenv("GIGAPIPE_LSF_ANSWER")
    (tmp_path / "down").unlink()
    word, said = status_of(1, project, tmp_path)
    assert word == "failed\n" and said.startswith(
        "job 1: neither bjobs nor bhist nor its output has said for 600 seconds"
    )
    (tmp_path / "1.no-bjobs").unlink()
    assert status_of(1, project, tmp_path) == ("running\n", "") and not unknown.exists()


def test_a_workflow_goes_on_without_what_lsf_has_forgotten_and_ends(lsf, tmp_path, monkeypatch):
    """Of one job it has kept the output alone, of the other nothing."""
    project = fresh_copy(tmp_path / "project")
    monkeypatch.setenv("SIMULATED_LSF_SITE", "plain")
    monkeypatch.setenv("GIGAPIPE_LSF_PATIENCE", "4")
    for forgotten in ("1.ended", "2.no-bjobs", "2.no-bhist", "2.lost"):
        (tmp_path / forgotten).touch()
    targets = {"results/phantom/slides.tsv", "results/phantom/PH-000-A.svs"}
    often = ["--max-status-checks-per-second", 10, "--seconds-between-status-checks", 1, "--latency-wait", 5]
    arguments = ["--profile", "lsf", *often, "--jobs", 2, "--retries", 0]
    process = start(project, *arguments, "--", *targets)
    gone = []

    def kill() -> None:  # before it has made what it was to make
        if not gone and (lsf / "2.pid").exists():
            gone.append(int((lsf / "2.pid").read_text()))
            os.killpg(gone[0], signal.SIGKILL)

    output = watched(process, kill)
    assert process.returncode == 1 and gone, output
    assert len({one for one in targets if (project / one).exists()}) == 1, output
    assert output.count("job 2: neither bjobs nor bhist nor its output has said for 4 seconds how it ended") == 1
    submitted = [line for line in (lsf / "lines").read_text().splitlines() if line.startswith("bsub")]
    asked = "-P abc123 -q normal -W 120 -n 1 -R 'rusage[mem=8000MB]' -R 'span[hosts=1]' -J gigapipe.phantom."
    assert len(submitted) == 2 and all(asked in line for line in submitted), submitted


def status_of(job: int, project, folder) -> tuple[str, str]:
    done = subprocess.run(
        [project / "profiles/lsf/status.sh", str(job)], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr


def test_the_road_under_the_simulation(lsf, project, tmp_path):
    shutil.copytree(project, tmp_path / "project", symlinks=True)
    own = tmp_path / "project"
    # Nodes of one rank: a mesh of two is on two of them.
    profile = own / "profiles/summit/profile.v9+.yaml"
    (own / "the environment.sh").write_text("export SEEN=yes\necho $SEEN >> seen\n")
    mine = "ranks_per_node: 1\n  environment: the environment.sh"
    profile.write_text(profile.read_text().replace("ranks_per_node: 6", mine))
    phantom = {"patients": 6, "sites": 3}
    make_results(own, [8.0], leave=1, **phantom)
    arguments = configured(
        own,
        phantom=phantom,
        folds={"number": 3},
        resolutions=[{"mpp": 8, "canvas": 52, "mesh": [1, 2, 1]}],
        training={"epochs": 10, "batch": 2, "network": "resnet10", "width": 8},
        maps=0,
    )
    # As on Summit, but looked at more often than GPFS likes.
    often = ["--max-status-checks-per-second", "10", "--seconds-between-status-checks", "1"]
    process = start(own, *arguments, "--profile", "summit", *often, "--jobs", "2", "--latency-wait", "5")
    killed = []

    def kill() -> None:
        states = list(own.glob("results/8um/fold-*/checkpoints/*.pt"))
        if killed or not states:
            return
        model = str(states[0].parent.with_name("model.pt").relative_to(own))
        for rank in processes_of(own, model)[-1:]:
            rank.suspend()  # or the training would be over before it is killed
            outputs = own.glob(".snakemake/lsf/*.train.out")
            killed.append(next(path.name.split(".")[0] for path in outputs if model in path.read_text()))
            subprocess.run(["bkill", killed[0]], check=True)

    output = watched(process, kill)
    assert process.returncode == 0, output
    assert (own / "results/comparison.tsv").exists()
    assert killed and (lsf / f"{killed[0]}.state").read_text() == "EXIT"
    lines = (lsf / "lines").read_text().splitlines()
    trained = [line for line in lines if line.startswith("bsub") and "-J gigapipe.train." in line]
    assert len(trained) == 4  # three folds, one of them again
    on_a_node = [line for line in lines if line.startswith("jsrun -n 1 -a 1 -c 42 -g 6 -b rs bash ")]
    assert len(on_a_node) == 2  # a phantom and its pyramid; others would be beside them
    assert set((own / "seen").read_text().split()) == {"yes"}
    assert all("-P abc123 -q batch -W 120 -nnodes 2 -alloc_flags smt1" in line for line in trained), trained
    assert sum(line.startswith("jsrun -n 2 -r 1 -a 1 -c 7 -g 1 -b rs gigapipe train") for line in lines) == 4
    for fold in range(3):
        assert torch.load(own / f"results/8um/fold-{fold}/model.pt", weights_only=True)["task"] == "classes"
