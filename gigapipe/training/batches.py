"""Which slides make which step of an epoch."""

from collections.abc import Iterator

import numpy as np

from gigapipe.errors import InputError
from gigapipe.spatial import Mesh
from gigapipe.training.settings import Settings
from gigapipe.training.task import Task


def slides_per_step(settings: Settings) -> int:
    """Over all data ranks and accumulated batches."""
    return settings.batch * settings.accumulate


def steps_per_epoch(task: Task) -> int:
    """Whole steps that the slides make. Raises InputError if they make none, or data ranks cannot share a batch."""
    settings, mesh, together = task.settings, task.mesh, slides_per_step(task.settings)
    if settings.batch % mesh.data:
        raise InputError(indivisible(settings, mesh))
    if task.slides < together:
        raise InputError(f"fold {settings.fold}: {task.slides} training slides do not fill a batch of {together}")
    return task.slides // together


def indivisible(settings: Settings, mesh: Mesh) -> str:
    """What is said of a batch that data ranks cannot share."""
    return f"batch: {settings.batch} slides cannot be divided evenly among {mesh.data} data ranks; give a multiple"


def batches(task: Task, epoch: int) -> Iterator[list[list[int]]]:
    """Yield, step by step, this rank's slides of each batch that is accumulated; every rank draws the same plan.

    Slides that do not fill a last step wait for another epoch.
    """
    settings, mesh, together = task.settings, task.mesh, slides_per_step(task.settings)
    order = np.random.default_rng([settings.seed, epoch]).permutation(task.slides)
    share = settings.batch // mesh.data
    for start in range(0, task.slides - together + 1, together):
        firsts = range(start + mesh.data_index * share, start + together, settings.batch)
        yield [order[first : first + share].tolist() for first in firsts]
