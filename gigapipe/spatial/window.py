"""Interval arithmetic: which input an operator's output needs, along one axis.

A convolutional network looks at an image through windows. Everything that gigapipe decomposes, in space over ranks
or in time over tiles, rests on the two questions answered here: how long is the output, and which part of the
input does a given part of the output need. Indices are global: they count from the first row (or column) of the
whole image, whoever owns it.

Each kind of operator is a class that answers both (`Access`): `Window` for convolution and pooling, `Transposed` for
transposed convolution, `Bins` for adaptive pooling, `Interpolation` for interpolation, `Shuffled` for pixel shuffling,
`Padded` for padding that repeats the image, `Rolled` and `Flipped` for what their names say.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Interval(NamedTuple):
    """Half-open range `[start, stop)` of global rows or columns; empty where `stop <= start`."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return max(0, self.stop - self.start)

    def intersect(self, other: "Interval") -> "Interval":
        return Interval(max(self.start, other.start), min(self.stop, other.stop))

    def hull(self, other: "Interval") -> "Interval":
        return Interval(min(self.start, other.start), max(self.stop, other.stop))

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


class Piece(NamedTuple):
    """Where a stretch of an operator's input comes from: `place` there is a copy of `source` in the image.

    `step` 1: as it is; -1: in reverse; 0: one row (or column), repeated.
    """

    place: Interval
    source: Interval
    step: int = 1

    def of(self, owned: Interval) -> "Piece":
        """The part of this piece that is copied from `owned`; its `source` is empty where nothing is."""
        source = self.source.intersect(owned)
        if self.step == 0 or source.size == 0:
            return Piece(self.place, source, self.step)
        if self.step == 1:
            start = self.place.start + source.start - self.source.start
        else:
            start = self.place.start + self.source.stop - source.stop
        return Piece(Interval(start, start + source.size), source, self.step)


class Access(Protocol):
    """How an operator looks at its input along one axis. Hashable: exchanges are planned once for each."""

    def output_size(self, size: int) -> int:
        """Output length for an input of `size`; ValueError where there is none."""

    def needs(self, out: Interval) -> Interval:
        """The input that the outputs `out`, not empty, look at; reaches past the image's ends where padding does."""

    def pieces(self, needed: Interval, size: int) -> list[Piece]:
        """Where the interval `needed` of the input comes from; what no piece covers is filled with a constant."""


