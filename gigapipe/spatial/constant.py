"""Where an image is constant, one pixel of a segment's output stands for all.

Half of a slide is glass, and glass that was masked is exactly white. Each tile is divided into cells. A cell whose
input is constant, and which looks nowhere past the image, is constant in every layer, so one pixel of it is computed.
Of its gradients the parameters' are those of that pixel, given the sum of the gradients of all pixels: exact, because
every pixel of it is the same function of the parameters. Cells that begin with the same constants share one such pixel.
"""

import functools
import itertools
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gigapipe.spatial.recording import Node, Ref
from gigapipe.spatial.tensor import index_of
from gigapipe.spatial.wide import wide
from gigapipe.spatial.window import Bins, Interpolation, Interval, Rectangle, Window, split

Rectangles = dict[Node, Rectangle]


@dataclass
class Pixel:
    """One pixel that stands for all cells that begin with the same constants."""

    out: Rectangle
    parts: dict[Ref, torch.Tensor]
    """What it needs of each input."""


@dataclass
class Division:
    """Of a tile, the rectangles that are computed, and the cells that pixels stand for, with their constants."""

    computed: list[Rectangle]
    cells: dict[Rectangle, tuple[bytes, ...]]


CELLS, SMALLEST = 8, 4  # of a tile, along each axis; pixels of a cell


