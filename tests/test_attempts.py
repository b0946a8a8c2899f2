"""Attempts at one output: exit statuses, and what an attempt leaves for the next so that it does not try in vain."""

import errno
import json
import os
import socket
import time

import pytest
import torch
from cohorts import training
from launching import gigapipe

from gigapipe import exit_status, memory_kills
from gigapipe.attempts import Attempts, InVain
from gigapipe.errors import InputError, Unavailable
from gigapipe.exit_status import AGAIN, DEFECT, NEVER, UNFINISHED


@pytest.mark.parametrize(
    "error, status",
    [
        (InputError("the loss is nan"), NEVER),
        (ModuleNotFoundError("no torch"), NEVER),
        (IsADirectoryError(errno.EISDIR, "Is a directory"), NEVER),
        (Unavailable("no GPU"), AGAIN),
        (OSError(errno.ENOSPC, "No space left on device"), AGAIN),
        (ConnectionError("rank 1 is out of reach"), AGAIN),
        (TimeoutError("waited 600 s"), AGAIN),
        (MemoryError(), AGAIN),
        (torch.OutOfMemoryError("CUDA out of memory"), AGAIN),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), AGAIN),
        (ValueError("of gigapipe's own"), DEFECT),
    ],
)
def test_an_error_has_the_status_that_says_whether_another_try_may_help(error, status):
    assert exit_status.of(error) == status


def test_a_verdict_is_read_under_its_key_alone_and_goes_with_another(tmp_path):
    first = Attempts(tmp_path / "model.pt", "a")
    first.begin(memory=None)
    first.note(Unavailable("the disk is gone"))
    first.refuse()
    first.note(InputError("epoch 1: the loss is nan; lower the learning rate"))
    with pytest.raises(
        InVain, match=r"^epoch 1: the loss is nan; lower .* \(recorded on .*; remove .*/never.json to try"
    ):
        Attempts(tmp_path / "model.pt", "a").refuse()
    for other in (Attempts(tmp_path / "model.pt", "b"), Attempts(tmp_path / "model.pt")):
        other.refuse()
    corrected = Attempts(tmp_path / "model.pt", "b")
    corrected.begin(memory=None)
    first.refuse()  # what was noted is gone
    corrected.forget()
    assert not list(tmp_path.iterdir())


def test_a_verdict_is_overtaken_by_what_is_made_or_corrected_since(tmp_path):
    slide, pyramid, other = tmp_path / "a.svs", tmp_path / "pyramids/a", tmp_path / "pyramids/b"
    for store in pyramid, other:
        (store / "image.zarr/c").mkdir(parents=True)
        (store / "image.zarr/c/0").write_text("chunk")
    slide.write_text("slide")
    attempts = Attempts(tmp_path / "model.pt", "a")
    inputs = [tmp_path / "gone", slide, pyramid, other]
    assert not attempts.overtaken(inputs)

    def found() -> None:
        time.sleep(0.02)  # the clock of files is coarse
        attempts.note(InputError("pyramid pyramids/a: chunk c/0 of its 8 µm/px is missing"))
        assert not attempts.overtaken(inputs)
        time.sleep(0.02)

    found()
    (other / "image.zarr/c/0").write_text("of which nothing was said")
    assert not attempts.overtaken(inputs)
    (pyramid / "image.zarr/c/0").write_text("what was there before")
    os.utime(pyramid / "image.zarr/c/0", (0, 0))
    assert attempts.overtaken(inputs)
    found()
    (tmp_path / "b.svs").write_text("slide")
    os.utime(tmp_path / "b.svs", (0, 0))
    (tmp_path / "b.svs").rename(slide)
    assert attempts.overtaken(inputs)


