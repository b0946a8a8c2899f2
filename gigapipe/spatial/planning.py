"""Which layers to stream, by which tiles, so that a training step fits a given memory and takes the least time.

The model is recorded once, without pixels, and what every operation takes follows from the shapes (`costs.py`): what
autograd keeps of it, what it makes, how many multiplications it does. Nothing is tried out. Layers can be cut apart
where a single image passes from one to the next; between two cuts, time and memory are known for every size of tiles,
and the best way through is looked for among all of them.
"""

import functools
import itertools
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from gigapipe.spatial.costs import Spent, passes, trained_bytes
from gigapipe.spatial.kept_images import normalises, ways
from gigapipe.spatial.layers import HEAP, Layers, Share
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.recording import Node, Recorder, Ref
from gigapipe.spatial.speed import CPU, Disk, Host, Speed, Tier, speed_of
from gigapipe.spatial.stream import Plan
from gigapipe.spatial.tensor import SpatialTensor

USABLE_SHARE = 0.95
"""The share of the memory for images that plans are made with: shapes do not tell all. What the process takes for
itself is `base`, where it runs; for machines elsewhere it is assumed, as `Machine.reserve` (gigapipe/planning)."""


class _Enough(Exception):
    """What follows is not streamed."""


class _Trace(Recorder):
    """Records a model as far as it can be streamed; its sums over the image are zero."""

    def undivided(self, index: int) -> bool:
        return False

    def whole(self, ref: Ref) -> SpatialTensor:
        raise _Enough

    def summed(self, node: Node) -> torch.Tensor:
        result = node.results[0]
        return torch.zeros(result.shape, dtype=result.dtype, device=self.device)


def trace(model: nn.Module, shape, mesh: Mesh, loss: Callable | None, dtype, device) -> list[Node]:
    """The operations of a model, and of a loss of its output, on an image of `shape`; its buffers stay as they are."""
    recorder = _Trace(mesh, device)
    image = recorder.source(shape, dtype, channels_last=True)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.no_grad():
            output = model(image)
            if loss:
                loss(output)
    except _Enough:
        pass
    finally:
        for buffer, saved in buffers:
            with torch.no_grad():
                buffer.copy_(saved)
    return recorder.nodes


class Candidate(NamedTuple):
    """A plan, and what it takes."""

    time: float
    peak: float
    stored: tuple[Node, ...]
    shares: tuple[Share, ...]
    whole: bool
    between: Spent
    """What of the time goes to images between shares: to copy them, or to bring them into another tier and back."""
    away: Mapping[Node, Tier]
    """Of those that are stored, those that lie in another tier, and in which."""
    taken: Mapping[Tier, float]
    """Bytes of each tier, at most."""


def candidates(layers: Layers, available: float) -> Iterator[Candidate]:
    """Every way through the cuts that keeps at most three images, each with the fastest tiles that fit, and each image
    in memory or in another tier.

    Where norms look at the whole image, of these only that which keeps none, and what `kept_images.py` finds.
    """
    norms = normalises(layers)
    for number in range(1 if norms else min(3, len(layers.cuts)) + 1):
        for stored in itertools.combinations(layers.cuts, number):
            for whole in (False, True):
                # What is not streamed works with an image in memory.
                movable = stored[:-1] if whole else stored
                for tiers in itertools.product((None, *layers.tiers), repeat=len(movable)):
                    away = {node: tier for node, tier in zip(movable, tiers, strict=True) if tier}
                    yield _candidate(layers, stored, whole, away, available)
    if norms:
        for way, end in ways(layers, available):
            tiles = {node.index: tiled.tile for node, tiled in way.segments.items()}
            times = {node.index: tiled.time for node, tiled in way.segments.items()}
            spent = sum((tiled.spent for tiled in way.segments.values()), Spent())
            shares = [Share(tiles, 0.0, 0.0, times, spent), *([layers.whole(end)] if end else [])]
            images = tuple(sorted(way.nodes, key=lambda node: node.index))
            moved = sum((_moved(layers, node, way.uses[node], tier) for node, tier in way.away.items()), Spent())
            yield Candidate(way.time, way.peak, images, tuple(shares), end is not None, moved, way.away, way.taken)


def _moved(layers: Layers, node: Node, uses: int, tier: Tier) -> Spent:
    """The time to keep what a node makes in another tier."""
    return Spent(**{tier.name: layers.time_away(node, uses, torch.is_grad_enabled(), tier)})


