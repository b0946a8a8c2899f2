"""The record of a training, `training.json`: what its steps cost is measured here, and written at its end."""

import contextlib
import hashlib
import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from gigapipe.atomic import atomic_file
from gigapipe.pyramids import appearance
from gigapipe.spatial import Mesh
from gigapipe.training.batches import slides_per_step
from gigapipe.training.cost import Meter
from gigapipe.training.devices import finish, most_allocated
from gigapipe.training.state import State
from gigapipe.training.task import Task, files_of


class Recorder:
    """Measures steps and validations, and notes in `state` what they cost. All ranks make and use it together."""

    def __init__(self, mesh: Mesh, state: State):
        self.mesh, self.state, self.meter = mesh, state, Meter(mesh)
        self.longest_step = self.longest_validation = 0.0
        """Seconds, in this process."""
        self.spent = 0.0, 0.0
        """What this rank's part of the last step cost: see `Meter`."""

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Measure the step that is made within; all tell each other afterwards (`told`)."""
        begun = time.perf_counter()
        self.meter.start()
        yield
        finish(self.mesh.device)
        seconds = time.perf_counter() - begun
        self.state.seconds.append(seconds)
        self.spent = self.meter.spent()
        self.state.epoch_seconds += seconds
        self.longest_step = max(self.longest_step, seconds)

    def told(self, *own: float) -> torch.Tensor:
        """Sums over ranks of numbers of each (numbers,), float64, after a step, whose cost is noted: in one message."""
        sums = self.mesh.everyone.sum_(torch.tensor([*self.spent, *own], dtype=torch.float64))
        sent, joules = sums[:2].tolist()
        self.state.spent.append((sent, joules))
        if self.meter.counted not in self.state.energy_counted:
            self.state.energy_counted.append(self.meter.counted)
        return sums[2:]

    @contextlib.contextmanager
    def validation(self) -> Iterator[None]:
        """Measure the validation that is made within, and the memory of the epoch that it ends."""
        begun = time.perf_counter()
        yield
        seconds = time.perf_counter() - begun
        self.state.epoch_seconds += seconds
        self.longest_validation = max(self.longest_validation, seconds)
        self.state.peak_memory_mb = max(self.state.peak_memory_mb, _peak_memory_mb(self.mesh))


def write_record(path: Path, task: Task, state: State) -> None:
    """Write how a task was trained, what came of it, and what it cost; joules are null if a host does not tell."""
    settings, mesh, together = task.settings, task.mesh, slides_per_step(task.settings)
    # The first steps of a process also pay for its warming up.
    seconds = statistics.median(state.seconds[2:] or state.seconds)
    sent, joules = (statistics.fmean(of_steps) for of_steps in zip(*state.spent, strict=True))
    record = {
        "settings": settings.model_dump(),
        "identity": identity(task),
        appearance.KEY: appearance.of_all(task.training.pyramids),
        "best_epoch": state.best["epoch"],
        "loss_scale": state.loss_scale or None,
        "mesh": [mesh.data, mesh.rows, mesh.columns],
        "memory": task.streaming.limit,
        "streamed": task.streaming.tiled,
        "seconds_per_step": seconds,
        "training_seconds": _all_epochs(state),
        "images_per_second": together / seconds,
        "sent_bytes_per_step": sent,
        "joules_per_step": None if math.isnan(joules) else joules,
        "energy_counted": None if math.isnan(joules) else " / ".join(state.energy_counted),
        "peak_memory_per_rank_mb": state.peak_memory_mb,
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "features_read": _features_read(task),
        "training_slides": task.slides,
        "slides_per_step": together,
        "started_from": task.started_from,
        "history": state.history,
    }
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _features_read(task: Task) -> int | None:
    """Features that the first rank read from files: what they took to compute is in no figure. None if it has none."""
    features = getattr(task, "features", None)
    return features.read if features else None


def _all_epochs(state: State) -> float | None:
    """Seconds of all steps and validations; None if older releases have noted none of some."""
    return sum(epoch["seconds"] for epoch in state.took) if len(state.took) == len(state.history) else None


def identity(task: Task) -> dict:
    """What a trained network belongs to: a digest, and the MD5 of each slide's file that made it what it is."""
    made_of = json.dumps([task.settings.model_dump(), task.identity()], sort_keys=True)
    files = {"training": files_of(task.training), "validation": files_of(task.validation)}
    return {"network": hashlib.sha256(made_of.encode()).hexdigest()[:16], **files}


def _peak_memory_mb(mesh: Mesh) -> float:
    """The largest resident set that any rank's process has had; of ranks on GPUs, the most of those' memory."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    peaks = torch.zeros(mesh.size, dtype=torch.float64)
    most = most_allocated(mesh.device)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    peaks[mesh.rank] = (resident if most is None else most) / 1e6
    return mesh.everyone.sum_(peaks).max().item()
