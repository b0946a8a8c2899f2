"""Who sends what to whom before an operator runs, worked out by each rank alone.

What a rank needs is the interval arithmetic of `window.py` applied to the output that it owns; what it lacks is
needed minus owned. Sizes and meshes are known to all, so each rank works out alone what to send to whom and what to
expect from whom, however far the halo reaches. Nothing is negotiated.

Columns travel first, between the ranks of a row of the mesh; then rows, as wide as columns have made them, between the
ranks of a column. What lies diagonally comes by way of a neighbour, so that a rank between eight others exchanges
messages with four. Columns come first because the rows of an image in channels_last lie together in memory: they are
sent from where they are.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from gigapipe.spatial.mesh import Mesh, remembered_by_mesh
from gigapipe.spatial.window import Access, Interval, Piece, Rectangle, output_size, split

NOTHING = Interval(0, 0)
ROWS, COLUMNS = -2, -1


@dataclass(frozen=True)
class Leg:
    """The exchange along one axis. Sources are global indices of the image, places those of an operator's input.

    `sends` and `receives` pair a rank with what goes to it and comes from it, in the same order on both sides.
    """

    axis: int
    held: Interval
    """What this rank has of the axis before, of which it sends and keeps parts."""
    covered: Interval
    """Where pieces come to lie: what is needed of the axis, without padding."""
    kept: tuple[Piece, ...]
    sends: tuple[tuple[int, tuple[Interval, ...]], ...]
    receives: tuple[tuple[int, tuple[Piece, ...]], ...]

    @cached_property
    def received(self) -> list[Piece]:
        return [piece for _, pieces in self.receives for piece in pieces]

    @cached_property
    def full(self) -> bool:
        """Whether pieces fill what they cover, once."""
        return sum(piece.place.size for piece in (*self.kept, *self.received)) == self.covered.size

    @cached_property
    def whole(self) -> bool:
        """Whether all that is held is kept, as it is, in one piece."""
        return len(self.kept) == 1 and self.kept[0].source == self.held and self.kept[0].step == 1

    @cached_property
    def sent(self) -> list[Interval]:
        return [part for _, parts in self.sends for part in parts]

    @cached_property
    def sent_apart(self) -> bool:
        """Whether nothing is sent twice, so that what comes back may be added in any order."""
        parts = sorted(self.sent)
        return all(before.stop <= after.start for before, after in pairwise(parts))

    @cached_property
    def idle(self) -> bool:
        return not self.sends and not self.receives


@dataclass(frozen=True)
class Halo:
    """Who sends what to whom so that one operator can run.

    `needed` may reach past the image: what no piece covers is padding.
    """

    owned: Rectangle
    needed: Rectangle
    columns: Leg
    rows: Leg

    @cached_property
    def received(self) -> list[Rectangle]:
        """What arrives, columns before rows, of an image in which all lies in its own place."""
        columns = [Rectangle(self.rows.held, piece.source) for piece in self.columns.received]
        return columns + [Rectangle(piece.source, self.columns.covered) for piece in self.rows.received]

    @cached_property
    def nothing(self) -> bool:
        """Whether the operator's input on this rank is its shard, and others need none of it."""
        return self.needed == self.owned and all(leg.idle and len(leg.kept) <= 1 for leg in (self.columns, self.rows))

    @cached_property
    def gaps(self) -> list[Rectangle]:
        """What of `needed` is padding."""
        if self.needed.empty:
            return []
        (above, below), (left, right) = self.needed
        if not (self.rows.full and self.columns.full and self.rows.covered.size and self.columns.covered.size):
            return [self.needed]
        rows, columns = self.rows.covered, self.columns.covered
        margins = [
            Rectangle(Interval(above, rows.start), self.needed.columns),
            Rectangle(Interval(rows.stop, below), self.needed.columns),
            Rectangle(rows, Interval(left, columns.start)),
            Rectangle(rows, Interval(columns.stop, right)),
        ]
        return [margin for margin in margins if not margin.empty]


@remembered_by_mesh
def plan(mesh: Mesh, size: tuple[int, int], accesses: tuple[Access, Access]) -> Halo:
    """The halo of an operator that looks at an image of `size` by `accesses` (rows, columns)."""
    out_size = output_size(accesses, size)

    def needs(axis: int, parts: int, index: int) -> Interval:
        out = split(out_size[axis], parts, index)
        return accesses[axis].needs(out) if out.size else NOTHING

    def pieces(axis: int, needed: Interval, owned: Interval) -> tuple[Piece, ...]:
        """What of `needed` comes from `owned`."""
        if not (needed.size and owned.size):
            return ()
        found = (piece.of(owned) for piece in accesses[axis].pieces(needed, size[axis]))
        return tuple(piece for piece in found if piece.source.size and piece.place.size)

    def leg(axis: int, parts: int, own: int, rank_of: Callable[[int], int], other: Interval) -> Leg:
        """Along `axis`, where `other` is what of the other axis goes along."""
        cuts = [split(size[axis], parts, i) for i in range(parts)]
        needed = [needs(axis, parts, i) for i in range(parts)]
        held = _hull(piece.source for n in needed for piece in pieces(axis, n, cuts[own])) if axis == 0 else cuts[own]
        covered = _hull(piece.place for piece in pieces(axis, needed[own], Interval(0, size[axis])))
        peers = [i for i in range(parts) if i != own] if other.size else []
        sends = [(rank_of(i), tuple(p.source for p in pieces(axis, needed[i], cuts[own]))) for i in peers]
        receives = [(rank_of(i), pieces(axis, needed[own], cuts[i])) for i in peers]
        return Leg(
            axis - 2,
            held,
            covered,
            pieces(axis, needed[own], cuts[own]) if other.size else (),
            tuple(pair for pair in sends if pair[1]),
            tuple(pair for pair in receives if pair[1]),
        )

    # Rows that nobody in this rank's column of the mesh looks at need no columns from its neighbours.
    held = leg(0, mesh.rows, mesh.row, lambda i: i * mesh.columns + mesh.column, NOTHING).held
    columns = leg(1, mesh.columns, mesh.column, lambda i: mesh.row * mesh.columns + i, held)
    rows = leg(0, mesh.rows, mesh.row, lambda i: i * mesh.columns + mesh.column, columns.covered)
    needed = Rectangle(needs(0, mesh.rows, mesh.row), needs(1, mesh.columns, mesh.column))
    nowhere = Rectangle(NOTHING, NOTHING)
    return Halo(mesh.rectangle(size), nowhere if needed.empty else needed, columns, rows)


def _hull(intervals: Iterable[Interval]) -> Interval:
    found = list(intervals)
    return Interval(min(i.start for i in found), max(i.stop for i in found)) if found else NOTHING
