"""Which layers to stream, by which tiles, so that a training step fits a given memory and takes the least time.

The model is recorded once, without pixels, and what every operation takes follows from the shapes (`costs.py`): what
autograd keeps of it, what it makes, how many multiplications it does. Nothing is tried out. Layers can be cut apart
where a single image passes from one to the next; between two cuts, time and memory are known for every size of tiles,
and the best way through is looked for among all of them.
"""

import functools
import itertools
import math
import re
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from gigapipe.spatial.costs import GRADIENTS, Operation, bytes_a_pixel, largest_part, passes, size_of, trained_bytes
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.recording import Node, Recorder, Ref
from gigapipe.spatial.segment import Segment, needed_nodes
from gigapipe.spatial.stream import Plan
from gigapipe.spatial.tensor import SpatialTensor
from gigapipe.spatial.window import Interval

USABLE_SHARE = 0.95
"""The share of the memory for images that plans are made with: shapes do not tell all. What the process takes for
itself is `base`, where it runs; for machines elsewhere it is assumed, as `Machine.reserve` (gigapipe/planning)."""

GRIDS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 128)
"""Into how many tiles an axis may be cut."""


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


@dataclass(frozen=True)
class Share:
    """What tiles of a size cost between two cuts: bytes at a time, forward and backward, and the time of it all."""

    tiles: dict[int, tuple[int, int]]
    forward: float
    backward: float
    times: dict[int, float]
    """Of what ends with each of these operations."""

    @property
    def time(self) -> float:
        return sum(self.times.values())


