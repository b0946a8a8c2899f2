"""Which images to keep where norms look at the whole image.

A norm's statistics are a sum over the image before it. If that image is kept, it is made once for the sums and for what
follows; if not, all that leads to it is computed again for each. So all at which norms look, and all that layers hand
on, is kept to begin with. As long as that does not fit, what saves least time for its bytes is given up, or put into
another tier (the host's memory, a disk), if there is one and that takes less time than to make it again.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch

from gigapipe.spatial.layers import Layers, Tiled
from gigapipe.spatial.recording import Node, Ref
from gigapipe.spatial.segment import needed_nodes
from gigapipe.spatial.speed import Tier


class Kept(NamedTuple):
    """A way to compute a model that keeps some images, what it takes, and its segments by their last operations."""

    time: float
    peak: float
    nodes: frozenset[Node]
    segments: dict[Node, Tiled]
    away: Mapping[Node, Tier]
    """Of the nodes, those that lie in another tier, and in which."""
    taken: Mapping[Tier, float]
    """Bytes of each tier, at most."""
    uses: dict[Node, int]
    """How many segments are made of what each of the nodes makes."""


def normalises(layers: Layers) -> bool:
    """Whether sums over the image are needed before the last operation."""
    sums = [node.index for node in layers.nodes if node.sums]
    return bool(sums) and any(node.index > sums[0] and node.single and not node.sums for node in layers.nodes)


def ways(layers: Layers, available: float) -> Iterator[tuple[Kept, Node | None]]:
    """For each image after which nothing is streamed, or None, the fastest way that was found to fit; or the least.

    The layers up to that image are meant. All fit `available` bytes together with what is not streamed.
    """
    sizes = [layers.area(cut) for cut in layers.cuts]
    smaller = [cut for cut, size, before in zip(layers.cuts, sizes, [math.inf, *sizes], strict=False) if size < before]
    for end in (None, *smaller):
        yield _fitting(layers, end, available), end


def _fitting(layers: Layers, end: Node | None, available: float) -> Kept:
    last = end.index if end else math.inf
    looked_at = {node.operands[0].node for node in layers.nodes if node.sums}
    nodes = {node for node in looked_at.union(layers.cuts) if node.index <= last and node.single and not node.is_source}
    every = _way(layers, frozenset(nodes), end, math.inf)
    training, movable = torch.is_grad_enabled(), nodes - {end}
    given_up = {n: _way(layers, frozenset(nodes - {n}), end, math.inf).time - every.time for n in movable}
    moved, choices = {}, [set()]
    if layers.tiers:
        fastest, uses = layers.tiers[0], every.uses
        moved = {node: layers.time_away(node, uses.get(node, 1), training, fastest) for node in movable}
        # What an image costs that is given up grows with those given up before: all elsewhere may be better.
        choices += [{node for node in movable if moved[node] < given_up[node]}, movable]
    best = None
    for to_move in choices:
        costs = {n: (moved if n in to_move else given_up)[n] / layers.held(n) for n in movable}
        way = _reduced(layers, frozenset(nodes), end, available, costs, to_move)
        best = way if best is None else _better(best, way, available)
    assert best
    return best


def _reduced(
    layers: Layers, nodes: frozenset[Node], end: Node | None, available: float, costs: dict[Node, float], to_move: set
) -> Kept:
    """Until all fits, the cheapest is put into the fastest tier with room, if it is one of `to_move`, or given up."""
    best, away = _way(layers, nodes, end, available), {}
    for node in sorted(costs, key=lambda node: (costs[node], node.index)):
        if best.peak <= available and costs[node] > 0:
            break
        for tier in layers.tiers if node in to_move else ():
            found = _way(layers, nodes, end, available, away | {node: tier})
            if found.taken[tier] <= tier.free:
                away = away | {node: tier}
                break
        else:
            nodes -= {node}
            found = _way(layers, nodes, end, available, away)
        best = _better(best, found, available)
    return best


def _better(one: Kept, other: Kept, available: float) -> Kept:
    """The faster of two that fit; or else what needs less."""
    return min(one, other, key=lambda way: (max(way.peak, available), way.time))


class _Part(NamedTuple):
    """A segment: what it makes of which images."""

    output: Node
    inputs: frozenset[Ref]


def _parts(layers: Layers, kept: frozenset[Node], end: Node | None) -> list[_Part]:
    """The segments of a step in their order (as `stream.Program` computes them)."""
    held: set[Ref] = set()
    found = []

    def make(output: Node) -> None:
        for node in needed_nodes(output, held)[0]:
            if node in kept and node is not output and Ref(node) not in held:
                make(node)
        inputs = needed_nodes(output, held)[1]
        found.append(_Part(output, frozenset(ref for ref in inputs if not ref.node.is_source)))
        if not output.sums:
            held.add(Ref(output))

    for output in layers.outputs(None, end):
        if Ref(output) not in held:
            make(output)
    return found


def _way(
    layers: Layers, kept: frozenset[Node], end: Node | None, available: float, away: Mapping[Node, Tier] | None = None
) -> Kept:
    """Segment after segment, each by the fastest tiles that fit."""
    parts, training, away = _parts(layers, kept, end), torch.is_grad_enabled(), away or {}
    number = {part.output: i for i, part in enumerate(parts)}
    uses: dict[Node, list[int]] = {}
    for i, part in enumerate(parts):
        for ref in part.inputs:
            uses.setdefault(ref.node, []).append(i)
    images = [part.output for part in parts if part.output in uses or part.output is end]
    size = {node: layers.held(node) for node in images}

    def bytes_of(i: int, part: _Part, counted: Callable[[Node], bool]) -> tuple[float, float]:
        """Of whole images and their gradients, those `counted`, while a segment is computed, forward and backward."""
        forward = sum(size[node] for node in images if counted(node) and number[node] <= i)
        if not training:
            return forward, 0.0
        before = [node for node in images if counted(node) and number[node] < i]
        # Backward: what this segment and those before it begin with; gradients that wait, and those that come of this.
        backward = sum(size[node] for node in before if uses[node][0] <= i)
        backward += sum(size[node] for node in before if uses[node][-1] > i)
        own = [part.output, *(ref.node for ref in part.inputs)]
        return forward, backward + sum(size[node] for node in own if node in size and counted(node))

    time = peak = 0.0
    taken = dict.fromkeys(layers.tiers, 0.0)
    segments, copies = {}, 0.0
    for i, part in enumerate(parts):
        forward, backward = bytes_of(i, part, lambda node: node not in away)
        # Forward, copies are beside what they are of; backward, where that is gone, the first is in its place.
        copies = (copies if training else 0.0) + sum(layers.copied(ref.node) for ref in part.inputs)
        forward += copies + layers.copied(None)
        backward += copies + layers.copied(None) - sum(layers.copied(n) for n, of in uses.items() if of[0] <= i)
        read, written = any(ref.node in away for ref in part.inputs), part.output in away

        def needs(tiled: Tiled, forward=forward, backward=backward, read=read, written=written) -> float:
            in_flight = read * tiled.read + written * tiled.written
            of_training = backward + tiled.backward + 2 * in_flight if training else 0.0
            return max(forward + tiled.forward + in_flight, of_training)

        tiled = layers.fastest(functools.partial(layers.tiled, *part), needs, available)
        segments[part.output] = tiled
        time, peak = time + tiled.time, max(peak, needs(tiled))
        for tier in taken:
            taken[tier] = max(taken[tier], *bytes_of(i, part, lambda node, tier=tier: away.get(node) == tier))
    there = {node: away[node] for node in images if node in away}
    time += sum(layers.time_away(node, len(uses[node]), training, tier) for node, tier in there.items())
    if end:
        whole, held = layers.whole(end), sum(size[node] for node in images if node not in away)
        held += training * (copies + layers.copied(None))
        time += whole.time
        peak = max(peak, held + (size[end] + whole.backward if training else whole.forward))
    used = {node: len(found) for node, found in uses.items()}
    return Kept(time, peak, frozenset(images), segments, there, taken, used)
