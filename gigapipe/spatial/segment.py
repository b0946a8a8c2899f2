"""A segment: what leads from images that are held to one that is made tile by tile, forward and backward.

Of each tile of the output the interval arithmetic of `window.py`, node by node from the last to the first, says which
rectangle of every image in between it needs, and so of the inputs. The nodes are then computed on those rectangles,
with torch's padding only where the image itself ends. Forward, nothing is kept but the output. Backward, a tile is
computed again, with its graph, and its gradients are added up: parameters' in one place, inputs' where they overlap.
"""

import functools
import itertools
import math
import threading
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from gigapipe.spatial.constant import Cells, Division, Pixel, Rectangles, cut
from gigapipe.spatial.fusing import Convolved, fused
from gigapipe.spatial.halo import layout
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.on_disk import OnDisk
from gigapipe.spatial.operators.reductions import plus, summing
from gigapipe.spatial.recording import Node, Ref, map_arguments, map_each
from gigapipe.spatial.refusals import once_differentiable
from gigapipe.spatial.tensor import SpatialTensor, cropped, index_of
from gigapipe.spatial.tile import Tile, looked_at
from gigapipe.spatial.window import Interval, Rectangle
from gigapipe.spatial.workers import side_by_side


class Step(NamedTuple):
    """What is computed of a tile at a time."""

    made: Node
    """Whose results."""
    node: Node
    """By which call."""
    last_used: list[Ref]
    """The images that nobody needs after it."""


Found = tuple[torch.Tensor | None, torch.Tensor]
"""A gradient, if there is one, and where such are summed up."""


def needed_nodes(output: Node, held: Container[Ref]) -> tuple[list[Node], list[Ref]]:
    """The nodes to compute for `output`, in order, and the sources and held images that they begin with."""
    nodes, waiting = {output}, [output]
    inputs: dict[Ref, None] = {}
    while waiting:
        for ref in waiting.pop().operands:
            if ref.node.is_source or ref in held:
                inputs[ref] = None
            elif ref.node not in nodes:
                nodes.add(ref.node)
                waiting.append(ref.node)
    return sorted(nodes, key=lambda node: node.index), sorted(inputs, key=lambda ref: (ref.node.index, ref.item))


