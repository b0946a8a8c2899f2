"""A segment: what leads from images that are held to one that is made tile by tile.

Of each tile of the output the interval arithmetic of `window.py`, node by node from the last to the first, says which
rectangle of every image in between it needs, and so of the inputs. The nodes are then computed on those rectangles,
with torch's padding only where the image itself ends. What becomes of the tiles, forward and backward, is in
`streamed.py`.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from gigapipe.spatial.blocks import Blocks, end_of, without_joining
from gigapipe.spatial.constant import Division, Pixel, Rectangles
from gigapipe.spatial.fusing import Convolved, fused
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.on_host import OnHost
from gigapipe.spatial.recording import TAKE_VALUED, Node, Ref, map_each
from gigapipe.spatial.tensor import SpatialTensor, cropped
from gigapipe.spatial.tile import Tile, looked_at
from gigapipe.spatial.window import Interval, Rectangle


class Step(NamedTuple):
    """What is computed of a tile at a time."""

    made: Node
    """Whose results."""
    node: Node
    """By which call."""
    last_used: list[Ref]
    """The images that nobody needs after it."""


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


def _autocast(device: str, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    """As a node was noted: under autocast of this dtype, or without. To enter torch's context costs, if often."""
    if dtype is None and not torch.is_autocast_enabled(device):
        return contextlib.nullcontext()
    return torch.autocast(device, dtype, enabled=dtype is not None)


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
    ahead: int = 0
    """For how many tiles what they need of inputs that are read is read before they are computed."""
    away: dict[Ref, OnHost] = field(default_factory=dict)
    """Of the inputs and the output, those that are kept elsewhere than where they are computed."""
    of_blocks: bool = False
    """Whether it is computed by blocks that are as small as they should be."""
    divisions: dict[Rectangle, Division] = field(default_factory=dict)
    """Of each tile, found in the forward pass."""
    pixels: dict[tuple[bytes, ...], Pixel] = field(default_factory=dict)
    """Of the constants that cells begin with."""
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
        """Whether each pixel of the inputs' gradients is of one tile, and of this segment alone."""
        return not self.away and all(node.accesses is None for node in self.nodes)

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
        """Leave to a disk what a tile has read and written of it."""
        for image in self.away.values():
            image.release()

    def read_ahead(self, tile: Rectangle, there: dict[Ref, tuple[torch.Tensor, Rectangle]]) -> None:
        """Have what the next row of tiles needs of images `there`, each with what is held of it, read from the disk."""
        owned, step = self.mesh.rectangle(self.size), self.tile[0]
        rows = Interval(tile.rows.stop, min(tile.rows.stop + step, owned.rows.stop))
        if not self.away or tile.columns.start > owned.columns.start or not rows.size:
            return
        needed = self.along(0, rows)
        for ref, (image, held) in there.items():
            if ref in self.away:
                self.away[ref].read_ahead(image, ref.image.axes[0], needed[ref.node].within(held.rows))

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
            self._known[axis, out] = self.needed(axis, out)
        return self._known[axis, out]

    def needed(self, axis: int, out: Interval) -> dict[Node, Interval]:
        """The same, of which nothing is remembered: a planner asks for many intervals once."""
        found = {self.output.node: out}
        for node in reversed(self.nodes):
            for ref in node.operands:
                needed = found[node]
                if node.accesses:
                    needed = looked_at(node.accesses[axis], needed, ref.image.image_size[axis])
                found[ref.node] = found.get(ref.node, needed).hull(needed)
        return found

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
        before_relu: bool = False,
    ) -> torch.Tensor:
        """One tile of the output, from the inputs' rectangles and `tensors`, which stand for those of these ids.

        If it is not to be `valued`, it may have any values, and only its graph is right; with `before_relu` that of
        what the output, which `rectifies`, is the ReLU of.
        """
        tile, graded, device = Tile(self.mesh), torch.is_grad_enabled(), self.device.type
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
                    if node.accesses is None and node.crops and x.rectangle != rectangle:
                        copied = True
                        return cropped(x, rectangle)
                    return x
                return tensors.get(id(a), a) if isinstance(a, torch.Tensor) else a

            function, args, kwargs = node.call
            args = map_each(given, args)
            kwargs = dict(zip(kwargs, map_each(given, tuple(kwargs.values())), strict=True))
            if node.in_place and (copied or node.args[0] in held):  # what it would change belongs to another
                args = args[0].with_local(args[0].local.clone()), *args[1:]
            for ref in last_used:
                del values[ref]
            tile.replay(rectangle, node.drawn)
            if made is self.output.node and (isinstance(node, Convolved | Blocks) or node.function in TAKE_VALUED):
                kwargs["valued"] = valued
                if before_relu:
                    kwargs["before_relu"] = True
            with torch.set_grad_enabled(graded and node.graded), _autocast(device, node.autocast):
                result = function(*args, **kwargs)
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
        held = {ref: x if ref.node in self.passing else x.detach() for ref, x in zip(self.inputs, inputs, strict=True)}
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
        found = fused(self.nodes, self.output)
        if self.of_blocks:
            return without_joining(found, self.output.node)
        end = end_of(found) if self.output.node.sums and self.device.type == "cpu" else []
        if end:
            held = {ref for node in end for ref in node.operands if ref.node not in end}
            segment = Segment(self.mesh, *needed_nodes(self.output.node, held), self.output, of_blocks=True)
            found = {made: node for made, node in found.items() if node not in end}
            found[self.output.node] = Blocks(segment)
        return found

    @functools.cached_property
    def rectifies(self) -> bool:
        """Whether the output is the ReLU of a convolution, and kept where it is computed."""
        last = self.computed[self.output.node]
        return isinstance(last, Convolved) and last.relu and self.output not in self.away

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
