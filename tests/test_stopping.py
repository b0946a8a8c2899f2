"""Trainings that are stopped, killed, and gone on with: by time, by signals, between any two bytes, on other meshes."""

import multiprocessing
import random
import re
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from cohorts import made_once, same, training, weights
from launching import MORE, gigapipe, ranks_of, with_a_state

from gigapipe.exit_status import AGAIN, UNFINISHED
from gigapipe.training.checkpoints import Checkpoints
from gigapipe.training.stopping import RESERVE


@pytest.fixture(scope="module")
def uninterrupted(small_cohort, tmp_path_factory) -> dict[str, torch.Tensor]:
    """Weights of two epochs on two ranks."""

    def make(folder: Path) -> None:
        gigapipe(*training(small_cohort, folder / "model.pt", (1, 2, 1)), ranks=2)

    return weights(made_once(tmp_path_factory, "uninterrupted", make) / "model.pt")


def test_a_training_that_runs_out_of_time_goes_on_to_the_same_weights(small_cohort, tmp_path):
    gigapipe(*training(small_cohort, tmp_path / "uninterrupted/model.pt"))
    # So little that each run makes one step, or a validation.
    arguments = training(small_cohort, tmp_path / "model.pt", more=["--time-limit", f"{RESERVE}s"])
    stops = 0
    while (done := gigapipe(*arguments, check=False)).returncode == UNFINISHED:
        assert "the time limit is near; the same command resumes from there" in done.stdout, done.stdout
        assert "Traceback" not in done.stdout
        stops += 1
        assert 1 <= len(list(tmp_path.glob("checkpoints/*.pt"))) <= 2
    assert done.returncode == 0, done.stdout
    print(f"stopped {stops} times")
    assert stops > 4 and same(weights(tmp_path / "model.pt"), weights(tmp_path / "uninterrupted/model.pt"))


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_stops_all_and_loses_nothing(small_cohort, uninterrupted, tmp_path, told):
    arguments = training(small_cohort, tmp_path / "model.pt", (1, 2, 1))
    with with_a_state(arguments, tmp_path) as process:
        ranks_of(process)[-1].send_signal(told)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == UNFINISHED and "a signal was received" in output and "Traceback" not in output, output
    again = gigapipe(*arguments, ranks=2)
    assert "resumed after epoch" in again.stdout and same(weights(tmp_path / "model.pt"), uninterrupted)


def test_a_disk_that_is_full_when_a_state_is_written_is_one_line_and_the_state_before_stands(
    small_cohort, uninterrupted, tmp_path
):
    arguments = training(small_cohort, tmp_path / "model.pt", (1, 2, 1))
    with with_a_state(arguments, tmp_path, process=True) as process:
        for rank in ranks_of(process):  # the nearest thing to a full disk that anybody may make
            resource.prlimit(rank.pid, resource.RLIMIT_FSIZE, (10_000, 10_000))
        output, _ = process.communicate(timeout=60)
    said = [line for line in output.splitlines() if line.startswith("gigapipe: ")]
    assert process.returncode == AGAIN and len(said) == 1 and "Traceback" not in output, output
    assert re.match(rf"gigapipe: {tmp_path}/checkpoints/\d+.pt: File too large; .* \(rank 0 of 2 on .*, in ", said[0])
    states = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert states and all(re.fullmatch(r"\d+.pt", name) for name in states)
    again = gigapipe(*arguments, ranks=2)
    assert "resumed after epoch" in again.stdout and same(weights(tmp_path / "model.pt"), uninterrupted)


def test_what_was_trained_on_four_ranks_goes_on_on_one(small_cohort, tmp_path):
    """Without BatchNorm, which makes of the last digits, in which meshes differ, what is seen in the fifth."""

    def run(folder: str, mesh: tuple, *more, status: int = 0) -> str:
        arguments = training(small_cohort, tmp_path / folder / "model.pt", mesh, 3, more=["--norm", "none", *more])
        done = gigapipe(*arguments, ranks=mesh[1] * mesh[2], check=False)
        assert done.returncode == status, done.stdout
        return done.stdout

    run("whole", (1, 1, 1))
    run("moved", (1, 2, 2), "--time-limit", f"{RESERVE + 0.1}s", status=UNFINISHED)
    assert "resumed after epoch" in run("moved", (1, 1, 1))
    expected, found = (weights(tmp_path / folder / "model.pt") for folder in ("whole", "moved"))
    apart = max((found[name].double() - expected[name].double()).abs().max().item() for name in found)
    print(f"weights apart by {apart:.1e}")
    assert 0 < apart <= 1e-6


def save_without_end(folder: Path, said) -> None:
    torch.set_num_threads(1)  # there are no others after a fork
    state = {"identity": "it", "model": {"weight": torch.zeros(300_000)}}
    for step in range(1, 1_000_000):
        state["model"]["weight"].fill_(step)
        Checkpoints(folder).save(step, state)
        said.send(step)


@pytest.mark.slow
def test_a_kill_at_any_instant_leaves_a_state_that_can_be_read(tmp_path):
    chance, forked = random.Random(0), multiprocessing.get_context("fork")
    within = 0
    for trial in range(50 * MORE):
        folder = tmp_path / str(trial)
        listening, said = forked.Pipe(duplex=False)
        writer = forked.Process(target=save_without_end, args=(folder, said))
        writer.start()
        last = listening.recv()
        time.sleep(chance.uniform(0, 0.03))
        writer.kill()
        writer.join()
        said.close()
        while listening.poll():
            try:
                last = listening.recv()
            except EOFError:
                break
        found = Checkpoints(folder).newest("it")
        assert found in (last, last + 1)  # it was whole before it could be said
        assert (Checkpoints(folder).load(found)["model"]["weight"] == found).all()
        within += bool(list(folder.glob(".*.partial")))
    print(f"{50 * MORE} kills, {within} of them while a state was being written; all went on from the last one")
    assert within > 5 * MORE


def test_a_torn_state_is_passed_over_for_the_one_before(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in range(1, 6):
        checkpoints.save(step, {"identity": "it", "step": step})
    paths = sorted(checkpoints.folder.iterdir())
    assert [path.name for path in paths] == ["00000003.pt", "00000004.pt", "00000005.pt"]
    paths[-1].write_bytes(paths[-1].read_bytes()[:-100])
    assert checkpoints.newest("it") == 4 and checkpoints.newest("another") is None
    (checkpoints.folder / ".00000006.pt.1.partial").write_bytes(b"what a kill left")
    checkpoints.remove()
    assert not checkpoints.folder.exists()
