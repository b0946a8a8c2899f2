"""Where an image is constant, one pixel of a segment's output stands for all.

Half of a slide is glass, and glass that was masked is exactly white. Each tile is divided into cells. A cell whose
input is constant, and which looks nowhere past the image, is constant in every layer, so one pixel of it is computed.
Of its gradients the parameters' are those of that pixel, given the sum of the gradients of all pixels: exact, because
every pixel of it is the same function of the parameters. Cells that begin with the same constants share one such pixel.
"""

import functools
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gigapipe.spatial.recording import Node, Ref
from gigapipe.spatial.wide import wide
from gigapipe.spatial.window import Bins, Interpolation, Interval, Rectangle, Window, split


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


def interior(nodes: Iterable[Node], rectangles: dict[Node, Rectangle]) -> bool:
    """Whether nodes that make these rectangles look at nothing past the image."""
    for node in nodes:
        for access, out, n in zip(node.accesses or (), rectangles[node], _size(node), strict=False):
            needed = access.needs(out)
            if needed.start < 0 or needed.stop > n:
                return False
    return True


def _size(node: Node) -> tuple[int, int]:
    return node.operands[0].image.image_size


def constants(parts: dict[Ref, torch.Tensor]) -> tuple[bytes, ...] | None:
    """The values of images each of which has one for all its pixels; None where one has not."""
    found = []
    for ref, part in parts.items():
        first = part
        for axis in ref.image.axes:
            first = first.narrow(axis, 0, 1)
        few = part
        for axis in ref.image.axes:
            few = few[(slice(None),) * axis + (slice(None, None, 61),)]
        if not ((few == first).all() and (part == first).all()):
            return None
        found.append(wide(first).numpy(force=True).tobytes())
    return tuple(found)


def middle(out: Rectangle) -> Rectangle:
    """The pixel in the middle of a cell."""
    return Rectangle(*(Interval(i.start + i.size // 2, i.start + i.size // 2 + 1) for i in out))
