"""What leads to a sum over the image, such as a loss of every pixel, by blocks of rows that stay in a CPU's caches.

A loss makes several images as large as the network's output, and their gradients. Of a whole tile each is written to
memory, which the system clears first, and read again. A block's are gone before they leave the caches; and in the
backward pass it is computed again, which costs less than keeping them.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from gigapipe.spatial.constant import Rectangles
from gigapipe.spatial.operators.reductions import plus, sum_
from gigapipe.spatial.recording import Node, Ref
from gigapipe.spatial.refusals import once_differentiable
from gigapipe.spatial.tensor import SpatialTensor, index_of
from gigapipe.spatial.tile import Tile
from gigapipe.spatial.window import Interpolation, Interval, Rectangle
from gigapipe.spatial.workers import side_by_side

if TYPE_CHECKING:
    from gigapipe.spatial.segment import Segment

BLOCK = 15 * 2**18
"""Bytes at most of the largest image of a block: in a CPU's caches, and more than enough to start operations for."""


class Blocks(Node):
    """The operations of a segment that end in its sum, as one: of its inputs, as images, the plain tensor of a tile."""

    sums = True
    crops = False

    def __init__(self, segment: "Segment"):
        output = segment.output.node
        super().__init__(output.index)
        self.segment, self.results, self.layer = segment, output.results, output.layer
        self.args = tuple(segment.inputs)
        self.graded = any(node.graded for node in segment.nodes)
        self.function = self._summed
        images = {ref for node in segment.computed.values() for ref in node.operands}
        self.made = [ref.image.local.nbytes / math.prod(segment.size) for ref in images]
        """Bytes of each image, for a pixel of what is summed."""

    @property
    def pixels(self) -> float:
        """Of a block, at most; a row is never divided."""
        return BLOCK / max(self.made)

    def _summed(self, *images: SpatialTensor, valued: bool = True) -> torch.Tensor:
        return _Summed.apply(self, images, valued, *(x.local for x in images))

    def of(self, out: Rectangle) -> Iterator[Rectangle]:
        """The blocks of a tile."""
        rows = max(1, int(self.pixels / max(1, out.columns.size)))
        for start in range(out.rows.start, out.rows.stop, rows):
            yield Rectangle(Interval(start, min(start + rows, out.rows.stop)), out.columns)


def end_of(computed: dict[Node, Node]) -> list[Node]:
    """The last of what is computed for a sum, as far as blocks can compute it, if they gain anything.

    They can what works pixel by pixel, and interpolation; of parameters' gradients they know nothing.
    """
    found: list[Node] = []
    for made, node in reversed(computed.items()):
        near = node.accesses is None or all(isinstance(access, Interpolation) for access in node.accesses)
        if made is not node or node.wanting or not near:
            break
        found.insert(0, node)
    return found if len(found) > 1 else []


class _SumOfEach(Node):
    """The sum over images (batch, channels, …) that were joined by `cat`, in the shape that theirs would have."""

    sums = True

    def __init__(self, joined: Node, node: Node):
        super().__init__(node.index)
        images, along = joined.args
        _, dims = node.args
        self.args = images, dims, along - sum(dim < along for dim in dims)
        self.results, self.layer, self.graded, self.autocast = node.results, node.layer, node.graded, node.autocast

    @staticmethod
    def function(images: list[SpatialTensor], dims: tuple[int, ...], along: int) -> torch.Tensor:
        return torch.cat([sum_(x, dims) for x in images], along)


def without_joining(computed: dict[Node, Node], output: Node) -> dict[Node, Node]:
    """What is computed of a block, without `cat` where its result is only summed: that is its largest image."""
    if output.function not in (torch.sum, torch.Tensor.sum) or len(output.args) != 2 or output.kwargs:
        return computed
    joined, dims = output.operands[0].node, output.args[1]
    users = [node for node in computed.values() if Ref(joined) in node.operands]
    if joined.is_source or joined.function is not torch.cat or joined.kwargs or users != [output]:
        return computed
    images, along = joined.args if len(joined.args) == 2 else (*joined.args, 0)
    dtypes = {image.image.dtype for image in images if isinstance(image, Ref)}
    alike = all(isinstance(image, Ref) for image in images) and dtypes == {Ref(joined).image.dtype}
    if not alike or not isinstance(dims, tuple) or min(*dims, along) < 0 or along in dims:
        return computed
    found = {made: node for made, node in computed.items() if made is not joined}
    return found | {output: _SumOfEach(joined, output)}


