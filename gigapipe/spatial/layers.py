"""A recorded model as a planner sees it: its operations, where it can be cut, and what its parts cost by tiles.

What every operation takes follows from the shapes (`costs.py`). Nothing is tried out.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import torch

from gigapipe.spatial.costs import (
    SIDE_BY_SIDE,
    Operation,
    Spent,
    bytes_a_pixel,
    largest_part,
    passes,
    size_of,
)
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.on_host import AHEAD, ASYNCHRONOUS
from gigapipe.spatial.recording import Node, Ref
from gigapipe.spatial.segment import Segment, needed_nodes
from gigapipe.spatial.speed import CPU, Speed, Tier
from gigapipe.spatial.window import Interval
from gigapipe.spatial.workers import waiting

GRIDS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64, 80, 96, 128)
"""Into how many tiles an axis may be cut."""


@dataclass(frozen=True)
class Share:
    """What tiles of a size cost between two cuts: bytes at a time, forward and backward, and the time of it all."""

    tiles: dict[int, tuple[int, int]]
    forward: float
    backward: float
    times: dict[int, float]
    """Of what ends with each of these operations."""
    spent: Spent
    """The same time, by what it goes to."""
    read: float = 0.0
    """Bytes of inputs that are on their way, at a time, if they lie in another tier."""
    written: float = 0.0
    """Bytes of results that are on their way, at a time, if they go to another tier."""

    @functools.cached_property
    def time(self) -> float:
        return sum(self.times.values())


OVERLAPPING = 1.5
"""Where tiles take so many times the time of larger ones, still smaller ones are not looked at."""

BEGINNING = 3
"""Time to begin a tile, in operations that are started: what it needs is found, and cut out or read."""

READING = 1.5
"""Time to decode a byte of an image that is read, and to make it a float, in that of one that is moved (measured)."""

HEAP = 5_000_000
"""Bytes that a thread which computes tiles has beside what is counted: its own heap, of small tensors (measured where
what is freed is given back, from 1 MB on)."""


class Tiled(NamedTuple):
    """What a segment costs by tiles of a size: bytes at a time, forward and backward, and the time of it all."""

    tile: tuple[int, int]
    forward: float
    backward: float
    spent: Spent
    time: float
    """All that is spent."""
    read: float
    """Bytes of inputs that are on their way, at a time, if they lie in another tier."""
    written: float
    """Bytes of results that are on their way, at a time, if they go to another tier."""


Cost = TypeVar("Cost", Share, Tiled)
P = ParamSpec("P")
Found = TypeVar("Found")


def remembered(method: Callable[Concatenate["Layers", P], Found]) -> Callable[Concatenate["Layers", P], Found]:
    """As `functools.cache`, of a method; what it found goes when the layers do."""

    @functools.wraps(method)
    def remembering(self: "Layers", *args: P.args, **kwargs: P.kwargs) -> Found:
        key = method, *args, *kwargs.items()
        if key not in self.found:
            self.found[key] = method(self, *args, **kwargs)
        return self.found[key]

    return remembering


class Layers:
    """A recorded model: its operations, where it can be cut, and what the parts cost on one rank.

    `workers` threads compute tiles side by side; 0: one after another, by all threads. Images may also lie in `tiers`,
    the fastest first. With `read`, images are read when they are used, or so many tiles `ahead`.
    """

    def __init__(
        self,
        nodes: list[Node],
        mesh: Mesh,
        workers: int = 0,
        speed: Speed = CPU,
        tiers: tuple[Tier, ...] = (),
        heap: float = HEAP,
        read: bool = False,
        ahead: int = 0,
    ):
        self.found: dict[tuple, Any] = {}
        self.heap, self.read, self.ahead = heap, read, ahead
        self.mesh, self.workers, self.speed, self.tiers = mesh, workers, speed, tiers
        self.sources, self.nodes = ([node for node in nodes if node.is_source is wanted] for wanted in (True, False))
        self.operations = {node: Operation.of(node, node, speed) for node in self.nodes}
        self._fused: dict[Node, Operation] = {}
        self.last_use = {ref.node: node.index for node in self.nodes for ref in node.operands}
        self.cuts = list(self._cuts())

    def operation(self, made: Node, node: Node) -> Operation:
        """What makes a node's results: it itself, or the one `node` that takes its place in every segment."""
        known = self.operations if node is made else self._fused
        if made not in known:
            known[made] = Operation.of(made, node, self.speed)
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

    def copied(self, first: Node | None) -> float:
        """Bytes of copies with other ranks' pixels that a segment keeps of what it begins with; None: the sources."""
        if self.mesh.image_ranks == 1:
            return 0.0
        return self.held(first) if first else sum(map(self.held, self.sources)) * (not self.read)

    def time_away(self, node: Node, uses: int, training: bool, tier: Tier) -> float:
        """What it takes to keep in a tier what a node makes, of which so many segments are made.

        It is written once, and read by each of them; in training they read it again, and add to its gradient, which
        is read once more by whoever made it.
        """
        return tier.byte * self.held(node) * (1 + uses + (training and uses + 2 * uses))

    def time_held(self, node: Node, training: bool) -> float:
        """What it takes to keep in memory what a node makes: it is copied there; so is its gradient, of other tiles."""
        return (2 + 2 * training) * self.held(node) * self.speed.byte

    def outputs(self, first: Node | None, last: Node | None) -> list[Node]:
        """What is computed between two cuts: sums over the image, and the second cut itself or the last results."""
        start, stop = first.index if first else 0, last.index if last else math.inf
        between = [node for node in self.nodes if start < node.index <= stop]
        return [n for n in between if n.sums or n is last or (last is None and n not in self.last_use)]

    @remembered
    def streamed(self, first: Node | None, last: Node | None, grid: int) -> Share:
        """The nodes between two cuts, each axis in `grid` tiles."""
        held = frozenset({Ref(first)} if first else ())
        found = {output.index: self.tiled(output, held, grid) for output in self.outputs(first, last)}
        return Share(
            {index: segment.tile for index, segment in found.items()},
            max((segment.forward for segment in found.values()), default=0.0),
            max((segment.backward for segment in found.values()), default=0.0),
            {index: segment.time for index, segment in found.items()},
            sum((segment.spent for segment in found.values()), Spent()),
            max((segment.read for segment in found.values()), default=0.0),
            max((segment.written for segment in found.values()), default=0.0),
        )

    @remembered
    def tiled(self, output: Node, held: frozenset[Ref], grid: int) -> Tiled:
        """The segment that makes `output` of images that are `held`, each axis in `grid` tiles."""
        segment, operations, weights = self._segment(output, held)
        inputs, owned = segment.inputs, self.owned(output)
        high, wide = (min(n, 8 * math.ceil(n / grid / 8)) for n in owned)
        count = [math.ceil(n / t) for n, t in zip(owned, (high, wide), strict=True)]
        middle = [
            Interval((c // 2) * t, min(n, (c // 2 + 1) * t)) for c, t, n in zip(count, (high, wide), owned, strict=True)
        ]
        rows, columns = (segment.needed(axis, interval) for axis, interval in enumerate(middle))
        areas = {node: rows[node].size * columns[node].size for node in rows}
        parts = sum(bytes_a_pixel(ref) * areas[ref.node] for ref in inputs)
        looked_at = sum(bytes_a_pixel(ref) * areas[ref.node] for ref in inputs if self.read and ref.node.is_source)
        forward, backward = self._at_a_time(operations, areas, copied=True)
        # What is held is in memory, and no cache has it.
        held_parts = parts - looked_at + sum(operation.made * areas[output] for operation in operations[-1:])
        from_memory = held_parts * (self.speed.byte - self.speed.moving(held_parts))
        computed = self.spent(operations, areas) + Spent(0.0, from_memory, BEGINNING * self.speed.operation)
        once = computed.times(passes(again=True)) + Spent(reading=2 * READING * self.speed.byte * looked_at)
        tiles = math.prod(count)
        spent = once.times(self._tiles_of_all_threads(tiles))
        side = min(self.workers, tiles) or 1
        # A heap that keeps what tiles free has at most as much again as a tile (measured).
        heap = min(self.heap, HEAP + max(forward, backward)) if self.workers else 0
        # Beside those that are computed, tiles wait whose results, or gradients, are not yet taken.
        made = 0.0 if output.sums else self.held(output) / tiles
        # A GPU has copies of the tiles that come next; of a disk, a CPU has the pages of those that it computes.
        sent = AHEAD if segment.device.type in ASYNCHRONOUS else 0
        in_flight = sent or side + waiting(side)
        return Tiled(
            (high, wide),
            side * (forward + parts + heap) + waiting(side) * made + (self.ahead + sent) * looked_at,
            side * (backward + 2 * parts + heap) + waiting(side) * (parts + weights) + (self.ahead + sent) * looked_at,
            spent,
            spent.total,
            in_flight * parts,
            in_flight * made,
        )

    @remembered
    def _segment(self, output: Node, held: frozenset[Ref]) -> tuple[Segment, list[Operation], int]:
        """What makes `output` of images that are `held`, its operations, and the bytes of weights with gradients."""
        segment = Segment(self.mesh, *needed_nodes(output, held), Ref(output))
        weights = {id(t): t.nbytes for node in segment.nodes for t in node.tensors if t.requires_grad}
        operations = [self.operation(made, node) for made, node in segment.computed.items()]
        return segment, operations, sum(weights.values())

    def _tiles_of_all_threads(self, tiles: int) -> float:
        """How many tiles, computed one after another by all threads, take the time of so many side by side."""
        if not self.workers:
            return tiles
        return SIDE_BY_SIDE * math.ceil(tiles / self.workers) * self.workers

    def fastest(self, of_grid: Callable[[int], Cost], needs: Callable[[Cost], float], available: float) -> Cost:
        """Of what tiles cost, by the number of them along each axis, the fastest that fits; or else the smallest.

        The largest tiles that fit have the least overlap, but may be too few to share out among the workers, and too
        large for the caches.
        """
        best = None
        for grid in GRIDS:
            cost = of_grid(grid)
            if needs(cost) <= available and (best is None or cost.time < best.time):
                best = cost
            if best is not None and cost.time > OVERLAPPING * best.time:
                return best
        return best or cost

    def recorded(self, first: Node | None) -> bool:
        """Whether the nodes after a cut are computed at once as they are recorded: of one result, on one rank.

        Not where norms look at the whole image: their composed form takes more than torch's.
        """
        outputs = self.outputs(first, None)
        return self.mesh.image_ranks == 1 and len(outputs) == 1 and outputs[0] not in self.last_use

    @remembered
    def whole(self, first: Node | None) -> Share:
        """The nodes after a cut, undivided."""
        operations = [self.operations[node] for node in self.nodes if node.index > (first.index if first else 0)]
        if self.recorded(first):
            (output,) = self.outputs(first, None)
            segment = Segment(self.mesh, *needed_nodes(output, {Ref(first)} if first else ()), Ref(output))
            operations = [self.operation(made, node) for made, node in segment.computed.items()]
        areas = {operation.node: self.area(operation.node) for operation in operations}
        divided = self.mesh.rows * self.mesh.columns > 1
        forward, backward = self._at_a_time(operations, areas, copied=divided)  # beside its neighbours' pixels
        spent = Spent()
        for operation in operations:
            spent += self.spent([operation], areas).times(passes(again=operation.block > 0))
        used = {ref.node for operation in operations for ref in operation.operands}
        sources = sum(self.held(node) for node in self.sources if self.read and node in used)
        return Share({}, forward + sources, backward + sources, {0: spent.total}, spent)

    def spent(self, operations: Iterable[Operation], areas: Mapping[Node, float]) -> Spent:
        """The time of operations that make so many pixels each, once, forward."""
        return sum((operation.spent(areas[operation.node], self.speed) for operation in operations), Spent())

    @staticmethod
    def _at_a_time(operations: list[Operation], areas: Mapping[Node, float], copied: bool) -> tuple[float, float]:
        """Bytes held at the worst moment: forward without a graph, and in a pass with one and backward.

        `copied`: what needs pixels beyond the edge of its operand copies that.
        """
        last = {ref: operation.node for operation in operations for ref in operation.operands}
        made = {operation.node: operation.made * areas[operation.node] for operation in operations}
        ends: dict[Node, list[Ref]] = {}
        for ref, node in last.items():
            ends.setdefault(node, []).append(ref)
        live = forward = kept = backward = 0.0
        seen: set[Ref] = set()
        for operation in operations:
            pixels = areas[operation.node]
            padded = operation.padded * pixels if copied else 0.0
            changed = operation.operands[0] if operation.node.in_place else None
            if changed and changed.node not in made:  # what is held is copied
                made[operation.node] = bytes_a_pixel(changed) * pixels
            live += made[operation.node]
            if changed and changed.node in made:  # the same memory
                made[operation.node], made[changed.node] = made[changed.node], 0.0
            beside = operation.beside(pixels)
            forward = max(forward, live + padded + beside)
            live -= sum(made.get(ref.node, 0.0) for ref in ends.get(operation.node, []))
            images = [ref for ref in operation.keeping.images if ref not in seen and ref.node in made]
            seen.update(images)
            kept += sum(bytes_a_pixel(ref) * areas[ref.node] for ref in images)
            kept += operation.keeping.more * pixels + padded
            read = (bytes_a_pixel(ref) * areas.get(ref.node, 0) for ref in operation.operands)
            largest = max([made[operation.node], *read])
            backward = max(backward, kept + operation.gradients * largest + beside)
        return forward, backward
