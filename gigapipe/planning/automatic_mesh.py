"""How many ranks share an image, and whether it is streamed, where nobody has said so: what a step takes decides."""

import functools
from collections.abc import Callable
from typing import NamedTuple, get_args

from torch import nn

from gigapipe.configuration.configuration import LEARNED_POOLS, Configuration, Resolution, Training
from gigapipe.configuration.tasks import task_named
from gigapipe.models import GigapixelUNet
from gigapipe.models.networks import classifier, segmenter
from gigapipe.models.trained_layers import KEPT_MAPS, freeze
from gigapipe.planning.machines import Machine, machine
from gigapipe.planning.scaling import Job, cost_of, shapes

RESERVE = Machine._field_defaults["reserve"]
"""Share of a GPU's memory that tensors do not get, as of the machines that are known."""

OF_OTHERS = 0.2
"""Share of the memory that is free now and is left to other programs."""


class Place(NamedTuple):
    """Where the ranks of one job are."""

    name: str
    ranks: int  # at most
    memory: float | None  # bytes that one may take; None: nobody knows
    on_gpu: bool


class Choice(NamedTuple):
    ranks: int
    memory: int | None  # bytes that a rank is told to take at most; None: no limit
    why: str


def one_machine(device: str, side_by_side: int) -> Place:
    """This machine: its GPUs, of which a job may take all, or one rank of each of so many jobs `side_by_side`."""
    import psutil
    import torch

    count = torch.cuda.device_count() if device.startswith(("auto", "cuda")) else 0
    if count:
        most = 1 if ":" in device else count
        return Place(f"a GPU of {count}", most, (1 - RESERVE) * torch.cuda.get_device_properties(0).total_memory, True)
    memory = (1 - OF_OTHERS) * psutil.virtual_memory().available / side_by_side
    return Place(f"one of {side_by_side} jobs side by side", 1, memory, False)


def cluster(name: str | None, ranks_per_node: int) -> Place:
    """A node as a profile tells of it: by the `name` of a machine that `gigapipe plan` knows, or a file for it."""
    if name is None:
        return Place("a node for which the profile does not state the `machine`", 1, None, True)
    known: Machine = machine(name)
    return Place(f"a rank of {known.name}", ranks_per_node, known.usable_memory, not known.measured)


def choose(resolution: Resolution, side: int | None, config: Configuration, place: Place) -> Choice:
    """The fewest ranks that hold a step, or else one that streams it, each in the memory that it has.

    `side` is that of the canvas, or of the largest slide, in px; None while nobody knows it.
    """
    training = config.training
    if place.memory is None:
        return Choice(1, None, f"one rank, on {place.name}")
    limit = int(place.memory)
    if side is None:
        return Choice(1, limit, f"one rank in {limit / 1e9:.1f} GB: the size of its images is not known yet")
    options = training.network_options
    make: Callable[[], nn.Module]
    batch, beside = 1, 0.0
    task = task_named(config.task)
    if task.canvas:
        maps = training.pool in get_args(LEARNED_POOLS)
        # Features of frozen layers are computed slide by slide; feature maps are kept, if memory is not limited.
        kept = training.train in ("head", "probe") and not (maps and training.memory)
        batch, beside = (1, KEPT_MAPS * maps) if kept else (training.batch, 0)
        make = functools.partial(_classifier, training, side)
    elif training.own:
        channels = 1 + len(config.mask_classes) if task.needs == "mask" else 1
        make = functools.partial(segmenter, training.network, options, channels, (side, side))
    else:
        make = GigapixelUNet
    job = Job(make, (side, side), training.precision, on_gpu=place.on_gpu)
    for ranks in (n for n in range(1, place.ranks + 1) if place.ranks % n == 0):
        if found := shapes(ranks, job.canvas):
            taken = cost_of(job, (1, *found[0]), batch).memory + beside / ranks
            if taken <= limit:
                of = "one rank" if ranks == 1 else f"{ranks} ranks per image"
                why = f"{of}: a step takes {taken / 1e9:.2g} GB of the {limit / 1e9:.1f} of {place.name}"
                return Choice(ranks, None, why)
    each = f"in the {limit / 1e9:.1f} GB of {place.name}"
    if place.ranks == 1:
        return Choice(1, limit, f"one rank, streamed: a step does not fit {each}")
    return Choice(1, limit, f"one rank, streamed: up to {place.ranks} ranks do not hold a step {each}")


def _classifier(training: Training, side: int) -> nn.Module:
    """The network, of which no gradient is computed of what is not trained."""
    form = training.norm, training.pool, training.width, training.patch, training.stages
    model = classifier(training.network, training.network_options, 2, side, *form)
    freeze(model, training.train, training.network)
    return model