@dataclass(eq=False)
class Segment:
    """The computation of `output` from `inputs`, by tiles of `tile` rows × columns of the output.

    If the output's node sums over the image, the tiles are those of its operand.
    """

    mesh: Mesh
    nodes: list[Node]
    inputs: list[Ref]
    output: Ref
    tile: tuple[int, int] = (1, 1)
    progress: Callable[[int, str, int, int], None] | None = None
    done_with: Callable[[], None] = lambda: None
    """Called when the backward pass begins: what was held for the forward pass alone can go."""
    workers: int = 0
    """How many threads compute a tile each, at a time; 0: tiles follow each other, each computed by all threads."""
    on_disk: dict[Ref, OnDisk] = field(default_factory=dict)
    """Of the inputs and the output, those that are not kept in memory."""
    divisions: dict[Rectangle, Division] = field(default_factory=dict)
    """Of each tile, found in the forward pass."""
    pixels: dict[tuple[bytes, ...], Pixel] = field(default_factory=dict)
    """Of the constants that cells begin with."""
    reading: threading.Lock = field(default_factory=threading.Lock)
    """Held by who reads a tile: a reader is called by one thread at a time."""
    _known: dict[tuple[int, Interval], dict[Node, Interval]] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of what is tiled."""
        return (self.output.node.operands[0] if self.output.node.sums else self.output).image.image_size

    @property
    def device(self) -> torch.device:
        """Where it is computed; what comes out may be elsewhere, as sums are that the device cannot make."""
        return self.inputs[0].image.device

    @functools.cached_property
    def apart(self) -> bool:
        """Whether no two tiles look at the same pixel of an input, and together they look at all."""
        return all(node.accesses is None for node in self.nodes)

    @functools.cached_property
    def given(self) -> Rectangles:
        """What this rank holds of each input: on one rank all, and of many what it owns with its halo."""
        if self.mesh.image_ranks == 1:
            return {ref.node: self.mesh.rectangle(ref.image.image_size) for ref in self.inputs}
        owned = self.mesh.rectangle(self.size)
        return {} if owned.empty else self.rectangles(owned)

    def report(self, direction: str, done: int, of: int) -> None:
        if self.progress:
            self.progress(self.output.node.index, direction, done, of)

    def release(self) -> None:
        """Leave to the disk what a tile has read and written of it."""
        for image in self.on_disk.values():
            image.release()

    def read_ahead(self, tile: Rectangle, there: dict[Ref, tuple[torch.Tensor, Rectangle]]) -> None:
        """Have what the next row of tiles needs of images `there`, each with what is held of it, read from the disk."""
        owned, step = self.mesh.rectangle(self.size), self.tile[0]
        rows = Interval(tile.rows.stop, min(tile.rows.stop + step, owned.rows.stop))
        if not self.on_disk or tile.columns.start > owned.columns.start or not rows.size:
            return
        needed = self.along(0, rows)
        for ref, (image, held) in there.items():
            if ref in self.on_disk:
                self.on_disk[ref].read_ahead(image, ref.image.axes[0], needed[ref.node].within(held.rows))

    def tiles(self) -> list[Rectangle]:
        """What this rank owns of the output, tile by tile: equal ones but for the last of a row or column."""
        cuts = [
            [Interval(start, min(start + step, owned.stop)) for start in range(owned.start, owned.stop, step)]
            for owned, step in zip(self.mesh.rectangle(self.size), self.tile, strict=True)
        ]
        return [Rectangle(*pair) for pair in itertools.product(*cuts)]

    def rectangles(self, out: Rectangle) -> Rectangles:
        """What of each node's results, inputs included, is needed for `out`."""
        rows, columns = (self.along(axis, interval) for axis, interval in enumerate(out))
        return {node: Rectangle(rows[node], columns[node]) for node in rows}

    def along(self, axis: int, out: Interval) -> dict[Node, Interval]:
        """The same along one axis; a row of tiles has it in common."""
        if (axis, out) not in self._known:
            found = {self.output.node: out}
            for node in reversed(self.nodes):
                for ref in node.operands:
                    needed = found[node]
                    if node.accesses:
                        needed = looked_at(node.accesses[axis], needed, ref.image.image_size[axis])
                    found[ref.node] = found.get(ref.node, needed).hull(needed)
            self._known[axis, out] = found
        return self._known[axis, out]

    def refuse_changes(self) -> None:
        """Raise RuntimeError if a plain tensor is no longer what it was when its operation was noted."""
        for node in self.nodes:
            node.refuse_changes()

    def compute(
        self,
        rectangles: Rectangles,
        held: dict[Ref, torch.Tensor],
        tensors: dict[int, torch.Tensor],
        valued: bool = True,
    ) -> torch.Tensor:
        """One tile of the output, from the inputs' rectangles and `tensors`, which stand for those of these ids.

        If it is not to be `valued`, it may have any values, and only its graph is right.
        """
        tile, graded = Tile(self.mesh), torch.is_grad_enabled()
        values = {
            ref: SpatialTensor(local, ref.image.image_size, tile, ref.image.axes, rectangles[ref.node])
            for ref, local in held.items()
        }
        for made, node, last_used in self._steps:
            rectangle = rectangles[made]
            copied = False

            def given(a, node=node, rectangle=rectangle):
                nonlocal copied
                if isinstance(a, Ref):
                    x = values[a]
                    if node.accesses is None and x.rectangle != rectangle:
                        copied = True
                        return cropped(x, rectangle)
                    return x
                return tensors.get(id(a), a) if isinstance(a, torch.Tensor) else a

            args = map_each(given, node.args)
            kwargs = map_arguments(given, node.kwargs) if node.kwargs else {}
            if node.in_place and (copied or node.args[0] in held):  # what it would change belongs to another
                args = args[0].with_local(args[0].local.clone()), *args[1:]
            for ref in last_used:
                del values[ref]
            tile.replay(rectangle, node.drawn)
            device, lower = self.device.type, node.autocast
            with torch.set_grad_enabled(graded and node.graded), torch.autocast(device, lower, enabled=bool(lower)):
                if made is self.output.node and isinstance(node, Convolved):
                    kwargs["valued"] = valued
                result = node.function(*args, **kwargs)
            del args, kwargs
            for i, value in enumerate([result] if node.single else result):
                values[Ref(made, i)] = value
        result = values[self.output]
        return result.local if isinstance(result, SpatialTensor) else result

    def whole(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """The output, at once, of whole inputs, on one rank; what its gradient needs is kept, as by any operation."""
        self.refuse_changes()
        everywhere = {
            node: self.mesh.rectangle((node.operands[0] if node.sums else Ref(node)).image.image_size)
            for node in (*self.nodes, *(ref.node for ref in self.inputs))
        }
        held = {
            ref: x if ref.node in self.passing else x.detach() for ref, x in zip(self.inputs, inputs, strict=True)
        }
        return self.compute(everywhere, held, self.lowered(self.folded({}))).to(self.output.result.dtype)

    @functools.cached_property
    def passing(self) -> list[Node]:
        """The nodes, inputs' among them, that gradients reach from the output."""
        found = {self.output.node}
        for node in reversed(self.nodes):
            if node in found and node.passes:
                found.update(ref.node for ref in node.operands)
        return [node for node in (*self.nodes, *(ref.node for ref in self.inputs)) if node in found and node.passes]

    @functools.cached_property
    def computed(self) -> dict[Node, Node]:
        """What is computed, in order: of each node that is still made, the node that makes it."""
        return fused(self.nodes, self.output)

    def folded(self, tensors: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """By id of what stands for them, the weights that do the work of several operations (`fusing.py`)."""
        found = {}
        for node in self._convolved:
            with torch.set_grad_enabled(torch.is_grad_enabled() and node.graded):
                found |= {id(stands): made for stands, made in node.folded(tensors)}
        return found

    def lowered(self, folded: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """The same in the precision in which tiles are computed."""
        stands = ((node, t) for node in self._convolved for t in (node.weight, node.bias) if t is not None)
        return {id(t): node.lowered(folded[id(t)]) for node, t in stands}

    @functools.cached_property
    def _convolved(self) -> list[Convolved]:
        return [node for node in self.computed.values() if isinstance(node, Convolved)]

    @functools.cached_property
    def _steps(self) -> list[Step]:
        last = {ref: made for made, node in self.computed.items() for ref in node.operands if ref != self.output}
        return [
            Step(made, node, [ref for ref, user in last.items() if user is made])
            for made, node in self.computed.items()
        ]


class Streamed(torch.autograd.Function):
    """A segment's output on this rank, of what it needs of each input (None for one that is read) and `parameters`."""

    @staticmethod
    def forward(ctx, segment: Segment, inputs: int, *tensors: torch.Tensor | None) -> torch.Tensor:
        ctx.segment, ctx.inputs = segment, inputs
        ctx.save_for_backward(*tensors)
        return _forward(segment, tensors[:inputs])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        ctx.segment.done_with()
        if disk := ctx.segment.on_disk.get(ctx.segment.output):
            disk.complete()
        saved = ctx.saved_tensors  # once: checkpointing lets nobody look twice
        held, tensors = saved[: ctx.inputs], saved[ctx.inputs :]
        wanted = ctx.needs_input_grad[2:]
        return None, None, *_backward(ctx.segment, held, tensors, wanted, grad)


def parameters(segment: Segment) -> list[torch.Tensor]:
    """The plain tensors in a segment's nodes that have a gradient, each once."""
    return list({id(t): t for node in segment.passing for t in node.wanting}.values())


def _part(segment: Segment, ref: Ref, held: torch.Tensor | None, whole: Rectangles, needed: Rectangles) -> torch.Tensor:
    """A tile of an input: cut from what is held, or read, and where the reader left it."""
    if held is not None:
        return held[index_of(ref.image, needed[ref.node], whole[ref.node])]
    assert ref.node.read is not None
    with segment.reading:
        return ref.node.read(needed[ref.node])


def _forward(segment: Segment, held: tuple[torch.Tensor | None, ...]) -> torch.Tensor:
    segment.refuse_changes()
    owned = segment.mesh.rectangle(segment.size)
    result = None
    whole = segment.given
    tiles = [] if owned.empty else segment.tiles()
    there = {ref: (x, whole[ref.node]) for ref, x in zip(segment.inputs, held, strict=True) if tiles and x is not None}
    cells = Cells(segment.nodes, segment.inputs, segment.along, tiles, there)
    tensors = segment.lowered(segment.folded({}))

    def of_tile(index: int) -> Callable[[], None]:
        out = tiles[index]
        needed = segment.rectangles(out)
        segment.read_ahead(out, there)
        parts = {ref: _part(segment, ref, x, whole, needed) for ref, x in zip(segment.inputs, held, strict=True)}
        division, pixels = cells.divide(out, parts, segment.device)
        if division.computed:
            parts = {ref: x.to(segment.device) for ref, x in parts.items()}
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
            elif rectangle == owned and segment.output not in segment.on_disk:
                result = tile
            else:
                if result is None:
                    result = _room(segment, tile)
                result[index_of(segment.output.image, rectangle, owned)] = tile
        segment.release()
        segment.report("forward", index + 1, len(tiles))

    side_by_side(len(tiles), segment.workers, of_tile)
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
    if disk := segment.on_disk.get(segment.output):
        return disk.room(_like(image, tile, owned, "meta"))
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
) -> list[torch.Tensor | None]:
    """Gradients of the inputs and of the plain tensors."""
    segment.refuse_changes()
    owned = segment.mesh.rectangle(segment.size)
    whole = segment.given
    leaves = [t.detach().requires_grad_() for t in tensors]
    stand_ins = {id(t): leaf for t, leaf in zip(parameters(segment), leaves, strict=True)}
    with torch.enable_grad():
        folded = segment.folded(stand_ins)
    lowered = {
        key: t.detach().requires_grad_(folded[key].requires_grad) for key, t in segment.lowered(folded).items()
    }
    stand_ins |= lowered
    totals, returned = _totals(segment, held, wanted)
    sums = [torch.zeros_like(leaf) for leaf in leaves]
    made = [key for key, t in lowered.items() if t.requires_grad]
    sums_of_made = [torch.zeros_like(folded[key]) for key in made]
    asking = [*zip(leaves, sums, strict=True), *zip([lowered[key] for key in made], sums_of_made, strict=True)]
    tiles = [] if owned.empty else segment.tiles()
    every_pixel = any(total is not None for total in totals)  # of inputs there is a gradient
    divisions = [Division([out], {}) if every_pixel else segment.divisions[out] for out in tiles]
    pieces = [(i, part) for i, division in enumerate(divisions) for part in (division.cells, *division.computed)]
    sums_of_pixels: dict[tuple[bytes, ...], torch.Tensor] = {}
    by_mean = any(node.autocast == torch.float16 for node in segment.nodes)

    there = {ref: (x, whole[ref.node]) for ref, x in zip(segment.inputs, held, strict=True) if tiles and x is not None}
    if tiles and segment.output in segment.on_disk:
        there[segment.output] = grad, owned

    def of_piece(index: int) -> Callable[[], None]:
        number, part = pieces[index]
        segment.read_ahead(tiles[number], there)
        last = index + 1 == len(pieces) or pieces[index + 1][0] != number
        found = of_rectangle(part) if isinstance(part, Rectangle) else []
        cells = part if isinstance(part, dict) else {}
        of_cells = [(v, _summed(segment, c, _of_rectangle(segment, grad, c, owned))) for c, v in cells.items()]
        return functools.partial(taken, found, of_cells, number + 1 if last else None)

    def of_rectangle(computed: Rectangle) -> list[Found]:
        needed = segment.rectangles(computed)
        parts, wanting = {}, list(asking)
        for ref, x, total in zip(segment.inputs, held, totals, strict=True):
            part = _part(segment, ref, x, whole, needed).to(segment.device)
            parts[ref] = part.detach().requires_grad_(total is not None)
            if total is not None:
                wanting.append((parts[ref], total[index_of(ref.image, needed[ref.node], whole[ref.node])]))
        of_tile = _of_rectangle(segment, grad, computed, owned)
        return _gradients(segment, needed, parts, stand_ins, wanting, of_tile) if wanting else []

    def taken(found: list[Found], of_cells: list, tiles_done: int | None) -> None:
        _add(found[: len(asking)])
        if segment.apart and not segment.on_disk:
            _write(found[len(asking) :])
        else:
            _add(found[len(asking) :])
        for values, summed in of_cells:
            sums_of_pixels[values] = sums_of_pixels.get(values, 0) + summed
        segment.release()
        if tiles_done:
            segment.report("backward", tiles_done, len(tiles))

    side_by_side(len(pieces), segment.workers, of_piece)
    for values, summed in sums_of_pixels.items() if leaves else ():
        pixel = segment.pixels[values]
        # The sum of many pixels' gradients is beyond float16: there their mean goes on, and is multiplied at the end.
        count = sum(math.prod(c.shape) for d in divisions for c, v in d.cells.items() if v == values) if by_mean else 1
        of_all = summed / count if by_mean else summed
        found = _gradients(segment, segment.rectangles(pixel.out), pixel.parts, stand_ins, asking, of_all)
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
            disk = segment.on_disk.get(ref)
            new_like = torch.empty_like if segment.apart and not segment.on_disk else torch.zeros_like
            total, new = disk.gradient(x) if disk else (new_like(x), True)
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
) -> list[Found]:
    """Compute a tile again: of each pair the gradient of the first, or None, and the second, which is its total."""
    with torch.enable_grad():
        tile = segment.compute(rectangles, parts, stand_ins, valued=False)
    if not tile.requires_grad:  # of what is detached, or a comparison
        return [(None, total) for _, total in wanting]
    # Not by backward(), which would store the gradient of a part in the memory format that a leaf's has.
    grads = torch.autograd.grad(tile, [x for x, _ in wanting], grad.to(tile.device, tile.dtype), allow_unused=True)
    return [(found, total) for found, (_, total) in zip(grads, wanting, strict=True)]


def _add(found: list[Found]) -> None:
    """Add gradients to their totals, in place."""
    for grad, total in found:
        if grad is not None:
            total += grad.to(total.device)  # which is the host of what lies on a disk


def _write(found: list[Found]) -> None:
    """The same where nothing else is added: totals need not have been zeros."""
    for grad, total in found:
        total.zero_() if grad is None else total.copy_(grad)