def output_size(accesses: tuple[Access, Access], size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of what an operator that looks by `accesses` makes of an image of `size`."""
    return accesses[0].output_size(size[0]), accesses[1].output_size(size[1])


class _InImage:
    """Input comes from its own place in the image, and there is nothing outside."""

    def pieces(self, needed: Interval, size: int) -> list[Piece]:
        inside = needed.intersect(Interval(0, size))
        return [Piece(inside, inside)]


@dataclass(frozen=True)
class Window(_InImage):
    """Kernel, stride, padding at both ends, and dilation; with `ceil` a last output with an incomplete window is kept.

    With a kernel of 1 it is padding by a constant, or cropping if `padding` is negative.
    """

    kernel: int
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1
    ceil: bool = False

    @property
    def extent(self) -> int:
        """Input length that one output element spans."""
        return self.dilation * (self.kernel - 1) + 1

    def output_size(self, size: int) -> int:
        """Output length for an input of `size`; ValueError if the kernel does not fit."""
        room = size + sum(self.padding) - self.extent
        if room + (self.stride - 1 if self.ceil else 0) < 0:
            raise ValueError(
                f"a kernel that spans {self.extent} does not fit an axis of {size} padded by {self.padding}"
            )
        if not self.ceil:
            return room // self.stride + 1
        out = -(-room // self.stride) + 1
        # As torch has it: the last window must begin in the image or in the padding before it.
        return out - ((out - 1) * self.stride >= size + self.padding[0])

    def needs(self, out: Interval) -> Interval:
        """The input that the outputs `out` need; it reaches past the image's ends where there is padding."""
        start = out.start * self.stride - self.padding[0]
        return Interval(start, start + (out.size - 1) * self.stride + self.extent)

    def sees(self, part: Interval, out: Interval) -> Interval:
        """Those of the outputs `out` whose windows reach into `part` of the input."""
        first = -((self.extent - 1 - part.start - self.padding[0]) // self.stride)
        last = (part.stop - 1 + self.padding[0]) // self.stride
        return out.intersect(Interval(first, last + 1))


@dataclass(frozen=True)
class Transposed(_InImage):
    """A transposed convolution: output `i * stride - padding + k * dilation` looks at input i, for each k."""

    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    output_padding: int = 0

    @property
    def extent(self) -> int:
        return self.dilation * (self.kernel - 1) + 1

    def output_size(self, size: int) -> int:
        out = (size - 1) * self.stride - 2 * self.padding + self.extent + self.output_padding
        if out < 1:
            raise ValueError(f"a transposed convolution of an axis of {size} with padding {self.padding} has no output")
        return out

    def needs(self, out: Interval) -> Interval:
        # Also those inputs, beyond the image perhaps, that make the outputs begin at or before, and end at or
        # after `out`, though between windows that leave gaps (stride > extent) no input is looked at.
        start = min(
            -((self.extent - 1 - out.start - self.padding) // self.stride), (out.start + self.padding) // self.stride
        )
        stop = (out.stop - 1 + self.padding) // self.stride + 1
        return Interval(start, stop + (self.begins(stop - 1) + self.extent < out.stop))

    def begins(self, position: int) -> int:
        """The first output that looks at input `position`."""
        return position * self.stride - self.padding


@dataclass(frozen=True)
class Bins(_InImage):
    """Adaptive pooling of an axis of `size` into `bins` that cover it, overlapping where they must."""

    size: int
    bins: int

    def output_size(self, size: int) -> int:
        return self.bins

    def needs(self, out: Interval) -> Interval:
        return Interval(out.start * self.size // self.bins, -(-out.stop * self.size // self.bins))


@dataclass(frozen=True)
class Interpolation(_InImage):
    """Interpolation: output i looks at inputs from `first[i]` to `last[i]`, both of which grow with i."""

    first: tuple[int, ...]
    last: tuple[int, ...]

    def output_size(self, size: int) -> int:
        return len(self.first)

    def needs(self, out: Interval) -> Interval:
        return Interval(self.first[out.start], self.last[out.stop - 1] + 1)


@dataclass(frozen=True)
class Shuffled(_InImage):
    """Pixel shuffling: each input becomes `factor` outputs."""

    factor: int

    def output_size(self, size: int) -> int:
        return size * self.factor

    def needs(self, out: Interval) -> Interval:
        return Interval(out.start // self.factor, -(-out.stop // self.factor))


@dataclass(frozen=True)
class Everything(_InImage):
    """Each of `parts` ranks along an axis of `size` looks at all of it."""

    size: int
    parts: int

    def output_size(self, size: int) -> int:
        return self.parts

    def needs(self, out: Interval) -> Interval:
        return Interval(0, self.size)


@dataclass(frozen=True)
class Stretches(_InImage):
    """What each of some stretches of an output of `size` looks at, through however many operators."""

    size: int
    needed: tuple[tuple[Interval, Interval], ...]

    def output_size(self, size: int) -> int:
        return self.size

    def needs(self, out: Interval) -> Interval:
        return dict(self.needed)[out]


@dataclass(frozen=True)
class Padded:
    """Padding with the image itself: `mode` reflect (without its edge), replicate (its edge) or circular."""

    mode: str
    padding: tuple[int, int]

    def output_size(self, size: int) -> int:
        most = {"reflect": size - 1, "circular": size}.get(self.mode, max(self.padding))
        if max(self.padding) > most or min(self.padding) < 0:
            raise ValueError(f"{self.mode} padding of an axis of {size} is from 0 to {most}, not {self.padding}")
        return size + sum(self.padding)

    def needs(self, out: Interval) -> Interval:
        return Interval(out.start - self.padding[0], out.stop - self.padding[0])

    def pieces(self, needed: Interval, size: int) -> list[Piece]:
        before, after = self.padding
        if self.mode == "reflect":
            outside = [
                Piece(Interval(-before, 0), Interval(1, before + 1), -1),
                Piece(Interval(size, size + after), Interval(size - 1 - after, size - 1), -1),
            ]
        elif self.mode == "circular":
            outside = [
                Piece(Interval(-before, 0), Interval(size - before, size)),
                Piece(Interval(size, size + after), Interval(0, after)),
            ]
        else:
            outside = [
                Piece(Interval(-before, 0).intersect(needed), Interval(0, 1), 0),
                Piece(Interval(size, size + after).intersect(needed), Interval(size - 1, size), 0),
            ]
        inside = Piece(Interval(0, size), Interval(0, size))
        return [_placed_in(piece, needed) for piece in (inside, *outside)]


@dataclass(frozen=True)
class Rolled:
    """Each output is the input `shift` places before it, where the image's end leads to its beginning."""

    shift: int

    def output_size(self, size: int) -> int:
        return size

    def needs(self, out: Interval) -> Interval:
        return Interval(out.start - self.shift, out.stop - self.shift)

    def pieces(self, needed: Interval, size: int) -> list[Piece]:
        image = Piece(Interval(0, size), Interval(0, size))
        before = Piece(Interval(-self.shift, 0), Interval(size - self.shift, size))
        return [_placed_in(piece, needed) for piece in (image, before)]


@dataclass(frozen=True)
class Flipped:
    """An axis of `size` in reverse: its mirror image, which begins where it ends."""

    size: int

    def output_size(self, size: int) -> int:
        return size

    def needs(self, out: Interval) -> Interval:
        return Interval(self.size + out.start, self.size + out.stop)

    def pieces(self, needed: Interval, size: int) -> list[Piece]:
        return [_placed_in(Piece(Interval(size, 2 * size), Interval(0, size), -1), needed)]


def _placed_in(piece: Piece, needed: Interval) -> Piece:
    """The part of `piece` whose place is in `needed`."""
    place = piece.place.intersect(needed)
    if place.size == 0:
        return Piece(Interval(0, 0), Interval(0, 0))
    if piece.step == 0:
        return piece._replace(place=place)
    if piece.step == 1:
        start = piece.source.start + place.start - piece.place.start
    else:
        start = piece.source.start + piece.place.stop - place.stop
    return Piece(place, Interval(start, start + place.size), piece.step)


def split(size: int, parts: int, index: int) -> Interval:
    """Part `index` of an axis of `size` cut into `parts`: contiguous, in order, lengths differing by at most one.

    Every tensor of one size is cut the same way at every layer, so tensors that meet (a shortcut and its branch)
    always lie alike, and nobody needs to be told where a tensor's parts are. Where the axis is shorter than
    `parts`, some parts are empty.

    >>> [tuple(split(7, 3, i)) for i in range(3)]
    [(0, 2), (2, 4), (4, 7)]
    """
    return Interval(index * size // parts, (index + 1) * size // parts)