class Layers:
    """A recorded model: its operations, where it can be cut, and what the parts cost on one rank."""

    def __init__(self, nodes: list[Node], mesh: Mesh):
        self.mesh = mesh
        self.source, self.nodes = nodes[0], [node for node in nodes if not node.is_source]
        self.operations = {node: Operation.of(node, node) for node in self.nodes}
        self._fused: dict[Node, Operation] = {}
        self.last_use = {ref.node: node.index for node in self.nodes for ref in node.operands}
        self.cuts = list(self._cuts())

    def operation(self, made: Node, node: Node) -> Operation:
        """What makes a node's results: it itself, or the one `node` that takes its place in every segment."""
        known = self.operations if node is made else self._fused
        if made not in known:
            known[made] = Operation.of(made, node)
        return known[made]

    def _cuts(self) -> Iterator[Node]:
        """Operations whose one result is all that later ones need, but for those that a cheap one makes smaller."""
        alive_until, found = 0, []
        for node in self.nodes:
            used = self.last_use.get(node, 0)
            if node.single and used and alive_until <= node.index:
                found.append(node)
            alive_until = max(alive_until, used)
        for cut in found:
            follower = next((c for c in found if c.index == cut.index + 1), None)
            cheap = follower and not (follower.tensors and follower.function in (torch.conv2d, torch.conv_transpose2d))
            if follower is None or not cheap or self.held(follower) > self.held(cut):
                yield cut

    @staticmethod
    def name(node: Node) -> str:
        return node.layer or f"operation {node.index}"

    def area(self, node: Node) -> float:
        """Pixels of what a node makes, on one rank."""
        return math.prod(self.owned(node))

    def owned(self, node: Node) -> tuple[int, int]:
        """Rows and columns of what a node makes, on one rank."""
        return largest_part(size_of(node), (self.mesh.rows, self.mesh.columns))

    def held(self, node: Node) -> float:
        """Bytes of what a node makes, on one rank."""
        return sum(bytes_a_pixel(Ref(node, i)) for i in range(len(node.results))) * self.area(node)

    def outputs(self, first: Node | None, last: Node | None) -> list[Node]:
        """What is computed between two cuts: sums over the image, and the second cut itself or the last results."""
        start, stop = first.index if first else 0, last.index if last else math.inf
        between = [node for node in self.nodes if start < node.index <= stop]
        return [n for n in between if n.sums or n is last or (last is None and n not in self.last_use)]

    @functools.cache  # noqa: B019  lives as long as the plan is made
    def streamed(self, first: Node | None, last: Node | None, grid: int) -> Share:
        """The nodes between two cuts, each axis in `grid` tiles."""
        held = {Ref(first)} if first else set()
        tiles: dict[int, tuple[int, int]] = {}
        times: dict[int, float] = {}
        forward = backward = 0.0
        for output in self.outputs(first, last):
            nodes, inputs = needed_nodes(output, held)
            owned = self.owned(output)
            high, wide = (min(n, 8 * math.ceil(n / grid / 8)) for n in owned)
            tile = tiles[output.index] = high, wide
            segment = Segment(self.mesh, nodes, inputs, Ref(output), tile)
            count = [math.ceil(n / t) for n, t in zip(owned, tile, strict=True)]
            middle = [
                Interval((c // 2) * t, min(n, (c // 2 + 1) * t)) for c, t, n in zip(count, tile, owned, strict=True)
            ]
            rows, columns = (segment._along(axis, interval) for axis, interval in enumerate(middle))
            areas = {node: rows[node].size * columns[node].size for node in rows}
            parts = sum(bytes_a_pixel(ref) * areas[ref.node] for ref in inputs)
            operations = [self.operation(made, node) for made, node in segment.computed.items()]
            of_forward, of_backward = self._at_a_time(operations, areas, tiled=True)
            forward = max(forward, of_forward + parts)
            backward = max(backward, of_backward + 2 * parts)
            once = sum(operation.time * areas[operation.node] for operation in operations)
            times[output.index] = passes(again=True) * once * count[0] * count[1]
        return Share(tiles, forward, backward, times)

    def whole(self, first: Node | None) -> Share:
        """The nodes after a cut, undivided."""
        operations = [self.operations[node] for node in self.nodes if node.index > (first.index if first else 0)]
        areas = {operation.node: self.area(operation.node) for operation in operations}
        forward, backward = self._at_a_time(operations, areas, tiled=False)
        time = passes(again=False) * sum(operation.time * areas[operation.node] for operation in operations)
        return Share({}, forward, backward, {0: time})

    @staticmethod
    def _at_a_time(operations: list[Operation], areas: Mapping[Node, float], tiled: bool) -> tuple[float, float]:
        """Bytes held at the worst moment: forward without a graph, and in a pass with one and backward."""
        last = {ref: operation.node for operation in operations for ref in operation.operands}
        made = {operation.node: operation.made * areas[operation.node] for operation in operations}
        ends: dict[Node, list[Ref]] = {}
        for ref, node in last.items():
            ends.setdefault(node, []).append(ref)
        live = forward = kept = backward = 0.0
        seen: set[Ref] = set()
        for operation in operations:
            pixels = areas[operation.node]
            padded = operation.padded * pixels if tiled else 0.0
            live += made[operation.node]
            forward = max(forward, live + padded)
            live -= sum(made.get(ref.node, 0.0) for ref in ends.get(operation.node, []))
            images = [ref for ref in operation.keeping.images if ref not in seen and ref.node in made]
            seen.update(images)
            kept += sum(bytes_a_pixel(ref) * areas[ref.node] for ref in images)
            kept += operation.keeping.more * pixels + padded
            read = (bytes_a_pixel(ref) * areas.get(ref.node, 0) for ref in operation.operands)
            largest = max([made[operation.node], *read])
            backward = max(backward, kept + GRADIENTS * largest)
        return forward, backward


class Candidate(NamedTuple):
    """A plan, what it takes, and whether that fits."""

    time: float
    peak: float
    stored: tuple[Node, ...]
    shares: tuple[Share, ...]
    whole: bool


def candidates(layers: Layers, available: float) -> Iterator[Candidate]:
    """Every way through the cuts that keeps at most three images, each with the largest tiles that fit."""
    training = torch.is_grad_enabled()
    for number in range(min(3, len(layers.cuts)) + 1):
        for stored in itertools.combinations(layers.cuts, number):
            for whole in (False, True):
                bounds = [None, *stored] if whole else [None, *stored, None]
                held, shares, peak = 0.0, [], 0.0
                for first, last in itertools.pairwise(bounds):
                    before, kept = held, layers.held(last) if last else 0.0
                    held += kept
                    both_gradients = kept + (layers.held(first) if first else 0.0)

                    def needs(share, before=before, held=held, gradients=both_gradients):
                        forward = held + share.forward
                        return max(forward, before + gradients + share.backward) if training else forward

                    of_grids = (layers.streamed(first, last, grid) for grid in GRIDS)
                    share = next((s for s in of_grids if needs(s) <= available), None)
                    share = share or layers.streamed(first, last, GRIDS[-1])
                    shares.append(share)
                    peak = max(peak, needs(share))
                if whole:
                    share = layers.whole(stored[-1] if stored else None)
                    shares.append(share)
                    gradient = layers.held(stored[-1]) if stored else 0.0
                    peak = max(peak, held + (gradient + share.backward if training else share.forward))
                yield Candidate(sum(s.time for s in shares), peak, stored, tuple(shares), whole)


def plan_streaming(
    model: nn.Module,
    shape: tuple[int, int, int, int],
    memory: float,
    mesh: Mesh | None = None,
    loss: Callable[[object], object] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    base: float | None = None,
) -> Plan:
    """The fastest way to train `model` on an image of `shape` that keeps a rank's process below `memory` bytes.

    `loss` is called with the model's output if that is an image, and must make a number of it. `base` is what the
    process will hold beside the image, in bytes; by default what it has now, and gradients. To be called under the
    autocast that the step will have, and under no_grad if it is a prediction. All ranks of the mesh call it together.
    Raises ValueError, with what would do, if no plan fits.
    """
    mesh = mesh or Mesh()
    layers = Layers(trace(model, shape, mesh, loss, dtype, device), mesh)
    weights = trained_bytes(model)
    if base is None:
        base = resident_memory() + weights
    if torch.is_autocast_enabled(torch.device(device).type):
        base += weights  # in 16 bits, and their gradients
    if mesh.size > 1:  # ranks plan alike, for the one that holds most
        held = torch.zeros(mesh.size, dtype=torch.float64)
        held[mesh.rank] = base
        base = mesh.everyone.sum_(held.to(device)).max().item()
    available = USABLE_SHARE * (memory - base)
    found = list(candidates(layers, available))
    fitting = [c for c in found if c.peak <= available]
    if not fitting:
        least = base + min(c.peak for c in found) / USABLE_SHARE
        raise ValueError(
            f"{memory / 1e9:.1f} GB do not hold a step of {' × '.join(map(str, shape))}: at least {least / 1e9:.1f} GB "
            "are needed; give more, or share the image among more ranks"
        )
    undivided = [c for c in fitting if c.whole and not c.stored]  # what fits as it is stays as it is
    best = min(undivided or fitting, key=lambda c: c.time)
    plain = sum(o.time * layers.area(o.node) for o in layers.operations.values()) * passes(again=False)
    after = (best.stored[-1].index if best.stored else 0) + 1
    return Plan(
        tiles={index: tile for share in best.shares for index, tile in share.tiles.items()},
        kept=frozenset(node.index for node in best.stored),
        whole_from=after if best.whole else None,
        peak=base + best.peak,
        time=best.time / plain,
        shares={index: time / best.time for share in best.shares for index, time in share.times.items()},
        lines=tuple(_described(layers, best, base, best.time / plain)),
    )


def _described(layers: Layers, candidate: Candidate, base: float, time: float) -> Iterator[str]:
    ends = [*candidate.stored, None]
    for share, end in zip(candidate.shares, ends, strict=True):
        start = f"after {layers.name(first)}" if (first := _before(ends, end)) else "from the image"
        stop = f"to {layers.name(end)}, kept whole ({layers.held(end) / 1e6:.0f} MB)" if end else "to the end"
        tiles = [f"tiles of {rows} × {columns} px of its output" for rows, columns in set(share.tiles.values())]
        yield f"{start} {stop}: {' and '.join(tiles) or 'not streamed'}"
    yield f"expected: at most {(base + candidate.peak) / 1e9:.2f} GB, {time:.2f} × the time of an undivided step"


def _before(ends: list[Node | None], end: Node | None) -> Node | None:
    place = ends.index(end)
    return ends[place - 1] if place else None


def resident_memory() -> int:
    """Bytes of memory that this process has."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = re.search(r"VmRSS:\s+(\d+)", text)
    assert found  # Linux says it of every process
    return 1024 * int(found[1])
