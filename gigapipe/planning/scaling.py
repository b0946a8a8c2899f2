"""Seconds, efficiency and the best mesh: an α–β–flops model on top of what a step is counted to cost.

An operation takes as long as its arithmetic or its memory traffic, whichever is longer, and its start. A message takes
α + bytes / β, an all-reduce over n ranks 2 ⌈log₂ n⌉ α + 2 (n - 1) / n × bytes / β. Nothing overlaps. Each further rank
that works on a node slows the others down by a share of their time alone. See docs/planning.md.
"""

import functools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from gigapipe.errors import InputError
from gigapipe.planning.cost import Cost, default_loss, step_cost
from gigapipe.planning.machines import Machine
from gigapipe.spatial import NotDecomposed
from gigapipe.spatial.costs import Spent, largest_part


class Point(NamedTuple):
    """A step on one mesh, predicted or measured; what nobody knows is NaN."""

    source: str  # "model" or "measured"
    data: int
    rows: int
    columns: int
    ranks: int
    canvas_rows: float
    canvas_columns: float
    batch: int  # of all ranks
    memory_gb: float  # one rank's, as the bytes below, each step
    fits: bool
    halo_mb: float
    sent_mb: float
    compute_seconds: float
    exchange_seconds: float
    reduce_seconds: float
    seconds: float
    images_per_second: float
    efficiency: float
    """Of one rank that had the memory, the time of the undivided step, over ranks × this step's time."""


class Job(NamedTuple):
    """A model trained on canvases (rows, columns)."""

    make: Callable[[], nn.Module]
    canvas: tuple[int, int]
    precision: str = "float32"
    channels: int = 3
    loss: Callable = default_loss
    on_gpu: bool = True


class Seconds(NamedTuple):
    compute: Spent
    exchange: float
    reduce: float

    @property
    def spent(self) -> Spent:
        """All of it, by what it goes to."""
        return self.compute + Spent(messages=self.exchange + self.reduce)


@functools.cache
def cost_of(job: Job, mesh: tuple[int, int, int], batch: int) -> Cost:
    """What a step costs the rank in the middle of a mesh, which has the most neighbours; `batch` a data rank.

    Where the canvas does not divide evenly it is taken as a little larger, so that this rank's part is the largest.
    """
    data, rows, columns = mesh
    if data > 2:  # more data ranks change nothing but how many take part in what all sum
        known = cost_of(job, (2, rows, columns), batch)
        everyone = range(data * rows * columns)
        reductions = (replace(r, ranks=everyone) if len(r.ranks) > rows * columns else r for r in known.reductions)
        return replace(known, reductions=tuple(reductions))
    part = largest_part(job.canvas, (rows, columns))
    canvas = part[0] * rows, part[1] * columns
    middle = rows // 2 * columns + columns // 2
    dtype = getattr(torch, job.precision)
    shape = (batch, job.channels, *canvas)
    try:
        return step_cost(job.make, shape, mesh, middle, dtype, job.loss, job.on_gpu)
    except (NotDecomposed, ValueError, RuntimeError) as error:
        raise InputError(
            f"a step on {' × '.join(map(str, shape))} cannot be planned: {str(error).splitlines()[0]}"
        ) from None


def compute_seconds(operations: np.ndarray, flops: float, bandwidth: float, start: float) -> Spent:
    """Of `Cost.operations`, of a rank that computes `flops` and moves `bandwidth` bytes a second."""
    arithmetic, moved = operations[:, 0] / flops, operations[:, 1] / bandwidth
    by_arithmetic = arithmetic > moved
    return Spent(
        float(arithmetic[by_arithmetic].sum()), float(moved[~by_arithmetic].sum()), starting=len(operations) * start
    )


