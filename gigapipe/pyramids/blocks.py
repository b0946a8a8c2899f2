"""How the making of a pyramid is divided: blocks of the slide, each read once for all resolutions."""

from dataclasses import dataclass
from fractions import Fraction

from gigapipe.pyramids.area import Axis

BLOCK = 4096, 4096
"""Source rows and columns of a block, at most: what one thread reads band by band, and what a kill can cost it."""

Range = tuple[int, int]


@dataclass(frozen=True)
class Blocks:
    """A level of the slide divided into a grid of blocks, each with its part of every output made of that level.

    The parts of one output have no gap and do not overlap. Where whole units (chunks or shards) of the finest output
    are not larger than a block, its parts are made of whole units.
    """

    level: int
    outputs: dict[int, tuple[Axis, Axis]]
    """By the output's number, its rows and columns."""
    unit: int
    begins: tuple[list[Fraction], list[Fraction]]
    """Where the rows and the columns of the grid begin, in source pixels."""

    @classmethod
    def of(cls, level: int, outputs: dict[int, tuple[Axis, Axis]], unit: int) -> "Blocks":
        begins = []
        for axis, largest in enumerate(BLOCK):
            finest = min((axes[axis] for axes in outputs.values()), key=lambda a: a.ratio)
            step = int(largest / finest.ratio) // unit * unit or max(1, int(largest / finest.ratio))
            begins.append([start * finest.ratio for start in range(0, finest.size, step)])
        return cls(level, outputs, unit, (begins[0], begins[1]))

    @property
    def grid(self) -> tuple[int, int]:
        """How many rows and columns of blocks there are."""
        return len(self.begins[0]), len(self.begins[1])

    def part(self, output: int, block: tuple[int, int]) -> tuple[Range, Range]:
        """The rows and columns of an output that a block makes: those that begin in it. They may be none."""
        rows, columns = (
            (axis.begins(begins[i]), axis.begins(begins[i + 1]) if i + 1 < len(begins) else axis.size)
            for axis, begins, i in zip(self.outputs[output], self.begins, block, strict=True)
        )
        return rows, columns

    def is_whole(self, output: int) -> bool:
        """Whether every block makes whole units of an output."""
        return all(
            axis.begins(begin) % self.unit == 0
            for axis, begins in zip(self.outputs[output], self.begins, strict=True)
            for begin in begins
        )

    def units(self, output: int) -> list[tuple[Range, Range]]:
        """The rows and columns of each unit of an output."""
        rows, columns = (
            [(start, min(start + self.unit, axis.size)) for start in range(0, axis.size, self.unit)]
            for axis in self.outputs[output]
        )
        return [(r, c) for r in rows for c in columns]

    def makers(self, output: int, rows: Range, columns: Range) -> list[tuple[int, int]]:
        """The blocks that make some pixel of these rows and columns of an output."""
        along = []
        for axis, wanted in enumerate((rows, columns)):
            starts = [self.outputs[output][axis].begins(begin) for begin in self.begins[axis]]
            stops = [*starts[1:], self.outputs[output][axis].size]
            along.append([i for i, part in enumerate(zip(starts, stops, strict=True)) if _meet(part, wanted)])
        return [(i, j) for i in along[0] for j in along[1]]


def _meet(a: Range, b: Range) -> bool:
    return max(a[0], b[0]) < min(a[1], b[1])