def _candidate(
    layers: Layers, stored: tuple[Node, ...], whole: bool, away: Mapping[Node, Tier], available: float
) -> Candidate:
    """The way that keeps these images, and with `whole` streams nothing after them."""
    training = torch.is_grad_enabled()

    def in_memory(node: Node | None) -> float:
        return layers.held(node) if node and node not in away else 0.0

    bounds = [None, *stored] if whole else [None, *stored, None]
    held, copied, shares, peak = 0.0, 0.0, [], 0.0
    for first, last in itertools.pairwise(bounds):
        before = held
        held += in_memory(last)
        # Forward, copies are beside what they are of; backward, where that is gone, in its place.
        copied = layers.copied(first) + (copied if training else 0.0)
        waiting = held + copied
        gradients = in_memory(first) + in_memory(last) + layers.copied(None)

        def needs(share, before=before, waiting=waiting, gradients=gradients, read=first in away, written=last in away):
            in_flight = read * share.read + written * share.written
            forward = waiting + share.forward + in_flight
            return max(forward, before + gradients + share.backward + 2 * in_flight) if training else forward

        share = layers.fastest(functools.partial(layers.streamed, first, last), needs, available)
        shares.append(share)
        peak = max(peak, needs(share))
    if whole:
        share = layers.whole(stored[-1] if stored else None)
        shares.append(share)
        gradient = layers.held(stored[-1]) if stored else 0.0
        copied = copied if training else 0.0
        peak = max(peak, held + copied + (gradient + share.backward if training else share.forward))
    copied = sum(layers.time_held(node, training) for node in stored if node not in away)
    between = sum((_moved(layers, node, 1, tier) for node, tier in away.items()), Spent(memory=copied))
    time = sum(s.time for s in shares) + between.total
    taken = {
        tier: (1 + training) * sum(layers.held(node) for node, there in away.items() if there == tier)
        for tier in layers.tiers
    }
    return Candidate(time, peak, stored, tuple(shares), whole, between, away, taken)


def plan_streaming(
    model: nn.Module,
    shape: tuple[int, int, int, int],
    memory: float,
    mesh: Mesh | None = None,
    loss: Callable[[object], object] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    base: float | None = None,
    threads: int | None = None,
    speed: Speed | None = None,
    disk: Disk | None = None,
    host: Host | None = None,
    heap: float = HEAP,
    read: bool = False,
) -> Plan:
    """The fastest way to train `model` on an image of `shape` with a rank's process below `memory` bytes.

    `loss` is called with the model's output if that is an image, and must return a number. `base` is the memory of the
    process without the image, in bytes; by default its present memory plus gradients. On a CPU `threads` (by default
    the number that torch uses for an operation) compute tiles in parallel if memory suffices, and have up to `heap`
    bytes each beside what is counted (more than the default where a process keeps what it frees). With `read`, images
    are read when they are used, and are not in that memory. `speed` is the device's, by default what `speed_of` says:
    of a GPU it is measured once, which takes a second or two. On a `disk` (`speed.disk_in`), or in the memory of a
    GPU's `host` (`speed.host_of`), images are kept that do not fit into memory, if that takes less time than to make
    them again. Call it under the autocast of the step, and under no_grad for a prediction. All ranks of the mesh must
    call it. Raises ValueError, with a remedy, if no plan fits, or if several ranks share an image and a disk or host is
    given.
    """
    mesh = mesh or Mesh()
    if (disk or host) and mesh.image_ranks > 1:
        raise ValueError(
            "a disk, or the host of a GPU, can hold images only where one rank computes an image: leave it out, or the "
            "mesh"
        )
    nodes = trace(model, shape, mesh, loss, dtype, device)
    weights = trained_bytes(model)
    if base is None:
        base = resident_memory() + weights
    if torch.is_autocast_enabled(torch.device(device).type):
        base += weights  # in 16 bits, and their gradients
    source = ""
    if speed is None:
        speed, source = speed_of(torch.device(device)) if mesh.rank == 0 else (CPU, "")
    threads = (threads or torch.get_num_threads()) if torch.device(device).type == "cpu" else 1
    if mesh.size > 1:  # ranks plan alike, for the one that holds most and the one that has fewest threads
        of_ranks = torch.zeros(3, mesh.size, dtype=torch.float64)
        of_ranks[:, mesh.rank] = torch.tensor([base, threads, heap])
        of_one = torch.zeros(len(speed) + 2, dtype=torch.float64)
        if mesh.rank == 0:  # of several measurements one counts
            tiers = [tier.byte if tier else 0.0 for tier in (disk, host)]
            of_one += torch.tensor([*speed, *tiers], dtype=torch.float64)
        told = mesh.everyone.sum_(torch.cat([of_ranks.flatten(), of_one]))
        bases, of_threads, heaps = told[: 3 * mesh.size].view(3, -1)
        base, threads, heap = float(bases.max()), int(of_threads.min()), float(heaps.max())
        *told, of_disk, of_host = told[3 * mesh.size :].tolist()
        speed = Speed(*told)
        disk, host = disk and disk._replace(byte=of_disk), host and host._replace(byte=of_host)
    available = USABLE_SHARE * (memory - base)
    on_host = Tier("host", host.byte, host.free) if host else None
    on_disk = Tier("disk", disk.byte, _free_for_one(disk, mesh)) if disk else None
    tiers = tuple(sorted(filter(None, (on_host, on_disk)), key=lambda tier: tier.byte))
    workers = threads if threads > 1 else 0
    for side, ahead in dict.fromkeys([(workers, threads if read else 0), (workers, 0), (0, 0)]):
        layers = Layers(nodes, mesh, side, speed, tiers, heap, read, ahead)
        found = [c for c in candidates(layers, available) if all(size <= t.free for t, size in c.taken.items())]
        if fitting := [c for c in found if c.peak <= available]:
            break
    if not fitting:
        least = base + min(c.peak for c in found) / USABLE_SHARE
        raise ValueError(
            f"{memory / 1e9:.3f} GB do not hold a step of {' × '.join(map(str, shape))}: at least {least / 1e9:.3f} GB "
            "are needed; give more, or share the image among more ranks"
        )
    undivided = [c for c in fitting if c.whole and not c.stored]  # what fits as it is stays as it is
    best = min(undivided or fitting, key=lambda c: c.time)
    operations = layers.operations.values()
    undivided_once = layers.spent(operations, {o.node: layers.area(o.node) for o in operations})
    plain = undivided_once.total * passes(again=False)
    after = (best.stored[-1].index if best.stored else 0) + 1
    return Plan(
        tiles={index: tile for share in best.shares for index, tile in share.tiles.items()},
        kept=frozenset(node.index for node in best.stored),
        whole_from=after if best.whole else None,
        recorded=best.whole and layers.recorded(best.stored[-1] if best.stored else None),
        on_disk=frozenset(node.index for node, tier in best.away.items() if tier == on_disk),
        folder=disk.folder if disk else None,
        on_host=frozenset(node.index for node, tier in best.away.items() if tier == on_host),
        disk=best.taken[on_disk] if on_disk else 0.0,
        host=best.taken[on_host] if on_host else 0.0,
        workers=layers.workers,
        ahead=layers.ahead,
        peak=base + best.peak,
        spare=available - best.peak,
        time=best.time / plain,
        shares={index: time / best.time for share in best.shares for index, time in share.times.items()},
        lines=(*([source] if source else []), *_described(layers, best, base, best.time / plain)),
    )


