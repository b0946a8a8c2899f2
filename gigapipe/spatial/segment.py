"""A segment: what leads from images that are held to one that is made tile by tile, forward and backward.

Of each tile of the output the interval arithmetic of `window.py`, node by node from the last to the first, says which
rectangle of every image in between it needs, and so of the inputs. The nodes are then computed on those rectangles,
with torch's padding only where the image itself ends. Forward, nothing is kept but the output. Backward, a tile is
computed again, with its graph, and its gradients are added up: parameters' in one place, inputs' where they overlap.
"""

import functools
import itertools
from collections.abc import Callable, Container
from dataclasses import dataclass, field

import torch

from gigapipe.spatial.halo import layout
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.operators.reductions import summing
from gigapipe.spatial.recording import Node, Ref, map_arguments
from gigapipe.spatial.tensor import SpatialTensor
from gigapipe.spatial.tile import Tile, looked_at, resized
from gigapipe.spatial.window import Interval, Rectangle

Rectangles = dict[Node, Rectangle]


def needed_nodes(output: Node, held: Container[Ref]) -> tuple[list[Node], list[Ref]]:
    """The nodes to compute for `output`, in order, and the sources and held images that they begin with."""
    nodes, inputs, waiting = {output}, {}, [output]
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
    tile: tuple[int, int]
    progress: Callable[[str, int, int], None] | None = None
    done_with: Callable[[], None] = lambda: None
    """Called when the backward pass begins: what was held for the forward pass alone can go."""
    _known: dict[tuple[int, Interval], dict[Node, Interval]] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of what is tiled."""
        return (self.output.node.operands[0] if self.output.node.sums else self.output).image.image_size

    def report(self, direction: str, done: int, of: int) -> None:
        if self.progress:
            self.progress(direction, done, of)

    def tiles(self) -> list[Rectangle]:
        """What this rank owns of the output, tile by tile: equal ones but for the last of a row or column."""
        cuts = [
            [Interval(start, min(start + step, owned.stop)) for start in range(owned.start, owned.stop, step)]
            for owned, step in zip(self.mesh.rectangle(self.size), self.tile, strict=True)
        ]
        return [Rectangle(*pair) for pair in itertools.product(*cuts)]

    def rectangles(self, out: Rectangle) -> Rectangles:
        """What of each node's results, inputs included, is needed for `out`."""
        rows, columns = (self._along(axis, interval) for axis, interval in enumerate(out))
        return {node: Rectangle(rows[node], columns[node]) for node in rows}

    def _along(self, axis: int, out: Interval) -> dict[Node, Interval]:
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

    def compute(
        self, rectangles: Rectangles, held: dict[Ref, torch.Tensor], tensors: dict[int, torch.Tensor]
    ) -> torch.Tensor:
        """One tile of the output, from the inputs' rectangles and `tensors`, which stand for those of these ids."""
        for node in self.nodes:
            node.refuse_changes()
        tile = Tile(self.mesh)
        values = {
            ref: SpatialTensor(local, ref.image.image_size, tile, ref.image.axes, rectangles[ref.node])
            for ref, local in held.items()
        }
        for node, last_used in zip(self.nodes, self._last_uses, strict=True):
            rectangle = rectangles[node]
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

            args, kwargs = map_arguments(given, (node.args, node.kwargs))
            if node.in_place and (copied or node.args[0] in held):  # what it would change belongs to another
                args = args[0].with_local(args[0].local.clone()), *args[1:]
            for ref in last_used:
                del values[ref]
            tile.replay(rectangle, node.drawn)
            with torch.autocast(self.output.image.device.type, node.autocast, enabled=node.autocast is not None):
                result = node.function(*args, **kwargs)
            del args, kwargs
            for i, value in enumerate([result] if node.single else result):
                values[Ref(node, i)] = value
        result = values[self.output]
        return result.local if isinstance(result, SpatialTensor) else result

    @functools.cached_property
    def _last_uses(self) -> list[list[Ref]]:
        """Of each node, the images that nobody needs after it."""
        last = {ref: node for node in self.nodes for ref in node.operands}
        found = {node: [] for node in self.nodes}
        for ref, node in last.items():
            if ref != self.output:
                found[node].append(ref)
        return list(found.values())


def _index(image: SpatialTensor, inner: Rectangle, outer: Rectangle) -> tuple:
    """Where `inner` lies in a tensor laid out as `image` that holds `outer`."""
    index = [slice(None)] * image.dim()
    for axis, part in zip(image.axes, inner.within(outer), strict=True):
        index[axis] = part
    return tuple(index)


def cropped(x: SpatialTensor, rectangle: Rectangle) -> SpatialTensor:
    """What of an image, or of a tile, lies in `rectangle`."""
    (above, below), (left, right) = (
        (held.start - kept.start, kept.stop - held.stop) for held, kept in zip(x.rectangle, rectangle, strict=True)
    )
    local = resized(x.local.movedim(x.axes, (-2, -1)), (left, right, above, below)).movedim((-2, -1), x.axes)
    return SpatialTensor(local, x.image_size, x.mesh, x.axes, rectangle)


