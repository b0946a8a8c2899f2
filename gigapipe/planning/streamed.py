"""What one rank would need to compute an image tile by tile: in how much memory, and how fast."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from gigapipe.errors import InputError
from gigapipe.models.layout import in_channels_last
from gigapipe.planning.machines import Machine
from gigapipe.planning.scaling import Job, undivided_seconds
from gigapipe.spatial import Mesh, Plan, decompose, plan_streaming
from gigapipe.spatial.costs import trained_bytes, training_state
from gigapipe.spatial.speed import CPU, Disk, Host, Speed

HALVINGS = 8
"""How often the memory of an undivided step is halved in a table of time against memory."""


class Elsewhere(NamedTuple):
    """Where a rank may keep images beside its memory: bytes a second that it writes there, or reads."""

    disk: float | None = None
    host: float | None = None
    """Of a GPU: the memory of its host."""
    host_memory: int = sys.maxsize
    """Bytes that a rank may have there."""

    def __str__(self) -> str:
        host = f"the host's memory at {self.host / 1e9:g} GB/s" if self.host else ""
        return " and ".join(filter(None, [host, f"a disk of {self.disk / 1e9:g} GB/s" if self.disk else ""]))


NOWHERE = Elsewhere()


def streamed(job: Job, machine: Machine, elsewhere: Elsewhere = NOWHERE) -> list[str]:
    """Lines that say how one rank streams one image of the job, in how much memory and time; or what it would need.

    Slow: every way through the layers is looked at.
    """
    try:
        plan = _planned(job, machine, machine.usable_memory, elsewhere)
    except ValueError as error:
        return [f"streamed on one rank (docs/streaming.md): {error}"]
    assert plan.peak is not None and plan.time is not None  # as of what was planned
    seconds = plan.time * undivided_seconds(job, machine, 1)
    return [
        f"streamed on one rank (docs/streaming.md): at most {plan.peak / 1e9:.1f} GB, {seconds:.4g} s an image, "
        f"{plan.time:.2f} × the time of an undivided step:",
        *(f"  {line}" for line in plan.lines[:-1]),
    ]


def tradeoff(job: Job, machine: Machine, elsewhere: Elsewhere = NOWHERE) -> Iterator[str]:
    """A table of the time of a step against its memory, a line at a time: undivided, then in a half of it, a quarter, …

    It ends after `HALVINGS`, or where tiles do not fit. If images may be kept `elsewhere`, the same follows with that.
    """
    whole, undivided = _planned(job, machine, float("inf"), NOWHERE), undivided_seconds(job, machine, 1)
    assert whole.peak is not None

    def row(plan: Plan) -> str:
        assert plan.peak is not None and plan.time is not None
        return (
            f"{plan.peak / 1e9:12.3f} {plan.peak / whole.peak:12.3f} {plan.time * undivided:10.4g} {plan.time:12.2f} "
            f"{plan.host / 1e9:12.1f} {plan.disk / 1e9:12.1f}"
        )

    yield (
        f"{'memory, GB':>12} {'× undivided':>12} {'step, s':>10} {'× undivided':>12} {'on host, GB':>12} "
        f"{'on disk, GB':>12}"
    )
    yield row(whole)
    for there in dict.fromkeys([NOWHERE, elsewhere]):
        if there != NOWHERE:
            yield f"with {there}:"
        for halvings in range(1, HALVINGS + 1):
            try:
                yield row(_planned(job, machine, whole.peak / 2**halvings, there))
            except ValueError as error:
                yield f"  {error}"
                break


def _planned(job: Job, machine: Machine, memory: float, elsewhere: Elsewhere) -> Plan:
    """ValueError if it does not fit. InputError if it has no form by tiles."""
    model = decompose(in_channels_last(job.make()), Mesh())  # which names the layers
    state = trained_bytes(model) + training_state(model)  # buffers and weights that are not trained are left out
    dtype, speed = getattr(torch, job.precision), _speed(job, machine)
    unit, disk, host = speed.multiplication / _second(machine), None, None  # of the speed; nothing is written
    if elsewhere.disk:
        disk = Disk(Path(tempfile.gettempdir()), unit / elsewhere.disk, float("inf"))
    if elsewhere.host:
        host = Host(unit / elsewhere.host, elsewhere.host_memory)
    try:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            # By one thread: how many the machine's rank has, and what tiles side by side are worth there, nobody knows.
            return plan_streaming(
                model,
                (1, job.channels, *job.canvas),
                memory,
                loss=job.loss,
                base=state,
                threads=1,
                speed=speed,
                disk=disk,
                host=host,
                read=True,
            )
    except NotImplementedError as error:
        raise InputError(f"it cannot be streamed: {error}") from None


def _second(machine: Machine) -> float:
    """Seconds of one multiplication with its addition, in float32."""
    return 2 / (machine.flops_share * machine.flops["float32"])


def _speed(job: Job, machine: Machine) -> Speed:
    """The machine's, by which tiles are chosen; of a CPU that by which a training there chooses them."""
    if not machine.has_gpus:
        return CPU
    of_32, of_job = (machine.flops_share * machine.flops[p] / 2 for p in ("float32", job.precision))
    return Speed(1 / of_32, of_job / of_32, 1 / (machine.bandwidth_share * machine.bandwidth), machine.operation)
