"""The exact area mean: downsampling by any ratio, integer or not, in rows as they come and pieces without a seam.

An output pixel is the mean of the source pixels that it covers, each by the share that it covers. Ratios are fractions,
shares and sums are integers: what is computed depends on the image alone, not on how it is cut.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numba
import numpy as np

from gigapipe.disks import tell_once

ONE, TWO, THREE = np.uint64(1), np.uint64(2), np.uint64(3)
LARGEST = 8_000_000  # numerator of a ratio: times a grey level it must fit 32 bits


@dataclass(frozen=True)
class Axis:
    """Downsampling of an axis of `source` pixels to `size`, by `ratio` source pixels to one."""

    source: int
    ratio: Fraction
    size: int

    @classmethod
    def of(cls, source: int, ratio: float, size: int | None = None) -> "Axis":
        """`ratio` becomes the fraction that a quotient of two numbers of few decimals was, or one that is as good.

        `size` is rounded from it, and at least one, unless it is given.
        """
        fraction = Fraction(ratio).limit_denominator(min(10**6, max(1, int(LARGEST / ratio))))
        return cls(source, fraction, size or max(1, round(source / fraction)))

    def spans(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Where each of the output pixels `[start, stop)` begins and ends, in `ratio.denominator`ths of a pixel."""
        edges, unit = np.arange(start, stop + 1, dtype=np.int64) * self.ratio.numerator, self.ratio.denominator
        end = self.source * unit
        # A level of a file may end a pixel before level 0 does: its last pixel then stands for what would follow.
        return np.where(edges[:-1] < end, edges[:-1], end - unit), np.minimum(edges[1:], end)

    def covered(self, start: int, stop: int) -> tuple[int, int]:
        """The source pixels `[first, last)` that the output pixels `[start, stop)` cover."""
        begins, ends = self.spans(start, stop)
        return int(begins[0] // self.ratio.denominator), int(-(-ends[-1] // self.ratio.denominator))

    def begins(self, source: Fraction) -> int:
        """The first output pixel that begins at `source` in the source or after it."""
        return min(self.size, math.ceil(source / self.ratio))


class AreaMean:
    """The output pixels `rows` × `columns` (half-open ranges) of an image, from its rows, fed from top to bottom.

    `mean` is (channel, row, column), uint8 RGB, rounded half up; its first `finished` rows are whole.
    """

    def __init__(self, down: Axis, across: Axis, rows: tuple[int, int], columns: tuple[int, int]):
        self.rows, self.columns = down.covered(*rows), across.covered(*columns)
        self.mean = np.empty((3, rows[1] - rows[0], columns[1] - columns[0]), np.uint8)
        self.finished = 0
        self._unit, self._down = down.ratio.denominator, down.spans(*rows)
        self._first, self._shares = _shares(*across.spans(*columns), across.ratio.denominator, self.columns[0])
        # Behind the last pixel zeros, for there are more shares than it has source pixels.
        self._sums = np.zeros((self.columns[1] - self.columns[0] + self._shares.shape[1]) * 3, np.int32)

    def feed(self, band: np.ndarray, row: int, column: int) -> None:
        """Take in source pixels (rows, columns, 3), uint8, the first of which is at `row`, `column`.

        A band begins where the one before ended, and holds all source columns that are needed; what is above the source
        rows that are needed, below or beside, is passed over.
        """
        first, last = max(row, self.rows[0]), min(row + len(band), self.rows[1])
        if first >= last or not self.mean.size:
            return
        rows, across = np.ascontiguousarray(band[first - row : last - row]), (self._first, self._shares)
        # Three values to a pixel; what is beside is passed over there, for cutting it off would copy all the rest.
        rows, begin, end = rows.reshape(len(rows), -1), *(3 * (edge - column) for edge in self.columns)
        part = rows, begin, end, first, self._unit
        self.finished = _feed(*part, *self._down, *across, self._sums, self.finished, self.mean)


def _shares(begins: np.ndarray, ends: np.ndarray, unit: int, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each output pixel where in the sums (from the source pixel `start`, three to a pixel) its first source pixel
    is, and (output pixel, source pixel from there on, at least three) what share it has of its mean."""
    left, right = begins[:, None], ends[:, None]
    first = left // unit
    most = int(((right - 1) // unit - first).max(initial=2)) + 1
    pixels = first + np.arange(most)
    covered = np.minimum((pixels + 1) * unit, right) - np.maximum(pixels * unit, left)
    # Unsigned: numba then does not ask whether an index counts from the end.
    return (3 * (first[:, 0] - start)).astype(np.uint64), np.maximum(covered, 0) / (right - left)


def compiled(signature: str) -> Callable[[Callable], Callable]:
    """Compile a function of given types here and now, or load what was compiled before where numba may keep that.

    So the code is there when this file is imported, and no slide waits for it.
    """

    def now(function: Callable) -> Callable:
        try:
            return numba.njit(signature, nogil=True, cache=True)(function)
        except Exception as error:  # of no folder a RuntimeError, of a full one an OSError, of torn files anything
            reason = "no folder is writable" if isinstance(error, RuntimeError) else type(error).__name__
            tell_once(
                f"numba cannot cache compiled code ({getattr(error, 'strerror', None) or reason}), so that each "
                "process compiles it again, which takes some seconds; set NUMBA_CACHE_DIR to a writable folder"
            )
            return numba.njit(signature, nogil=True)(function)

    return now


@compiled("void(float64[::1], uint64[::1], float64[:, ::1], float64[:, ::1])")
def _across(sums, first, shares, line):
    """Means (channel, output pixel) along a row of sums. Three source pixels at once, for that is mostly all."""
    for j in range(len(first)):
        x = first[j]
        y, z = x + THREE, x + THREE + THREE
        of_x, of_y, of_z = shares[j, 0], shares[j, 1], shares[j, 2]
        red = of_x * sums[x] + of_y * sums[y] + of_z * sums[z]
        green = of_x * sums[x + ONE] + of_y * sums[y + ONE] + of_z * sums[z + ONE]
        blue = of_x * sums[x + TWO] + of_y * sums[y + TWO] + of_z * sums[z + TWO]
        for k in range(3, shares.shape[1]):
            z += THREE
            red += shares[j, k] * sums[z]
            green += shares[j, k] * sums[z + ONE]
            blue += shares[j, k] * sums[z + TWO]
        line[0, j], line[1, j], line[2, j] = red, green, blue


@compiled(
    "int64(Array(uint8, 2, 'C', readonly=True), int64, int64, int64, int64, int64[::1], int64[::1], uint64[::1],"
    "float64[:, ::1], int32[::1], int64, uint8[:, :, ::1])"
)
def _feed(band, begin, end, row, unit, begins, ends, first, shares, sums, at, mean):
    """Add source rows, from the value `begin` to `end`, to the sums of the output row `at`.

    When it is whole, write it to `mean`, and go on to the next."""
    floats, line = np.empty(len(sums)), np.empty((3, len(first)))
    for y in range(len(band)):
        top, bottom, pixels = (row + y) * unit, (row + y + 1) * unit, band[y, begin:end]
        while at < mean.shape[1] and begins[at] < bottom:
            share = np.int32(min(bottom, ends[at]) - max(top, begins[at]))
            for x in range(len(pixels)):
                sums[x] += share * pixels[x]
            if ends[at] > bottom:
                break
            for x in range(len(sums)):
                floats[x] = sums[x]
                sums[x] = 0
            _across(floats, first, shares, line)
            per_height = 1.0 / (ends[at] - begins[at])
            for channel in range(3):
                for j in range(len(first)):
                    # What is halfway goes up, though the last digits are not exact.
                    mean[channel, at, j] = np.uint8(line[channel, j] * per_height + (0.5 + 1e-7))
            at += 1
    return at