class Streamed(torch.autograd.Function):
    """A segment's output on this rank, of what it needs of each input (None for one that is read) and `parameters`."""

    @staticmethod
    def forward(ctx, segment: Segment, inputs: int, *tensors: torch.Tensor | None) -> torch.Tensor:
        ctx.segment, ctx.inputs = segment, inputs
        ctx.save_for_backward(*tensors)
        return _forward(segment, tensors[:inputs])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: torch.Tensor):
        ctx.segment.done_with()
        saved = ctx.saved_tensors  # once: checkpointing lets nobody look twice
        held, tensors = saved[: ctx.inputs], saved[ctx.inputs :]
        wanted = ctx.needs_input_grad[2:]
        return None, None, *_backward(ctx.segment, held, tensors, wanted, grad)


def parameters(segment: Segment) -> list[torch.Tensor]:
    """The plain tensors in a segment's nodes that have a gradient, each once."""
    found = {id(t): t for node in segment.nodes for t in node.tensors if t.requires_grad}
    return list(found.values())


def _part(segment: Segment, ref: Ref, held: torch.Tensor | None, whole: Rectangles, needed: Rectangles):
    """A tile of an input: read, or cut from what is held."""
    if held is None:
        return ref.node.read(needed[ref.node])
    return held[_index(ref.image, needed[ref.node], whole[ref.node])]


def _forward(segment: Segment, held: tuple[torch.Tensor | None, ...]) -> torch.Tensor:
    owned = segment.mesh.rectangle(segment.size)
    result = None
    if owned.empty:
        return _nothing(segment)
    whole = segment.rectangles(owned)
    tiles = segment.tiles()
    for done, out in enumerate(tiles):
        needed = segment.rectangles(out)
        parts = {ref: _part(segment, ref, x, whole, needed) for ref, x in zip(segment.inputs, held, strict=True)}
        tile = segment.compute(needed, parts, {})
        del parts
        if segment.output.node.sums:
            wider = tile.to(summing(tile.dtype))
            result = wider if result is None else result.add_(wider)
        elif len(tiles) == 1:
            result = tile
        else:
            if result is None:
                result = _like(segment.output.image, tile, owned)
            result[_index(segment.output.image, out, owned)] = tile
        dtype = tile.dtype
        del tile
        segment.report("forward", done + 1, len(tiles))
    return result.to(dtype)


def _like(image: SpatialTensor, tile: torch.Tensor, rectangle: Rectangle) -> torch.Tensor:
    """An empty tensor that holds a rectangle of an image, of the dtype and memory format of one of its tiles."""
    shape = list(image.shape)
    for axis, interval in zip(image.axes, rectangle, strict=True):
        shape[axis] = interval.size
    return torch.empty(shape, dtype=tile.dtype, device=tile.device, memory_format=layout(tile))


def _nothing(segment: Segment) -> torch.Tensor:
    """The output of a rank that owns none."""
    image = segment.output.image
    if segment.output.node.sums:
        return torch.zeros(image.shape, dtype=image.dtype, device=image.device)
    return torch.empty_like(_like(image, image.local, segment.mesh.rectangle(segment.size)), device=image.device)


def _backward(
    segment: Segment,
    held: tuple[torch.Tensor | None, ...],
    tensors: tuple[torch.Tensor, ...],
    wanted: tuple[bool, ...],
    grad: torch.Tensor,
) -> list[torch.Tensor | None]:
    """Gradients of the inputs and of the plain tensors."""
    owned = segment.mesh.rectangle(segment.size)
    whole = {} if owned.empty else segment.rectangles(owned)
    leaves = [t.detach().requires_grad_() for t in tensors]
    stand_ins = {id(t): leaf for t, leaf in zip(parameters(segment), leaves, strict=True)}
    totals = [torch.zeros_like(x) if w and x is not None else None for x, w in zip(held, wanted, strict=False)]
    sums = [torch.zeros_like(leaf) for leaf in leaves]
    tiles = [] if owned.empty else segment.tiles()
    for done, out in enumerate(tiles):
        needed = segment.rectangles(out)
        parts, trained = {}, []
        for ref, x, total in zip(segment.inputs, held, totals, strict=True):
            parts[ref] = _part(segment, ref, x, whole, needed).detach().requires_grad_(total is not None)
            if total is not None:
                trained.append((parts[ref], total[_index(ref.image, needed[ref.node], whole[ref.node])]))
        trained += zip(leaves, sums, strict=True)
        of_tile = grad if segment.output.node.sums else grad[_index(segment.output.image, out, owned)]
        with torch.enable_grad():
            tile = segment.compute(needed, parts, stand_ins)
        # Not by backward(), which would store the gradient of a part in the memory format that a leaf's has.
        grads = torch.autograd.grad(tile, [x for x, _ in trained], of_tile.to(tile.dtype), allow_unused=True)
        del tile, parts
        for (_, total), found in zip(trained, grads, strict=True):
            if found is not None:
                total += found
        del grads, trained
        segment.report("backward", done + 1, len(tiles))
    return totals + sums