def cells_of(out: Rectangle) -> list[list[Rectangle]]:
    """A tile's cells, row by row."""

    def along(axis: Interval) -> list[Interval]:
        count = max(1, min(CELLS, axis.size // SMALLEST))
        parts = (split(axis.size, count, i) for i in range(count))
        return [Interval(axis.start + part.start, axis.start + part.stop) for part in parts]

    return [[Rectangle(rows, columns) for columns in along(out.columns)] for rows in along(out.rows)]


def divided(cells: list[list[Rectangle]], constant: dict[Rectangle, tuple[bytes, ...]]) -> Division:
    """What is computed is as few rectangles as cover the other cells: of runs in a row, and of rows with equal runs."""
    computed: list[Rectangle] = []
    above: dict[Interval, Rectangle] = {}
    for row in cells:
        runs = {}
        for is_constant, run in itertools.groupby(row, key=lambda cell: cell in constant):
            if not is_constant:
                columns = functools.reduce(Interval.hull, (cell.columns for cell in run))
                runs[columns] = Rectangle(above.get(columns, row[0]).rows.hull(row[0].rows), columns)
        computed += [rectangle for columns, rectangle in above.items() if columns not in runs]
        above = runs
    return Division([*computed, *above.values()], constant)


def keeps_constants(nodes: list[Node]) -> bool:
    """Whether nodes make constant images of constant images, away from the image's borders."""
    return all(
        not node.drawn
        and all(isinstance(access, Window | Bins | Interpolation) for access in node.accesses or ())
        and (node.accesses is not None or not any(_varies(tensor, node) for tensor in node.tensors))
        for node in nodes
    )


def _varies(tensor: torch.Tensor, node: Node) -> bool:
    """Whether a plain tensor has a value for each row or column; their last dimensions meet."""
    if node.function is F.batch_norm:  # whose tensors belong to channels
        return False
    image = node.operands[0].image
    from_behind = [axis - image.dim() for axis in image.axes]
    return any(tensor.dim() >= -axis and tensor.shape[axis] == image.shape[axis] != 1 for axis in from_behind)


class Cells:
    """A segment's tiles by cells: which of them are constant, by what it begins with.

    What is on the host, as pixels that were just read are, is looked at there. Of what lies on a device, a host that
    asked cell by cell would wait each time until all is done that was begun there: it asks about all cells at once, of
    the inputs that are `held` (and what of the image each is) before the first tile.
    """

    def __init__(
        self,
        nodes: list[Node],
        inputs: list[Ref],
        along: Callable[[int, Interval], dict[Node, Interval]],
        tiles: list[Rectangle],
        held: dict[Ref, tuple[torch.Tensor, Rectangle]],
    ):
        """`along` says what of all nodes a stretch of an axis (0 or 1) of the output needs."""
        self.nodes, self.inputs, self.along, self.keeps_constants = nodes, inputs, along, keeps_constants(nodes)
        self.inside: dict[tuple[int, Interval], bool] = {}
        far = {ref: part for ref, part in held.items() if not on_host(part[0])}
        self.told: dict[Ref, dict[Rectangle, bytes]] = {}
        if far and self.keeps_constants:
            every = (cell for out in tiles for row in cells_of(out) for cell in row)
            self.told = told_by_device(self._interior(every).values(), far)

    def divide(
        self, out: Rectangle, parts: dict[Ref, torch.Tensor], device: torch.device
    ) -> tuple[Division, dict[tuple[bytes, ...], Pixel]]:
        """A tile whose inputs are `parts`, and on `device` a pixel for each of the constants that cells begin with."""
        if not self.keeps_constants:
            return Division([out], {}), {}
        outer, cells = self._needed(out), cells_of(out)
        interior = self._interior(itertools.chain(*cells))
        far = {ref: (x, outer[ref.node]) for ref, x in parts.items() if ref not in self.told and not on_host(x)}
        told = {**self.told, **told_by_device(interior.values(), far)}  # of what a reader left on a device
        found, pixels = {}, {}
        near = [(ref, Sample(x, ref.image.axes)) for ref, x in parts.items() if interior and on_host(x)]
        for cell, inner in interior.items():
            if not all(sample.alike(inner[ref.node], outer[ref.node]) for ref, sample in near):
                continue
            values = []
            for ref, x in cut(parts, inner, outer).items():
                values.append(told[ref].get(inner[ref.node]) if ref in told else constant(x, ref.image.axes))
                if values[-1] is None:
                    break
            else:
                found[cell] = key = tuple(values)
                if key not in pixels:
                    few = cut(parts, self._needed(middle(cell)), outer)
                    pixels[key] = Pixel(middle(cell), {ref: x.clone().to(device) for ref, x in few.items()})
        return divided(cells, found), pixels

    def _interior(self, cells: Iterable[Rectangle]) -> dict[Rectangle, Rectangles]:
        """Those of which nodes look at nothing past the image, and what they need."""
        return {c: self._needed(c) for c in cells if self._looks_inside(0, c.rows) and self._looks_inside(1, c.columns)}

    def _needed(self, out: Rectangle) -> Rectangles:
        """What of each input a rectangle of the output needs."""
        rows, columns = (self.along(axis, interval) for axis, interval in enumerate(out))
        return {ref.node: Rectangle(rows[ref.node], columns[ref.node]) for ref in self.inputs}

    def _looks_inside(self, axis: int, out: Interval) -> bool:
        """Whether for a stretch of the output no node looks past the image; a row of cells has it in common."""
        if (axis, out) not in self.inside:
            made = self.along(axis, out)
            needed = (
                (node.accesses[axis].needs(made[node]), node.operands[0].image.image_size[axis])
                for node in self.nodes
                if node.accesses
            )
            self.inside[axis, out] = all(looked_at.start >= 0 and looked_at.stop <= n for looked_at, n in needed)
        return self.inside[axis, out]


class Sample:
    """Some pixels of a tile of an image, by which most cells that are not constant are told apart at once."""

    STEP = 8
    """Pixels from one to the next."""

    def __init__(self, part: torch.Tensor, axes: tuple[int, int]):
        few = part.detach().movedim(axes, (-2, -1))[..., :: self.STEP, :: self.STEP]
        unlike = (few[..., 1:] != few[..., :-1]).flatten(0, -3).any(0)
        self.likes_next = ~unlike.numpy()

    def alike(self, inner: Rectangle, outer: Rectangle) -> bool:
        """Whether these of `inner` have the values of those beside them, in a tile that holds `outer`."""
        rows, columns = (slice(-(-s.start // self.STEP), -(-s.stop // self.STEP)) for s in inner.within(outer))
        return bool(self.likes_next[rows, columns.start : max(columns.start, columns.stop - 1)].all())


def cut(parts: dict[Ref, torch.Tensor], inner: Rectangles, outer: Rectangles) -> dict[Ref, torch.Tensor]:
    """What of a tile's inputs a smaller rectangle of its output needs."""
    return {ref: x[index_of(ref.image, inner[ref.node], outer[ref.node])] for ref, x in parts.items()}


def on_host(x: torch.Tensor) -> bool:
    """Whether to ask for a value of it costs no more than to look."""
    return x.device.type == "cpu"


def constant(part: torch.Tensor, axes: tuple[int, int]) -> bytes | None:
    """The values of an image's pixels, where it has the same for all; None where it has not."""
    first = part
    for axis in axes:
        first = first.narrow(axis, 0, 1)
    few = part
    for axis in axes:
        few = few[(slice(None),) * axis + (slice(None, None, 61),)]
    if not ((few == first).all() and (part == first).all()):
        return None
    return wide(first).numpy(force=True).tobytes()


def told_by_device(
    needed: Collection[Rectangles], parts: dict[Ref, tuple[torch.Tensor, Rectangle]]
) -> dict[Ref, dict[Rectangle, bytes]]:
    """`constant` of these rectangles of images on a device, those that are; the host waits once for all.

    Of each image there is a part, and the rectangle that this is.
    """
    if not needed or not parts:
        return {}
    places, tables = {}, []
    for ref, (x, outer) in parts.items():
        rows, columns = (sorted({of[ref.node][axis] for of in needed}) for axis in (0, 1))
        places[ref] = rows, columns
        tables += _alike(
            x.detach().movedim(ref.image.axes, (-2, -1)),
            [i.within(outer.rows) for i in rows],
            [i.within(outer.columns) for i in columns],
        )
    flat = [t.flatten() for t in tables]
    if not all(t.is_floating_point() for t in flat):  # else `cat` would make float32 of whole numbers
        flat = [wide(t) for t in flat]
    both = iter(torch.cat(flat).cpu().double().split([t.numel() for t in flat]))
    told = {}
    for ref, alike, values in zip(parts, both, both, strict=True):
        of_cells = values.view(len(alike), -1).numpy(force=True)
        cells = itertools.product(*places[ref])
        told[ref] = {
            Rectangle(*cell): value.tobytes()
            for cell, yes, value in zip(cells, alike.tolist(), of_cells, strict=True)
            if yes
        }
    return told


def _alike(x: torch.Tensor, rows: list[slice], columns: list[slice]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of all rectangles of these rows × columns of an image (…, rows, columns), (rectangles,), in the image's dtype:
    1 where all pixels are alike, else 0; and the values of the first pixel (rectangles, …)."""
    unlike = torch.zeros(2, len(rows), x.shape[-1] + 1, dtype=torch.bool, device=x.device)
    others = tuple(range(x.dim() - 1))
    for i, of_band in enumerate(rows):
        band = x[..., of_band, :]
        first = band[..., :1, :]
        torch.any(band != first, others, out=unlike[0, i, 1:])  # of a column: that it is not what it begins with
        torch.any(first[..., 1:] != first[..., :-1], others, out=unlike[1, i, 2:])  # or begins unlike the one before
    starts, stops, tops = (
        torch.tensor(numbers).to(x.device)
        for numbers in ([c.start for c in columns], [c.stop for c in columns], [r.start for r in rows])
    )
    within, between = unlike.cumsum(2)  # how many columns to the left of each are
    count = within[:, stops] - within[:, starts] + between[:, stops] - between[:, starts + 1]
    firsts = x[..., tops[:, None], starts]
    return (count.flatten() == 0).to(x.dtype), firsts.movedim((-2, -1), (0, 1)).flatten(0, 1)


def middle(out: Rectangle) -> Rectangle:
    """The pixel in the middle of a cell."""
    return Rectangle(*(Interval(i.start + i.size // 2, i.start + i.size // 2 + 1) for i in out))
