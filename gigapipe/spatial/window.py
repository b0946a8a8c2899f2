"""Interval arithmetic: which input an operator's output needs, along one axis.

A convolutional network looks at an image through windows. Everything that gigapipe decomposes, in space over ranks
or in time over tiles, rests on the two questions answered here: how long is the output, and which part of the
input does a given part of the output need. Indices are global: they count from the first row (or column) of the
whole image, whoever owns it.
"""

from dataclasses import dataclass
from typing import NamedTuple


class Interval(NamedTuple):
    """Half-open range `[start, stop)` of global rows or columns; empty where `stop <= start`."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return max(0, self.stop - self.start)

    def intersect(self, other: "Interval") -> "Interval":
        return Interval(max(self.start, other.start), min(self.stop, other.stop))

    def within(self, outer: "Interval") -> slice:
        """The slice that cuts this interval out of an array that holds `outer`."""
        return slice(self.start - outer.start, self.stop - outer.start)


class Rectangle(NamedTuple):
    """Global rows × columns."""

    rows: Interval
    columns: Interval

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.size, self.columns.size

    @property
    def empty(self) -> bool:
        return 0 in self.shape

    def intersect(self, other: "Rectangle") -> "Rectangle":
        return Rectangle(self.rows.intersect(other.rows), self.columns.intersect(other.columns))

    def within(self, outer: "Rectangle") -> tuple[slice, slice]:
        """The slices that cut this rectangle out of an array whose last two axes hold `outer`."""
        return self.rows.within(outer.rows), self.columns.within(outer.columns)


@dataclass(frozen=True)
class Window:
    """How an operator looks at its input along one axis: kernel, stride, padding on both ends, dilation."""

    kernel: int
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1

    @property
    def extent(self) -> int:
        """Input length that one output element spans."""
        return self.dilation * (self.kernel - 1) + 1

    def output_size(self, size: int) -> int:
        """Output length for an input of `size`; ValueError where the kernel does not fit."""
        room = size + sum(self.padding) - self.extent
        if room < 0:
            raise ValueError(
                f"a kernel that spans {self.extent} does not fit an axis of {size} padded by {self.padding}"
            )
        return room // self.stride + 1

    def needs(self, out: Interval) -> Interval:
        """The input that the outputs `out` look at; reaches past the image's ends where padding does."""
        if out.size == 0:
            return Interval(0, 0)
        start = out.start * self.stride - self.padding[0]
        return Interval(start, start + (out.size - 1) * self.stride + self.extent)


def split(size: int, parts: int, index: int) -> Interval:
    """Part `index` of an axis of `size` cut into `parts`: contiguous, in order, lengths differing by at most one.

    Every tensor of one size is cut the same way at every layer, so tensors that meet (a shortcut and its branch)
    always lie alike, and nobody needs to be told where a tensor's parts are. Where the axis is shorter than
    `parts`, some parts are empty.

    >>> [tuple(split(7, 3, i)) for i in range(3)]
    [(0, 2), (2, 4), (4, 7)]
    """
    return Interval(index * size // parts, (index + 1) * size // parts)
