"""Curves for TensorBoard, read back from their event files: complete, each epoch once, wherever one was stopped."""

import logging
import struct
import sys
from pathlib import Path

from cohorts import training
from launching import ROOT, gigapipe
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from gigapipe.exit_status import AGAIN, UNFINISHED
from gigapipe.training.stopping import RESERVE

FIGURES = {
    "loss/training", "loss/validation", "accuracy/validation", "epoch/learning_rate", "epoch/seconds",
    "epoch/peak_memory_mb",
}  # fmt: skip


def file_of(folder: Path) -> Path:
    """The one event file of a training that is not empty."""
    (found,) = (file for file in (folder / "tensorboard").iterdir() if file.stat().st_size)
    return found


def events(folder: Path) -> list[Event]:
    """All that a training's event file holds, its checksums compared."""
    data, found = file_of(folder).read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        for part, end in ((data[:8], 8), (data[12 : 12 + size], 12 + size)):
            checksum = crc32c(part)
            masked = ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
            assert data[end : end + 4] == struct.pack("<I", masked)
        found.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return found


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Of each tag its steps and values, in the file's order."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_a_training_that_is_stopped_everywhere_has_the_curves_of_one_that_was_not(small_cohort, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    gigapipe(*training(small_cohort, tmp_path / "whole/model.pt", more=["--tensorboard"]))
    line = next(message for message in caplog.messages if message.startswith("epoch 2  "))
    assert [word for word in line.split() if not word[0].isdigit()] == [
        "epoch", "training_loss", "validation_loss", "validation_accuracy", "learning_rate", "seconds", "peak_memory_mb"
    ]  # fmt: skip
    # So little that each run makes one step, or a validation.
    arguments = training(small_cohort, tmp_path / "stopped/model.pt", more=["--tensorboard", "--time-limit", RESERVE])
    arguments[-1] += "s"
    stops = 0
    while gigapipe(*arguments, check=False).returncode == UNFINISHED:
        file = file_of(tmp_path / "stopped")
        file.write_bytes(file.read_bytes()[:-5])  # as a kill leaves it
        stops += 1
    whole, stopped = (curves(tmp_path / folder) for folder in ("whole", "stopped"))
    assert len(list((tmp_path / "stopped/tensorboard").iterdir())) <= 2
    assert stops > 4 and whole.keys() == stopped.keys() == FIGURES
    for tag in FIGURES:
        assert [step for step, _ in whole[tag]] == [step for step, _ in stopped[tag]] == [1, 2]
    for tag in ("loss/training", "loss/validation", "accuracy/validation", "epoch/learning_rate"):
        assert whole[tag] == stopped[tag]
    assert min(value for _, value in stopped["epoch/seconds"] + stopped["epoch/peak_memory_mb"]) > 0
    times = [event.wall_time for event in events(tmp_path / "stopped") if event.summary.value]
    assert times == sorted(times)


def test_one_of_several_ranks_writes_and_another_beginning_leaves_nothing_of_the_first(small_cohort, tmp_path):
    """Between them goes a transport of one's own."""
    more = ["--tensorboard", "--transport", f"{ROOT}/tests/outside/transport.py:told"]
    for epochs in (2, 1):
        arguments = training(small_cohort, tmp_path / "model.pt", (1, 2, 1), epochs, more=more)
        gigapipe(*arguments, ranks=2, cwd=tmp_path)
        assert [step for step, _ in curves(tmp_path)["loss/training"]] == list(range(1, epochs + 1))
    assert (tmp_path / "carried").exists()


def test_without_what_writes_them_nothing_is_trained_and_a_line_says_what_to_install(
    small_cohort, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    done = gigapipe(*training(small_cohort, tmp_path / "model.pt", more=["--tensorboard"]), check=False)
    assert done.returncode == AGAIN and "epoch" not in done.stdout
    assert done.stdout.splitlines()[-1] == (
        "gigapipe: tensorboard: tensorboardX is not installed; install it with pip install 'gigapipe[tensorboard]'"
    )
    assert not list(tmp_path.glob("**/*.pt"))