def _free_for_one(disk: Disk, mesh: Mesh) -> float:
    """Bytes that a rank finds free at least; all ranks may be on one machine."""
    if disk.free is not None:
        return disk.free
    mine = USABLE_SHARE * shutil.disk_usage(disk.folder).free / mesh.size
    if mesh.size == 1:
        return mine
    table = torch.zeros(mesh.size, dtype=torch.float64)
    table[mesh.rank] = mine
    return float(mesh.everyone.sum_(table).min())


def _described(layers: Layers, candidate: Candidate, base: float, time: float) -> Iterator[str]:
    ends: list[Node | None] = [*candidate.stored, None]
    if len(ends) > len(candidate.shares):
        size = sum(layers.held(node) for node in candidate.stored)
        yield f"{len(candidate.stored)} images kept whole ({size / 1e6:.0f} MB), at which norms look or layers end"
        ends = [candidate.stored[-1], None] if candidate.whole else [None]
    side_by_side = f", {layers.workers} side by side" if layers.workers else ""
    start = "from the image"
    for share, end in zip(candidate.shares, ends, strict=True):
        stop = f"to {layers.name(end)}, kept whole ({layers.held(end) / 1e6:.0f} MB)" if end else "to the end"
        sizes = [f"{rows} × {columns}" for rows, columns in sorted(set(share.tiles.values()))]
        few = " and ".join(sizes) if len(sizes) < 3 else f"{sizes[0]} to {sizes[-1]}"
        yield f"{start} {stop}: " + (f"tiles of {few} px of its output{side_by_side}" if sizes else "not streamed")
        start = f"after {layers.name(end)}" if end else ""
    for tier, size in candidate.taken.items():
        if count := sum(there == tier for there in candidate.away.values()):
            where = {"host": "in the host's memory", "disk": "on disk"}[tier.name]
            yield f"{count} of the kept images {where}, with their gradients {size / 1e9:.1f} GB"
    yield f"its time: {sum((share.spent for share in candidate.shares), candidate.between)}"
    yield f"expected: at most {(base + candidate.peak) / 1e9:.2f} GB, {time:.2f} × the time of an undivided step"


def resident_memory() -> int:
    """Bytes of memory that this process has."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = re.search(r"VmRSS:\s+(\d+)", text)
    assert found  # Linux says it of every process
    return 1024 * int(found[1])
