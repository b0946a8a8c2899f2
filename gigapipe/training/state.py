"""What a training has reached: noted after each epoch, saved in checkpoints, and resumed from them on any mesh."""

import json
import logging
import math
import statistics
import time
from dataclasses import dataclass, field, replace
from typing import Required, TypedDict

import torch
from torch import nn

from gigapipe.errors import Unavailable
from gigapipe.spatial import Mesh
from gigapipe.training.checkpoints import Checkpoints
from gigapipe.training.optimizer import in_groups_of
from gigapipe.training.task import Task

logger = logging.getLogger(__name__)

SINCE_0_2 = {"took", "epoch_seconds", "average", "loss_scale", "energy_counted", "disk", "host_memory"}
"""What checkpoints of 0.1 lack."""


class Best(TypedDict, total=False):
    """The best epoch in validation; before there is one, its `loss` is infinite and the rest is missing."""

    loss: Required[float]
    epoch: int
    model: dict[str, torch.Tensor]
    """Its weights, on the CPU."""


PER_MESH = "mesh", "memory", "disk", "host_memory", "seconds", "spent", "energy_counted", "peak_memory_mb"
"""What of a state belongs to a mesh."""


@dataclass
class State:
    """How far a training has come, and what its steps have cost. The fields are keys of its checkpoints."""

    mesh: list[int]
    """Data ranks, rows and columns: on which the steps cost what they did."""
    memory: int | None
    """Bytes that a rank may take; None: as much as it likes."""
    disk: bool = False
    """Whether a rank may keep images on a disk."""
    host_memory: int | None = None
    """Bytes of a GPU's host that a rank may take for images."""
    epoch: int = 0
    """Epochs that have ended."""
    step: int = 0
    """Steps that have ended of the epoch after them."""
    losses: list[float] = field(default_factory=list)
    """Of these steps."""
    history: list[dict[str, float]] = field(default_factory=list)
    """What each epoch has come to."""
    took: list[dict[str, float]] = field(default_factory=list)
    """What each epoch took: when it `ended` (seconds since 1970), its last `learning_rate`, the `seconds` of its steps
    and its validation, without what lay between two jobs, and `peak_memory_mb`. Epochs of older releases have none."""
    epoch_seconds: float = 0.0
    """Of the steps that have ended of the epoch after them."""
    best: Best = field(default_factory=lambda: Best(loss=math.inf))
    average: dict[str, torch.Tensor] = field(default_factory=dict)
    """The moving average of the weights, if there is one: see average.py."""
    loss_scale: dict[str, float] = field(default_factory=dict)
    """By what losses are multiplied in float16: see loss_scale.py."""
    since: int = 0
    """The epoch from which patience counts."""
    falls: int = 0
    """How often the learning rate has fallen."""
    ended: bool = False
    """Whether patience was over before the last epoch."""
    seconds: list[float] = field(default_factory=list)
    """Of each step on this mesh."""
    spent: list[tuple[float, float]] = field(default_factory=list)
    """Bytes sent and joules of each step on this mesh: see `Meter`."""
    energy_counted: list[str] = field(default_factory=list)
    """Whose joules these are: `Meter.counted`; several, where jobs on different machines made the steps."""
    peak_memory_mb: float = 0.0
    """The most that a rank of this mesh has had, as measured after each epoch."""

    @classmethod
    def beginning(cls, task: Task) -> "State":
        """That of a training on the task's mesh which has not begun."""
        mesh, streaming = task.mesh, task.streaming
        host = streaming.host.free if streaming.host else None
        return cls([mesh.data, mesh.rows, mesh.columns], streaming.limit, streaming.disk is not None, host)

    def end_epoch(self, validation: dict[str, float], model: nn.Module, learning_rate: float) -> None:
        """Note what an epoch has come to, and keep the model's weights if validation is the best so far."""
        training_loss = statistics.fmean(self.losses)
        self.epoch, self.step, self.losses = self.epoch + 1, 0, []
        figures = {f"validation_{name}": value for name, value in validation.items()}
        self.history.append({"epoch": self.epoch, "training_loss": training_loss, **figures})
        costs = {"learning_rate": learning_rate, "seconds": self.epoch_seconds, "peak_memory_mb": self.peak_memory_mb}
        self.took.append({"epoch": self.epoch, "ended": time.time(), **costs})
        self.epoch_seconds = 0.0
        if validation["loss"] < self.best["loss"]:
            weights = {name: value.to("cpu", copy=True) for name, value in model.state_dict().items()}
            self.best = {"loss": validation["loss"], "epoch": self.epoch, "model": weights}
            self.since = self.epoch


class Resumable:
    """A task's model, its optimiser and its state, which go into checkpoints together, and out of them on any mesh.

    `steps` an epoch. All ranks make it together.
    """

    def __init__(self, task: Task, optimizer: torch.optim.Optimizer, checkpoints: Checkpoints, steps: int):
        self.task, self.optimizer, self.checkpoints, self.steps = task, optimizer, checkpoints, steps
        self.identity = json.dumps([task.settings.model_dump(), task.identity()], sort_keys=True)

    def save(self, state: State) -> None:
        """One rank alone: all have the same."""
        model, optimizer = self.task.model.state_dict(), self.optimizer.state_dict()
        parts = {"identity": self.identity, "model": model, "optimizer": optimizer}
        self.checkpoints.save(state.epoch * self.steps + state.step, vars(state) | parts)

    def resume(self) -> State:
        """The newest state of the same settings and slides, whose weights the model takes; or that of a beginning.

        All ranks call it together. Raises Unavailable if they see different files.
        """
        settings, mesh, checkpoints = self.task.settings, self.task.mesh, self.checkpoints
        beginning = State.beginning(self.task)
        found = newest_of_all(checkpoints, self.identity, mesh)
        if found is None:
            if mesh.rank == 0 and checkpoints.exist():
                logger.warning(
                    f"{checkpoints.folder}: none can be used, kept as {checkpoints.set_aside()}: starting "
                    "from the beginning"
                )
            return beginning
        saved = checkpoints.load(found)
        missing = mesh.everyone.sum_(torch.tensor(float(saved is None)))
        if saved is None or missing:
            raise Unavailable(
                f"{checkpoints.folder}: ranks see different files; wait for the file system, and run it again"
            )
        state = State(**{key: saved[key] for key in vars(beginning) if key in saved or key not in SINCE_0_2})
        if not state.energy_counted and not all(math.isnan(joules) for _, joules in state.spent):
            state.energy_counted.append("processors")  # as before 0.2
        self.task.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(in_groups_of(self.optimizer, saved["optimizer"], self.task.model))
        epochs = settings.epochs_of(self.steps)
        terms = ("mesh", "memory", "disk", "host_memory")
        as_before = all(getattr(state, key) == getattr(beginning, key) for key in terms)
        if not as_before and found < epochs * self.steps and not state.ended:  # another mesh, another cost
            fresh = {key: getattr(beginning, key) for key in PER_MESH}
            state = replace(state, **fresh)
        if mesh.rank == 0:
            within = f" and {state.step} steps" if state.step else ""
            logger.info(f"resumed after epoch {state.epoch} of {epochs}{within}")
        return state


def newest_of_all(checkpoints: Checkpoints, identity: str, mesh: Mesh) -> int | None:
    """After how many steps the state is that all ranks go on from: the newest that the first of them sees."""
    found = checkpoints.newest(identity) if mesh.rank == 0 else None
    told = int(mesh.everyone.sum_(torch.tensor([0 if found is None else found + 1])))
    return told - 1 if told else None