def test_what_was_not_installed_is_no_verdict_once_it_is(tmp_path, monkeypatch):
    attempts = Attempts(tmp_path / "model.pt", "a")
    attempts.note(ModuleNotFoundError("No module named 'brought_later'", name="brought_later.inner"))
    with pytest.raises(InVain, match=r"^brought_later.inner is not installed; install it with"):
        attempts.refuse()
    (tmp_path / "brought_later.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    attempts.refuse()


def test_an_option_that_the_command_line_refuses_is_refused_once(tmp_path):
    (tmp_path / "log").write_text("usage: gigapipe\ngigapipe train: error: argument --time-limit: invalid value\n")
    command = ["explain", 2, "--output", tmp_path / "model.pt", "--log", tmp_path / "log", "--attempts", "a"]
    assert gigapipe(*command, check=False).returncode == NEVER
    assert "--time-limit: invalid value" in Attempts(tmp_path / "model.pt", "a").verdict


def test_a_cheap_verb_leaves_word_where_it_is_told_to_and_forgets_it(tmp_path):
    (tmp_path / "sheet.tsv").write_text("slide\tpatient\n")
    command = ["folds", tmp_path / "sheet.tsv", tmp_path / "out", "--attempts", "a", tmp_path / "failed/a"]
    line = gigapipe(*command, check=False).stdout.strip()
    assert line.startswith("gigapipe: sample sheet")
    again = gigapipe(*command, check=False)
    assert again.returncode == NEVER and again.stdout.startswith(f"{line} (recorded on ")
    assert "the next run of the workflow tries it again" in again.stdout
    rows = [f"s{i}\tp{i}\th{i}\t{'ab'[i % 2]}\ts{i}.svs" for i in range(12)]
    (tmp_path / "sheet.tsv").write_text("\n".join(["slide\tpatient\tsite\tlabel\tsource", *rows]) + "\n")
    (tmp_path / "failed/a/never.json").unlink()
    gigapipe(*command)
    assert not (tmp_path / "failed/a").exists()


def test_without_a_key_nothing_is_left(tmp_path):
    alone = Attempts(tmp_path / "model.pt")
    alone.begin(memory=None)
    alone.note(InputError("the loss is nan"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "log",
    [
        "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.",
        "srun: error: node1: task 3: Out Of Memory",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "TERM_MEMLIMIT: job killed after reaching LSF memory usage limit.",
    ],
)
def test_who_is_killed_for_memory_is_tried_once_more_and_then_never(tmp_path, log):
    (tmp_path / "log").write_text(f"step 3\n{log}\nstep 4\n")
    command = ["explain", 137, "--output", tmp_path / "model.pt", "--log", tmp_path / "log", "--attempts", "a"]
    attempts = Attempts(tmp_path / "model.pt", "a")
    for trial, status in (1, 137), (2, NEVER):
        attempts.refuse()
        attempts.begin(memory=3_200_000_000)
        done = gigapipe(*command, check=False)
        assert done.returncode == status
        assert log[:60] in done.stdout and "3.2 GB per rank were planned" in done.stdout, (trial, done.stdout)
        assert gigapipe(*command, check=False).returncode == status  # said twice is not killed twice
    with pytest.raises(InVain, match="this happened 2 times"):
        attempts.refuse()


@pytest.mark.parametrize("status", [UNFINISHED, AGAIN, NEVER, 137])
def test_what_was_not_for_memory_is_not_said_to_be(tmp_path, status):
    (tmp_path / "log").write_text("srun: error: node1: task 3: Killed\n")
    command = ["explain", status, "--output", tmp_path / "model.pt", "--log", tmp_path / "log", "--attempts", "a"]
    Attempts(tmp_path / "model.pt", "a").begin(memory=None)
    for _ in range(3):
        done = gigapipe(*command, check=False)
        assert done.returncode == status
        assert ("for an unknown reason" in done.stdout) == (status == 137)
    Attempts(tmp_path / "model.pt", "a").refuse()


def test_what_the_kernel_counts_is_evidence(tmp_path, monkeypatch):
    counter = tmp_path / "memory.events"
    counter.write_text("low 0\noom 4\noom_kill 3\n")
    monkeypatch.setattr(memory_kills, "COUNTERS", (tmp_path / "none", counter))
    attempts = Attempts(tmp_path / "model.pt", "a")
    attempts.begin(memory=None)
    assert attempts.why_killed(137, "") is None
    counter.write_text("low 0\noom 5\noom_kill 4\n")
    assert attempts.why_killed(137, "") == f"{counter} counts 1 more since it began"
    assert attempts.why_killed(AGAIN, "") is None
    noted = json.loads((attempts.folder / "begun.json").read_text())
    assert noted["host"] == socket.gethostname() and noted["oom_kills"] == {str(counter): 3}


@pytest.mark.parametrize("state, memory", [("OUT_OF_MEMORY", True), ("TIMEOUT", False)])
def test_a_job_that_was_killed_whole_is_asked_for_by_the_next(tmp_path, monkeypatch, state, memory):
    (tmp_path / "sacct").write_text(f"#!/bin/sh\n[ $5 = 41 ] && echo {state}\n")
    (tmp_path / "sacct").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    attempts = Attempts(tmp_path / "model.pt", "a")
    attempts.begin(memory=None)
    attempts.begin(memory=None)
    if not memory:
        attempts.begin(memory=None)
        return
    with pytest.raises(InVain, match="sacct says OUT_OF_MEMORY.*this happened 2 times"):
        attempts.begin(memory=None)


def test_a_training_that_diverges_is_begun_once_and_a_corrected_one_is_not_held_up(small_cohort, tmp_path):
    def run(ranks: int, key: str, rate: float) -> tuple[int, str, float]:
        arguments = training(small_cohort, tmp_path / f"{ranks}/model.pt", (1, ranks, 1), 1, more=["--attempts", key])
        arguments[arguments.index("--learning-rate") + 1] = str(rate)
        begun = time.monotonic()
        done = gigapipe(*arguments, ranks=ranks, check=False)
        return done.returncode, done.stdout, time.monotonic() - begun

    for ranks in 1, 2:
        status, said, _ = run(ranks, "a", 1e30)
        line = next(line for line in said.splitlines() if line.startswith("gigapipe: epoch 1: the loss is "))
        assert status == NEVER and said.count(line) == 1
        assert (tmp_path / f"{ranks}/model.pt.failed/never.json").exists()
        # In one process, as the workflow then starts it.
        arguments = training(small_cohort, tmp_path / f"{ranks}/model.pt", (1, ranks, 1), 1, more=["--attempts", "a"])
        begun = time.monotonic()
        again = gigapipe(*arguments, check=False)
        assert again.returncode == NEVER and again.stdout.startswith(line) and again.stdout.count("\n") == 1
        assert time.monotonic() - begun < 5
        status, said, _ = run(ranks, "b", 1e-4)
        assert status == 0, said
        assert sorted(path.name for path in (tmp_path / str(ranks)).iterdir()) == ["model.pt", "training.json"]
