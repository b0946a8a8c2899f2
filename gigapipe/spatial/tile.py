"""The tile: a rectangle of an image that is computed for itself, with all that it looks at at hand.

A `Tile` stands where a `Mesh` stands when an operator asks what it owns and what it lacks. A rank of a mesh lacks its
halo, and fetches it; a tile was given a larger rectangle to begin with, and cuts out of it. So the decomposed form of
an operator serves both: in space, over ranks, and in time, tile after tile (see `stream.py`).
"""

from collections.abc import Sequence

import torch

from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.refusals import once_differentiable
from gigapipe.spatial.torch_internals import without_modes
from gigapipe.spatial.window import Access, Interval, Rectangle, output_size


class Tile:
    """What an operator computes at a time: the rectangle `out` of its output; None stands for the whole image.

    A whole image is how a model is recorded: what operators ask of a tile then (`accesses`, by which they look at
    their input, how many `sums` over the image they make, the random numbers `drawn`) is kept here.
    """

    size = image_ranks = 2  # as of a mesh on which nobody has the whole image
    rows = columns = 1
    image_rank = row = column = 0

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self.data_index = mesh.data_index
        self.image = self.everyone = self
        self.out: Rectangle | None = None
        self.accesses: list[tuple[Access, Access]] = []
        self.sums = 0
        self.drawn: list[torch.Tensor] = []
        self.replayed = 0

    def __repr__(self) -> str:
        return f"Tile({self.out})"

    def record(self) -> None:
        """Begin to record what an operator asks."""
        self.out, self.accesses, self.sums, self.drawn, self.replayed = None, [], 0, [], 0

    def replay(self, out: Rectangle | None, drawn: Sequence[torch.Tensor]) -> None:
        """Begin to compute `out` with an operator that drew those numbers when it was recorded."""
        self.out, self.drawn, self.replayed = out, list(drawn), 0

    def rectangle(self, size: tuple[int, int]) -> Rectangle:
        return self.out or Rectangle(Interval(0, size[0]), Interval(0, size[1]))

    def sum_(self, x: torch.Tensor) -> torch.Tensor:
        """This tile's share of a sum over the image, which whoever goes through the tiles adds up."""
        self.sums += 1
        return x

    def draw(self) -> torch.Tensor:
        if self.replayed == len(self.drawn):  # recorded, not replayed
            with without_modes():  # a number, though nothing but shapes is asked for
                self.drawn.append(self.mesh.draw())
        self.replayed += 1
        return self.drawn[self.replayed - 1]

    def gather(
        self,
        local: torch.Tensor,
        held: Rectangle,
        size: tuple[int, int],
        accesses: tuple[Access, Access],
        fill: float,
    ) -> torch.Tensor:
        """What an operator needs for `out`, from `local`, which holds `held` of an image of `size`.

        A view, where it can be; with `fill` where the operator looks past the image.
        """
        self.accesses.append(accesses)
        out = self.rectangle(output_size(accesses, size))
        margins = []
        for axis, access, o, h, n in zip((-2, -1), accesses, out, held, size, strict=True):
            needed = access.needs(o)
            inside = needed.intersect(Interval(0, n))
            pieces = [piece for piece in access.pieces(needed, n) if piece.source.size and piece.place.size]
            if pieces and all(piece.place == piece.source == inside for piece in pieces):
                margins.append((h.start - needed.start, needed.stop - h.stop))
                continue
            if not pieces:
                margins.append((needed.size, -h.size))
                continue
            places = torch.empty(needed.size, dtype=torch.int64)
            for place, source, step in pieces:
                copied = torch.arange(source.start - h.start, source.stop - h.start)
                places[place.within(needed)] = copied.flip(0) if step == -1 else copied
            local = local.index_select(axis, places.to(local.device))
            margins.append((0, 0))
        return resized(local, (*margins[1], *margins[0]), fill)


class _Resized(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, margins: tuple[int, int, int, int], fill: float) -> torch.Tensor:
        ctx.margins = margins
        return _with_margins(x, margins, fill)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        return _with_margins(grad, tuple(-margin for margin in ctx.margins), 0.0), None, None


def _with_margins(x: torch.Tensor, margins: tuple[int, int, int, int], fill: float) -> torch.Tensor:
    left, right, above, below = margins
    x = x[..., max(0, -above) : x.shape[-2] + min(0, below), max(0, -left) : x.shape[-1] + min(0, right)]
    if max(margins) <= 0:
        return x
    left, right, above, below = (max(0, margin) for margin in margins)
    rows, columns = x.shape[-2:]
    padded = torch.empty(
        (*x.shape[:-2], above + rows + below, left + columns + right),
        dtype=x.dtype,
        device=x.device,
        memory_format=layout_of_part(x),
    )
    # F.pad would write all of it twice.
    padded[..., above : above + rows, left : left + columns] = x
    for margin in (
        padded[..., :above, :],
        padded[..., above + rows :, :],
        padded[..., :left],
        padded[..., left + columns :],
    ):
        margin.fill_(fill)
    return padded


def layout_of_part(x: torch.Tensor) -> torch.memory_format:
    """The memory format of the image (batch, channels, rows, columns) that `x` is a view of."""
    channels_last = x.dim() == 4 and x.shape[1] > 1 and x.stride(1) == 1
    return torch.channels_last if channels_last else torch.contiguous_format


def dense(x: torch.Tensor) -> torch.Tensor:
    """`x`, or a copy if it is a view of a part of an image: of such, torch's kernels for norms take ten times as long.

    That was measured of the statistics and of the backward pass, on a CPU.
    """
    return x.contiguous(memory_format=layout_of_part(x))


def resized(x: torch.Tensor, margins: tuple[int, int, int, int], fill: float = 0.0) -> torch.Tensor:
    """`x` with margins (left, right, above, below) of `fill`, or cut off where they are negative; then a view.

    As torch's F.pad and slicing, but for the gradient, which they would make anew for each axis, and in another
    memory format than the one that convolutions are fast in.
    """
    return _Resized.apply(x, margins, fill) if any(margins) else x


def looked_at(access: Access, out: Interval, size: int) -> Interval:
    """The stretch of an axis of `size` from which an operator takes all that it needs for the outputs `out`."""
    sources = [piece.source for piece in access.pieces(access.needs(out), size) if piece.source.size]
    return Interval(min(s.start for s in sources), max(s.stop for s in sources)) if sources else Interval(0, 0)