def step_seconds(cost: Cost, machine: Machine, precision: str, ranks: int) -> Seconds:
    """The model: what a rank takes while so many work."""
    machine = machine.at_work(ranks)
    flops, bandwidth = machine.flops_share * machine.flops[precision], machine.bandwidth_share * machine.bandwidth
    compute = compute_seconds(cost.operations, flops, bandwidth, machine.operation)
    node = cost.rank // machine.ranks_per_node
    exchange = 0.0
    for sent in cost.exchanges:
        for rank, size in sent.to.items():
            near = rank // machine.ranks_per_node == node
            link = _link(machine, True) if near else _link(machine, False) / machine.ranks_per_node
            exchange += (machine.near_latency if near else machine.far_latency) + size / (machine.link_share * link)
    reduce = 0.0
    for summed in cost.reductions:
        n = len(summed.ranks)
        near = max(summed.ranks) // machine.ranks_per_node == min(summed.ranks) // machine.ranks_per_node
        link = _link(machine, True) if near else min(_link(machine, False), machine.near or math.inf)
        latency = machine.near_latency if near else machine.far_latency
        reduce += 2 * math.ceil(math.log2(n)) * latency + 2 * (n - 1) / n * summed.bytes / (machine.link_share * link)
    return Seconds(compute, exchange, reduce)


def _link(machine: Machine, near: bool) -> float:
    """Bytes a second to a rank of the node, or from it to others; `check` refuses ranks that would lack it."""
    link = machine.near if near else machine.far
    assert link
    return link


def undivided_seconds(job: Job, machine: Machine, batch: int) -> float:
    """Of a step on one rank of this machine, had it the memory."""
    return batch * step_seconds(cost_of(job, (1, 1, 1), 1), machine, job.precision, 1).compute.total


