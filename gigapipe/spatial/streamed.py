"""A segment's tiles, forward and backward, as one function of autograd.

Forward, nothing is kept but the output. Backward, a tile is computed again, with its graph, and its gradients are added
up: parameters' in one place, inputs' where they overlap.
"""

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch

from gigapipe.spatial.constant import Cells, Division, Pixel, Rectangles, cut
from gigapipe.spatial.halo import layout
from gigapipe.spatial.on_host import Transfer
from gigapipe.spatial.operators.convolution import threshold_backward
from gigapipe.spatial.operators.reductions import plus, summing
from gigapipe.spatial.reading_ahead import ReadAhead, read_ahead
from gigapipe.spatial.recording import Ref
from gigapipe.spatial.refusals import once_differentiable
from gigapipe.spatial.segment import Segment
from gigapipe.spatial.tensor import SpatialTensor, index_of
from gigapipe.spatial.tile import dense
from gigapipe.spatial.torch_internals import has_memory_to_itself, version_of
from gigapipe.spatial.window import Rectangle
from gigapipe.spatial.workers import side_by_side

Found = tuple[torch.Tensor | None, torch.Tensor]
"""A gradient, if there is one, and where such are summed up."""


class Streamed(torch.autograd.Function):
    """A segment's output on this rank, of what it needs of each input (None for one that is read) and `parameters`."""

    @staticmethod
    def forward(ctx, segment: Segment, inputs: int, *tensors: torch.Tensor | None) -> torch.Tensor:
        ctx.segment, ctx.inputs = segment, inputs
        ctx.save_for_backward(*tensors)
        result = _forward(segment, tensors[:inputs])
        # Not saved by torch, which would keep it to the end of the backward pass.
        kept = segment.rectifies and any(ctx.needs_input_grad)
        ctx.rectified, ctx.version = result.detach() if kept else None, version_of(result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        ctx.segment.done_with()
        if away := ctx.segment.away.get(ctx.segment.output):
            away.complete()
        saved = ctx.saved_tensors  # once: checkpointing lets nobody look twice
        held, tensors = saved[: ctx.inputs], saved[ctx.inputs :]
        wanted = ctx.needs_input_grad[2:]
        rectified, ctx.rectified = ctx.rectified, None
        # In a second backward pass it is gone, and after a change in place it is another: then it is computed again.
        if before := rectified is not None and version_of(rectified) == ctx.version:
            into = {"grad_input": grad} if has_memory_to_itself(grad) else {}
            grad = threshold_backward(grad, rectified, 0, **into)
        del rectified  # as large as the gradient
        return None, None, *_backward(ctx.segment, held, tensors, wanted, grad, before)


def parameters(segment: Segment) -> list[torch.Tensor]:
    """The plain tensors in a segment's nodes that have a gradient, each once."""
    return list({id(t): t for node in segment.passing for t in node.wanting}.values())


def _reading(
    segment: Segment, held: tuple[torch.Tensor | None, ...], pieces: Sequence[Rectangle | None]
) -> AbstractContextManager[ReadAhead[dict[Ref, torch.Tensor]]]:
    """What pieces of the output need of the inputs that are read, where the reader leaves it."""
    readers = {ref: ref.node.read for ref, x in zip(segment.inputs, held, strict=True) if x is None and ref.node.read}

    def read(index: int) -> dict[Ref, torch.Tensor]:
        piece = pieces[index]
        if piece is None:
            return {}
        needed = segment.rectangles(piece)
        return {ref: of(needed[ref.node]) for ref, of in readers.items()}

    return read_ahead(len(pieces), segment.ahead if readers else 0, read)


def _part(
    ref: Ref, held: torch.Tensor | None, whole: Rectangles, needed: Rectangles, read: dict[Ref, torch.Tensor]
) -> torch.Tensor:
    """A tile of an input: cut from what is held, or else as it was read."""
    return read[ref] if held is None else held[index_of(ref.image, needed[ref.node], whole[ref.node])]


def _forward(segment: Segment, held: tuple[torch.Tensor | None, ...]) -> torch.Tensor:
    segment.refuse_changes()
    owned = segment.mesh.rectangle(segment.size)
    result = None
    whole = segment.given
    tiles = [] if owned.empty else segment.tiles()
    there = {ref: (x, whole[ref.node]) for ref, x in zip(segment.inputs, held, strict=True) if tiles and x is not None}
    cells = Cells(segment.nodes, segment.inputs, segment.along, tiles, there)
    tensors, transfer = segment.lowered(segment.folded({})), Transfer(segment.device)

    def of_tile(index: int) -> Callable[[], None]:
        out = tiles[index]
        needed = segment.rectangles(out)
        transfer.next_tile()
        segment.read_ahead(out, there)
        read = reading.take(index)
        parts = {ref: _part(ref, x, whole, needed, read) for ref, x in zip(segment.inputs, held, strict=True)}
        division, pixels = cells.divide(out, parts, segment.device)
        if division.computed:
            parts = {ref: transfer.send(x) for ref, x in parts.items()}
        computed = []
        for rectangle in division.computed:
            inner = segment.rectangles(rectangle)
            computed.append(segment.compute(inner, cut(parts, inner, needed), tensors))
        return functools.partial(taken, index, division, pixels, computed)

    def taken(index: int, division: Division, pixels: dict[tuple[bytes, ...], Pixel], computed: list[torch.Tensor]):
        nonlocal result
        segment.divisions[tiles[index]] = division
        segment.pixels = pixels | segment.pixels  # of equals the first stays
        for rectangle in division.computed:
            tile = computed.pop(0)
            if segment.output.node.sums:
                result = plus(result, tile)
            elif rectangle == owned and segment.output not in segment.away:
                result = tile
            else:
                if result is None:
                    result = _room(segment, tile)
                part = result[index_of(segment.output.image, rectangle, owned)]
                transfer.bring(tile, part.device, part.copy_)
        segment.release()
        segment.report("forward", index + 1, len(tiles))

    with _reading(segment, held, tiles) as reading:
        side_by_side(len(tiles), segment.workers, of_tile)
    transfer.finish()
    results = {
        values: segment.compute(segment.rectangles(pixel.out), pixel.parts, tensors)
        for values, pixel in segment.pixels.items()
    }
    # Last, for the others tell the memory format.
    for cell, values in (pair for division in segment.divisions.values() for pair in division.cells.items()):
        pixel = results[values]
        if segment.output.node.sums:
            result = plus(result, pixel, math.prod(cell.shape))
        else:
            if result is None:
                result = _room(segment, pixel)
            result[index_of(segment.output.image, cell, owned)] = pixel
    segment.release()
    return _nothing(segment) if result is None else result.to(segment.output.result.dtype)


def _room(segment: Segment, tile: torch.Tensor) -> torch.Tensor:
    """For what this rank owns of the output, of the dtype and memory format of one of its tiles."""
    image, owned = segment.output.image, segment.mesh.rectangle(segment.size)
    if away := segment.away.get(segment.output):
        return away.room(_like(image, tile, owned, "meta"))
    return _like(image, tile, owned, tile.device)


def _like(image: SpatialTensor, tile: torch.Tensor, rectangle: Rectangle, device: torch.device | str) -> torch.Tensor:
    """An empty tensor that holds a rectangle of an image, of the dtype and memory format of one of its tiles."""
    shape = list(image.shape)
    for axis, interval in zip(image.axes, rectangle, strict=True):
        shape[axis] = interval.size
    return torch.empty(shape, dtype=tile.dtype, device=device, memory_format=layout(tile))


def _nothing(segment: Segment) -> torch.Tensor:
    """The output of a rank that owns none."""
    if segment.output.node.sums:
        total = segment.output.result
        return torch.zeros(total.shape, dtype=total.dtype, device=total.device)
    image = segment.output.image
    return _like(image, image.local, segment.mesh.rectangle(segment.size), image.device)


def _backward(
    segment: Segment,
    held: tuple[torch.Tensor | None, ...],
    tensors: tuple[torch.Tensor, ...],
    wanted: tuple[bool, ...],
    grad: torch.Tensor,
    before_relu: bool,
) -> list[torch.Tensor | None]:
    """Gradients of the inputs and of the plain tensors, given that of the output, or of what its ReLU is of."""
    segment.refuse_changes()
    owned = segment.mesh.rectangle(segment.size)
    whole = segment.given
    leaves = [t.detach().requires_grad_() for t in tensors]
    stand_ins = {id(t): leaf for t, leaf in zip(parameters(segment), leaves, strict=True)}
    with torch.enable_grad():
        folded = segment.folded(stand_ins)
    lowered = {key: t.detach().requires_grad_(folded[key].requires_grad) for key, t in segment.lowered(folded).items()}
    stand_ins |= lowered
    totals, returned = _totals(segment, held, wanted)
    sums = [torch.zeros_like(leaf) for leaf in leaves]
    made = [key for key, t in lowered.items() if t.requires_grad and leaves]
    sums_of_made = [torch.zeros_like(folded[key]) for key in made]
    asking = [*zip(leaves, sums, strict=True), *zip([lowered[key] for key in made], sums_of_made, strict=True)]
    tiles = [] if owned.empty else segment.tiles()
    every_pixel = any(total is not None for total in totals)  # of inputs there is a gradient
    divisions = [Division([out], {}) if every_pixel else segment.divisions[out] for out in tiles]
    pieces = [(i, part) for i, division in enumerate(divisions) for part in (division.cells, *division.computed)]
    sums_of_pixels: dict[tuple[bytes, ...], torch.Tensor] = {}
    by_mean = any(node.autocast == torch.float16 for node in segment.nodes)

    there = {ref: (x, whole[ref.node]) for ref, x in zip(segment.inputs, held, strict=True) if tiles and x is not None}
    if tiles and segment.output in segment.away:
        there[segment.output] = grad, owned
    transfer = Transfer(segment.device)

    def of_piece(index: int) -> Callable[[], None]:
        number, part = pieces[index]
        transfer.next_tile()
        segment.read_ahead(tiles[number], there)
        last = index + 1 == len(pieces) or pieces[index + 1][0] != number
        read = reading.take(index)
        found = of_rectangle(part, read) if isinstance(part, Rectangle) else []
        cells = part if isinstance(part, dict) else {}
        of_cells = [(v, _summed(segment, c, _of_rectangle(segment, grad, c, owned))) for c, v in cells.items()]
        return functools.partial(taken, found, of_cells, number + 1 if last else None)

    def of_rectangle(computed: Rectangle, read: dict[Ref, torch.Tensor]) -> list[Found]:
        needed = segment.rectangles(computed)
        parts, wanting = {}, list(asking)
        for ref, x, total in zip(segment.inputs, held, totals, strict=True):
            part = transfer.send(_part(ref, x, whole, needed, read))
            parts[ref] = part.detach().requires_grad_(total is not None)
            if total is not None:
                wanting.append((parts[ref], total[index_of(ref.image, needed[ref.node], whole[ref.node])]))
        of_tile = _of_rectangle(segment, grad, computed, owned)
        if segment.output in segment.away:
            of_tile = transfer.send(of_tile)
        return _gradients(segment, needed, parts, stand_ins, wanting, of_tile, before_relu) if wanting else []

    def taken(found: list[Found], of_cells: list, tiles_done: int | None) -> None:
        _add(found[: len(asking)])
        for part, total in found[len(asking) :]:
            if segment.apart:
                total.zero_() if part is None else total.copy_(part)  # which need not have been zeros
            elif part is not None:
                transfer.bring(part, total.device, total.add_)
        for values, summed in of_cells:
            sums_of_pixels[values] = sums_of_pixels.get(values, 0) + summed
        segment.release()
        if tiles_done:
            segment.report("backward", tiles_done, len(tiles))

    with _reading(segment, held, [part if isinstance(part, Rectangle) else None for _, part in pieces]) as reading:
        side_by_side(len(pieces), segment.workers, of_piece)
    transfer.finish()
    for values, summed in sums_of_pixels.items() if leaves else ():
        pixel = segment.pixels[values]
        # The sum of many pixels' gradients is beyond float16: there their mean goes on, and is multiplied at the end.
        count = sum(math.prod(c.shape) for d in divisions for c, v in d.cells.items() if v == values) if by_mean else 1
        of_all = summed / count if by_mean else summed
        found = _gradients(segment, segment.rectangles(pixel.out), pixel.parts, stand_ins, asking, of_all, before_relu)
        times = [(g if g is None else g.to(total.dtype) * count, total) for g, total in found]
        _add(times if by_mean else found)
    if made:
        of_folded = torch.autograd.grad([folded[key] for key in made], leaves, sums_of_made, allow_unused=True)
        _add(list(zip(of_folded, sums, strict=True)))
    return returned + sums


def _totals(
    segment: Segment, held: tuple[torch.Tensor | None, ...], wanted: tuple[bool, ...]
) -> tuple[list[torch.Tensor | None], list[torch.Tensor | None]]:
    """To which the inputs' gradients are added, and what of them autograd is to be given."""
    totals: list[torch.Tensor | None] = []
    returned: list[torch.Tensor | None] = []
    for ref, x, asked in zip(segment.inputs, held, wanted, strict=False):
        total, new = None, True
        if asked and x is not None:
            away = segment.away.get(ref)
            new_like = torch.empty_like if segment.apart else torch.zeros_like
            total, new = away.gradient(x) if away else (new_like(x), True)
        totals.append(total)
        returned.append(total if new else None)
    return totals, returned


def _of_rectangle(segment: Segment, grad: torch.Tensor, out: Rectangle, owned: Rectangle) -> torch.Tensor:
    """The gradient of a rectangle of the output, given that of all that is owned; of a sum it is the same."""
    return grad if segment.output.node.sums else grad[index_of(segment.output.image, out, owned)]


def _summed(segment: Segment, out: Rectangle, grad: torch.Tensor) -> torch.Tensor:
    """The gradient of the one pixel that stands for a cell, given that of the cell."""
    if segment.output.node.sums:
        return grad.to(summing(grad.dtype)) * math.prod(out.shape)
    return grad.sum(segment.output.image.axes, keepdim=True, dtype=summing(grad.dtype))


def _gradients(
    segment: Segment,
    rectangles: Rectangles,
    parts: dict[Ref, torch.Tensor],
    stand_ins: dict[int, torch.Tensor],
    wanting: list[tuple[torch.Tensor, torch.Tensor]],
    grad: torch.Tensor,
    before_relu: bool,
) -> list[Found]:
    """Compute a tile again: of each pair the gradient of the first, or None, and the second, which is its total."""
    with torch.enable_grad():
        tile = segment.compute(rectangles, parts, stand_ins, valued=False, before_relu=before_relu)
    if not tile.requires_grad:  # of what is detached, or a comparison
        return [(None, total) for _, total in wanting]
    # Not by backward(), which would store the gradient of a part in the memory format that a leaf's has.
    grad = dense(grad.to(tile.device, tile.dtype))
    grads = torch.autograd.grad(tile, [x for x, _ in wanting], grad, allow_unused=True)
    return [(found, total) for found, (_, total) in zip(grads, wanting, strict=True)]


def _add(found: list[Found]) -> None:
    """Add gradients to their totals, in place."""
    for grad, total in found:
        if grad is not None:
            total += grad