class _Summed(torch.autograd.Function):
    """The sum over a tile of `images`, of which it is given what is `local`, in the shape in which torch returns it.

    If it is not `valued`, it may have any value.
    """

    @staticmethod
    def forward(ctx, blocks: Blocks, images: tuple[SpatialTensor, ...], valued: bool, *local: torch.Tensor):
        segment, tile = blocks.segment, images[0].mesh
        ctx.blocks, ctx.out = blocks, tile.rectangle(segment.size)
        ctx.rectangles = [x.rectangle for x in images]
        ctx.save_for_backward(*local)
        if not valued or (isinstance(tile, Tile) and tile.out is None):  # a plan is made, without pixels
            (total,) = blocks.results
            return torch.zeros(total.shape, dtype=total.dtype, device=local[0].device)
        blocks_of_tile, total = list(blocks.of(ctx.out)), None

        def of_block(index: int) -> Callable[[], None]:
            needed, places = _needed(segment, blocks_of_tile[index], ctx.rectangles)
            parts = {ref: x[place] for ref, x, place in zip(segment.inputs, local, places, strict=True)}
            return functools.partial(taken, segment.compute(needed, parts, {}))

        def taken(summed: torch.Tensor) -> None:
            nonlocal total
            total = plus(total, summed)

        side_by_side(len(blocks_of_tile), _workers(), of_block)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        segment, local, asked = ctx.blocks.segment, ctx.saved_tensors, ctx.needs_input_grad[3:]
        blocks_of_tile = list(ctx.blocks.of(ctx.out))
        apart = segment.apart and all(rectangle == ctx.out for rectangle in ctx.rectangles)
        make = torch.empty_like if apart else torch.zeros_like
        totals = [make(x) if wanted else None for x, wanted in zip(local, asked, strict=True)]

        def of_block(index: int) -> Callable[[], None]:
            needed, places = _needed(segment, blocks_of_tile[index], ctx.rectangles)
            parts, wanting = {}, []
            for ref, x, total, place in zip(segment.inputs, local, totals, places, strict=True):
                parts[ref] = x[place].detach().requires_grad_(total is not None)
                if total is not None:
                    wanting.append((parts[ref], total[place]))
            with torch.enable_grad():
                summed = segment.compute(needed, parts, {}, valued=False)
            grads: Sequence[torch.Tensor | None] = [None] * len(wanting)
            if summed.requires_grad:  # else it is of what is detached, or a comparison
                grads = torch.autograd.grad(summed, [x for x, _ in wanting], grad.to(summed.dtype), allow_unused=True)
            return functools.partial(taken, [(found, total) for found, (_, total) in zip(grads, wanting, strict=True)])

        def taken(found: list[tuple[torch.Tensor | None, torch.Tensor]]) -> None:
            for part, total in found:
                if part is None:
                    total.zero_() if apart else None
                elif apart:
                    total.copy_(part)
                else:
                    total += part

        side_by_side(len(blocks_of_tile), _workers(), of_block)
        return None, None, None, *totals


def _workers() -> int:
    """How many threads compute blocks, one each: those that operations have here, if that is more than one."""
    threads = torch.get_num_threads()
    return threads if threads > 1 else 0


def _needed(segment: "Segment", block: Rectangle, held: list[Rectangle]) -> tuple[Rectangles, list[tuple]]:
    """What a block needs of all images, and where that is in the inputs, of which these rectangles are held."""
    needed = segment.rectangles(block)
    inputs = zip(segment.inputs, held, strict=True)
    return needed, [index_of(ref.image, needed[ref.node], rectangle) for ref, rectangle in inputs]