def predict(job: Job, machine: Machine, mesh: tuple[int, int, int], batch: int) -> Point:
    """A step of `batch` images over all ranks of a mesh.

    Raises InputError if the batch does not divide over the data ranks, or the machine has no such ranks or precision.
    """
    check(machine, job.precision, ranks := math.prod(mesh))
    if batch % mesh[0]:
        raise InputError(f"batch {batch} cannot be divided evenly among {mesh[0]} data ranks; give a multiple")
    cost = cost_of(job, mesh, batch // mesh[0])
    seconds = step_seconds(cost, machine, job.precision, ranks)
    return Point(
        "model",
        *mesh,
        ranks,
        *job.canvas,
        batch,
        memory_gb=cost.memory / 1e9,
        fits=cost.memory <= machine.usable_memory,
        halo_mb=cost.halo / 1e6,
        sent_mb=cost.sent / 1e6,
        compute_seconds=seconds.compute.total,
        exchange_seconds=seconds.exchange,
        reduce_seconds=seconds.reduce,
        seconds=seconds.spent.total,
        images_per_second=batch / seconds.spent.total,
        efficiency=undivided_seconds(job, machine, batch) / (ranks * seconds.spent.total),
    )


def spent(job: Job, machine: Machine, point: Point) -> Spent:
    """What the time of a predicted step goes to."""
    cost = cost_of(job, (point.data, point.rows, point.columns), point.batch // point.data)
    return step_seconds(cost, machine, job.precision, point.ranks).spent


def check(machine: Machine, precision: str, ranks: int) -> None:
    """Raise InputError if the machine has no such precision, or not so many ranks."""
    if precision not in machine.flops:
        raise InputError(f"{machine.name}: its speed in {precision} is unknown; give {' or '.join(machine.flops)}")
    if ranks > machine.ranks_per_node and not machine.far:
        raise InputError(
            f"{machine.name} has {machine.ranks_per_node} ranks, not {ranks}; give --far, or another machine"
        )
    if min(ranks, machine.ranks_per_node) > 1 and not machine.near:
        raise InputError(f"{machine.name}: the link between ranks of a node is unknown; give --near")


def shapes(ranks: int, canvas: tuple[int, int]) -> list[tuple[int, int]]:
    """Rows × columns of so many ranks, those with the shortest borders first; none with more ranks than pixels."""
    pairs = [(rows, ranks // rows) for rows in range(1, ranks + 1) if ranks % rows == 0]
    fitting = [pair for pair in pairs if all(p <= n for p, n in zip(pair, canvas, strict=True))]
    return sorted(fitting, key=lambda pair: (canvas[0] / pair[0] + canvas[1] / pair[1], pair))


def surely_too_large(job: Job, machine: Machine, ranks: int, batch: int) -> bool:
    """Whether shards of so many ranks cannot fit: what the undivided step makes of an image, divided, does not."""
    undivided = cost_of(job, (1, 1, 1), 1)
    return undivided.state + batch * (undivided.memory - undivided.state) / ranks > machine.usable_memory


def meshes(job: Job, machine: Machine, ranks: int | None, batch: int, most: int = 3) -> list[Point]:
    """The best few meshes of so many ranks, or of the fewest that hold the images and some more, the best first.

    Data ranks come first, for they cost least. What surely does not fit is left out, unless nothing fits: then the
    mesh is shown that takes least.
    """
    check(machine, job.precision, ranks or 1)
    points: list[Point] = []
    counts = [ranks] if ranks else _numbers(machine)
    for count in counts:
        for data in sorted(_divisors(math.gcd(count, batch)), reverse=True):
            found = shapes(count // data, job.canvas)
            if not found or surely_too_large(job, machine, count // data, batch // data):
                continue
            points.append(predict(job, machine, (data, *found[0]), batch))
            if ranks is None or sum(point.fits for point in points) >= most:
                break
        if sum(point.fits for point in points) >= most:
            break
    if not points:
        count = counts[-1] if ranks else machine.ranks_per_node if not machine.far else MOST_RANKS
        data = 1 if ranks is None else min(_divisors(math.gcd(count, batch)))
        found = shapes(count // data, job.canvas)
        if not found:
            raise InputError(f"{count} ranks are too many for a canvas of {job.canvas[0]} × {job.canvas[1]} px")
        points.append(predict(job, machine, (data, *found[0]), batch))
    return sorted(points, key=lambda point: (point.fits, point.efficiency), reverse=True)


MOST_RANKS = 4096


def _numbers(machine: Machine) -> list[int]:
    """Numbers of ranks worth a look: parts of a node, then nodes, twice as many each time."""
    numbers = _divisors(machine.ranks_per_node)
    while machine.far and 2 * numbers[-1] <= MOST_RANKS:
        numbers.append(2 * numbers[-1])
    return numbers


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def best(points: list[Point]) -> Point | None:
    """The mesh that fits and makes most of its ranks; None where none fits."""
    return max((point for point in points if point.fits), key=lambda point: point.efficiency, default=None)


def strong_scaling(job: Job, machine: Machine, ranks: list[int]) -> list[Point]:
    """One image over ever more ranks."""
    return [predict(job, machine, (1, *shapes(count, job.canvas)[0]), 1) for count in ranks]


def weak_scaling(job: Job, machine: Machine, shape: tuple[int, int], data: list[int]) -> list[Point]:
    """Ever more images, each over as many ranks."""
    return [predict(job, machine, (count, *shape), count) for count in data]


def measured(trainings: list[Path]) -> list[Point]:
    """The same of trainings that were run, from their training.json.

    `efficiency` is that against the training on one rank, where there is one of the same canvas.
    """
    points = []
    for path in trainings:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        data, rows, columns = record["mesh"]
        ranks = data * rows * columns
        seconds, batch = record["seconds_per_step"], record["slides_per_step"]
        canvas = record["settings"].get("canvas", math.nan)
        points.append(
            Point(
                "measured",
                data,
                rows,
                columns,
                ranks,
                canvas,
                canvas,
                batch,
                memory_gb=record["peak_memory_per_rank_mb"] / 1e3,
                fits=True,
                halo_mb=math.nan,
                sent_mb=record["sent_bytes_per_step"] / ranks / 1e6,
                compute_seconds=math.nan,
                exchange_seconds=math.nan,
                reduce_seconds=math.nan,
                seconds=seconds,
                images_per_second=batch / seconds,
                efficiency=math.nan,
            )
        )
    alone = {point.canvas_rows: point.images_per_second for point in reversed(points) if point.ranks == 1}
    return [
        point._replace(efficiency=point.images_per_second / (point.ranks * alone.get(point.canvas_rows, math.nan)))
        for point in points
    ]


def ranks_up_to(first: int, last: int) -> Iterator[int]:
    """`first`, four times as many each time, and `last`."""
    while first < last:
        yield first
        first *= 4
    yield last
