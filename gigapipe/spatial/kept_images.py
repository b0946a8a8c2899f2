"""Which images to keep where norms look at the whole image.

A norm's statistics are a sum over the image before it. If that image is kept, it is made once for the sums and for what
follows; if not, all that leads to it is computed again for each. So all at which norms look, and all that layers hand
on, is kept to begin with. As long as that does not fit, what saves least time for its bytes is given up.
"""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from gigapipe.spatial.layers import Layers, Tiled
from gigapipe.spatial.recording import Node, Ref
from gigapipe.spatial.segment import needed_nodes


class Kept(NamedTuple):
    """A way to compute a model that keeps some images, what it takes, and its segments by their last operations."""

    time: float
    peak: float
    nodes: frozenset[Node]
    segments: dict[Node, Tiled]


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
    saved = {}
    for node in nodes - {end}:
        without = _way(layers, frozenset(nodes - {node}), end, math.inf)
        saved[node] = (without.time - every.time) / layers.held(node)
    best = _way(layers, frozenset(nodes), end, available)
    for node in sorted(saved, key=lambda node: (saved[node], node.index)):
        if best.peak <= available and saved[node] > 0:
            break
        nodes.discard(node)
        found = _way(layers, frozenset(nodes), end, available)
        best = min(best, found, key=lambda way: (max(way.peak, available), way.time))
    return best


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


def _way(layers: Layers, kept: frozenset[Node], end: Node | None, available: float) -> Kept:
    """Segment after segment, each by the fastest tiles that fit."""
    parts, training = _parts(layers, kept, end), torch.is_grad_enabled()
    number = {part.output: i for i, part in enumerate(parts)}
    uses: dict[Node, list[int]] = {}
    for i, part in enumerate(parts):
        for ref in part.inputs:
            uses.setdefault(ref.node, []).append(i)
    images = [part.output for part in parts if part.output in uses or part.output is end]
    size = {node: layers.held(node) for node in images}
    time = peak = 0.0
    segments = {}
    for i, part in enumerate(parts):
        forward = sum(size[node] for node in images if number[node] <= i)
        before = [node for node in images if number[node] < i]
        # Backward: what this segment and those before it begin with; gradients that wait, and those that come of this.
        backward = sum(size[node] for node in before if uses[node][0] <= i)
        backward += sum(size[node] for node in before if uses[node][-1] > i)
        backward += size.get(part.output, 0.0) + sum(size[ref.node] for ref in part.inputs)

        def needs(tiled: Tiled, forward=forward, backward=backward) -> float:
            return max(forward + tiled.forward, backward + tiled.backward if training else 0.0)

        tiled = layers.fastest(functools.partial(layers.tiled, *part), needs, available)
        segments[part.output] = tiled
        time, peak = time + tiled.time, max(peak, needs(tiled))
    if end:
        whole, held = layers.whole(end), sum(size.values())
        time += whole.time
        peak = max(peak, held + (size[end] + whole.backward if training else whole.forward))
    return Kept(time, peak, frozenset(images), segments)
