"""The halo exchange: every rank gets the part of its neighbours' shards that its next operator looks at.

Who sends what to whom is in `halo_plan.py`: columns, then rows. All that goes to one rank is one message, and what does
not lie together in memory is packed for all of them by one copy.

The backward pass is the adjoint: gradients of received rows go back to their owners, who add them, then those of
columns.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch

from gigapipe.spatial import kernels
from gigapipe.spatial.halo_plan import COLUMNS, ROWS, Halo, Leg, plan
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.refusals import once_differentiable
from gigapipe.spatial.tile import Tile
from gigapipe.spatial.window import Access, Interval, Piece, Rectangle


def _cut(x: torch.Tensor, axis: int, part: Interval, held: Interval) -> torch.Tensor:
    """`part` of an axis of which `x` holds `held`."""
    return x if part == held else x.narrow(axis, part.start - held.start if part.size else 0, part.size)


def _exchange(
    outgoing: Sequence[tuple[int, Sequence[torch.Tensor]]],
    incoming: Sequence[tuple[int, Sequence[int]]],
    axis: int,
    shape: Sequence[int],
    mesh: Mesh,
    like: torch.Tensor,
) -> Callable[[], list[torch.Tensor]]:
    """Send lists of strips and receive others, of these lengths along `axis` and as `shape` across it.

    The result waits for what arrives, of `like`'s dtype and device. On the wire the axis comes first and channels last,
    whatever the memory format on either side.
    """
    if not (outgoing or incoming):
        return list
    dimensions = range(len(shape))
    first = dimensions[axis]
    order = [first, *(d for d in dimensions if d != first)]
    if len(shape) == 4:
        order = [first, 0, dimensions[ROWS + COLUMNS - axis], 1]
    strips = [[strip.permute(order) for strip in strips] for _, strips in outgoing]
    if all(len(few) == 1 and few[0].is_contiguous() for few in strips):
        leaving = [few[0] for few in strips]
    else:
        packed = kernels.join([strip for few in strips for strip in few])
        leaving = packed.split([sum(len(strip) for strip in few) for few in strips])
    lengths = [length for _, few in incoming for length in few]
    arrived = like.new_empty([sum(lengths), *(shape[d] for d in order[1:])])
    arriving = arrived.split([sum(few) for _, few in incoming]) if incoming else ()
    wait = mesh.image.exchange(
        [(rank, x) for (rank, _), x in zip(outgoing, leaving, strict=True)],
        [(rank, x) for (rank, _), x in zip(incoming, arriving, strict=True)],
    )
    back = [order.index(d) for d in dimensions]

    def arrive() -> list[torch.Tensor]:
        wait()
        return [strip.permute(back) for strip in arrived.split(lengths)] if lengths else []

    return arrive


def _send(x: torch.Tensor, leg: Leg, mesh: Mesh) -> Callable[[], list[torch.Tensor]]:
    """Begin a leg of an image of which `x` has `leg.held` of the axis."""
    outgoing = [(rank, [_cut(x, leg.axis, part, leg.held) for part in parts]) for rank, parts in leg.sends]
    incoming = [(rank, [piece.source.size for piece in pieces]) for rank, pieces in leg.receives]
    return _exchange(outgoing, incoming, leg.axis, x.shape, mesh, like=x)


def _return(
    grads: Iterable[torch.Tensor], leg: Leg, shape: Sequence[int], mesh: Mesh, like: torch.Tensor
) -> Callable[[], list[torch.Tensor]]:
    """Begin to return gradients of what was received; what arrives belongs to what was sent."""
    remaining = iter(grads)
    outgoing = [(rank, [next(remaining) for _ in pieces]) for rank, pieces in leg.receives]
    incoming = [(rank, [part.size for part in parts]) for rank, parts in leg.sends]
    return _exchange(outgoing, incoming, leg.axis, shape, mesh, like)


def send_halos(local: torch.Tensor, halo: Halo, mesh: Mesh) -> Callable[[], list[torch.Tensor]]:
    """Begin to exchange the halos of a shard, of an operator for which all lies in its own place.

    The result waits, and returns the strips of `halo.received`. While they travel, the shard must stay as it is.
    """
    columns, rows = halo.columns, halo.rows
    held = _cut(local, ROWS, rows.held, halo.owned.rows)
    strips = _send(held, columns, mesh)()
    beside = [(piece.source, _cut(held, COLUMNS, piece.source, columns.held)) for piece in columns.kept]
    beside += [(piece.source, strip) for piece, strip in zip(columns.received, strips, strict=True)]
    beside.sort(key=lambda pair: pair[0])

    def wide(part: Interval) -> torch.Tensor:
        """Rows of the shard, with the columns that came."""
        cut = [_cut(strip, ROWS, part, rows.held) for _, strip in beside]
        return cut[0] if len(cut) == 1 else torch.cat(cut, COLUMNS)

    outgoing = [(rank, [wide(part) for part in parts]) for rank, parts in rows.sends]
    incoming = [(rank, [piece.source.size for piece in pieces]) for rank, pieces in rows.receives]
    arrive = _exchange(outgoing, incoming, ROWS, (*local.shape[:-1], columns.covered.size), mesh, like=local)
    return lambda: [*strips, *arrive()]


def return_halos(
    grads: list[torch.Tensor], halo: Halo, mesh: Mesh, like: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Begin to return the gradients of `halo.received` to their owners: the adjoint of `send_halos`.

    The result waits, and adds what this rank gets to the gradient of its shard, in place; those of columns change, too.
    `like` has the shape, dtype and device of the shard.
    """
    columns, rows = halo.columns, halo.rows
    tall, wide = (*like.shape[:-2], rows.held.size, 0), (*like.shape[:-1], columns.covered.size)
    of_columns, of_rows = grads[: len(columns.received)], grads[len(columns.received) :]
    arrive = _return(of_rows, rows, wide, mesh, like)
    early = _return(of_columns, columns, tall, mesh, like) if rows.idle else None

    def add_to(grad_local: torch.Tensor) -> torch.Tensor:
        held = _cut(grad_local, ROWS, rows.held, halo.owned.rows)
        beside = [(piece.source, _cut(held, COLUMNS, piece.source, columns.held)) for piece in columns.kept]
        beside += [(piece.source, grad) for piece, grad in zip(columns.received, of_columns, strict=True)]
        for grad, part in zip(arrive(), rows.sent, strict=True):
            for source, into in beside:
                _cut(into, ROWS, part, rows.held).add_(_cut(grad, COLUMNS, source, columns.covered))
        returned = early or _return(of_columns, columns, tall, mesh, like)
        for grad, part in zip(returned(), columns.sent, strict=True):
            _cut(held, COLUMNS, part, columns.held).add_(grad)
        return grad_local

    return add_to


def gathered(
    local: torch.Tensor, halo: Halo, mesh: Mesh, fill: float, strips: list[torch.Tensor] | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Own pixels, neighbours' pixels and `fill`: a new tensor (…, needed rows, needed columns), or the shard itself.

    Second, what was received. Given as `strips`, nothing is sent again.
    """
    if halo.nothing:
        return local, []
    columns, rows, needed = halo.columns, halo.rows, halo.needed
    held = _cut(local, ROWS, rows.held, halo.owned.rows)
    arrive = _send(held, columns, mesh) if strips is None else lambda: strips[: len(columns.received)]
    buffer = _like(local, needed.shape)
    for gap in halo.gaps:
        buffer[(..., *gap.within(needed))] = fill
    between = buffer if needed.empty else _cut(buffer, COLUMNS, columns.covered, needed.columns)
    # With its columns the shard lies in the buffer, unless rows are taken in another order, twice, or not all.
    if rows.whole:
        wide = _cut(between, ROWS, rows.kept[0].place, needed.rows)
    else:
        wide = _like(local, (rows.held.size, columns.covered.size))
        if not columns.full:
            wide.fill_(fill)
    own = [_cut(held, COLUMNS, piece.source, columns.held) for piece in columns.kept]
    pairs = _places(columns.kept, own, wide, columns.covered, COLUMNS)
    if strips is None:  # the shard's copy is made while columns travel
        kernels.copy(pairs)
        pairs = []
    of_columns = arrive()
    pairs += _places(columns.received, of_columns, wide, columns.covered, COLUMNS)
    if strips is None or not rows.whole:
        kernels.copy(pairs)
        pairs = []
    of_rows = _send(wide, rows, mesh)() if strips is None else strips[len(columns.received) :]
    if not rows.whole:
        own = [_cut(wide, ROWS, piece.source, rows.held) for piece in rows.kept]
        pairs += _places(rows.kept, own, between, needed.rows, ROWS)
    kernels.copy(pairs + _places(rows.received, of_rows, between, needed.rows, ROWS))
    return buffer, [*of_columns, *of_rows]


def _like(x: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Memory in the layout of `x`, by which torch picks an operator's kernel."""
    return torch.empty((*x.shape[:-2], *shape), dtype=x.dtype, device=x.device, memory_format=layout(x))


def _places(
    pieces: Sequence[Piece], parts: Sequence[torch.Tensor], into: torch.Tensor, held: Interval, axis: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The place of each source along an axis of which `into` has `held`, and what belongs there."""
    places = [_cut(into, axis, piece.place, held) for piece in pieces]
    turned = [part.flip(axis) if piece.step == -1 else part for piece, part in zip(pieces, parts, strict=True)]
    return [(place, part.expand_as(place)) for place, part in zip(places, turned, strict=True)]


def _sources(pieces: Iterable[Piece], grad: torch.Tensor, held: Interval, axis: int) -> list[torch.Tensor]:
    """The gradients of sources, of a tensor that has `held` of an axis: the adjoint of `_places`."""
    found = []
    for piece in pieces:
        part = _cut(grad, axis, piece.place, held)
        part = part.sum(axis, keepdim=True) if piece.step == 0 else part
        found.append(part.flip(axis) if piece.step == -1 else part)
    return found


def scattered(grad: torch.Tensor, shape: torch.Size, halo: Halo, mesh: Mesh, own: bool = False) -> torch.Tensor:
    """The adjoint of `gathered`: the gradient of the shard, of `shape`, given that of the gathered tensor.

    If `grad` is the caller's `own`, it is changed, and the result may be a view of it.
    """
    if halo.nothing:
        return grad
    columns, rows, needed = halo.columns, halo.rows, halo.needed
    empty = partial(torch.empty, dtype=grad.dtype, device=grad.device, memory_format=layout(grad))
    tall, wide = (*shape[:-2], rows.held.size, shape[-1]), (*shape[:-2], rows.held.size, columns.covered.size)
    between = grad if needed.empty else _cut(grad, COLUMNS, columns.covered, needed.columns)
    arrive = _return(_sources(rows.received, between, needed.rows, ROWS), rows, wide, mesh, like=grad)
    if rows.whole:
        of_wide = _cut(between, ROWS, rows.kept[0].place, needed.rows)
        of_wide = of_wide if own else of_wide.clone(memory_format=layout(grad))
    else:
        of_wide = _kept_back(rows, between, needed.rows, empty(wide))
    into = [_cut(of_wide, ROWS, part, rows.held) for part in rows.sent]
    kernels.copy(list(zip(into, arrive(), strict=True)), True, rows.sent_apart)
    arrive = _return(_sources(columns.received, of_wide, columns.covered, COLUMNS), columns, tall, mesh, like=grad)
    if columns.whole:
        held = _cut(of_wide, COLUMNS, columns.kept[0].place, columns.covered)
    else:
        held = _kept_back(columns, of_wide, columns.covered, empty(tall))
    into = [_cut(held, COLUMNS, part, columns.held) for part in columns.sent]
    kernels.copy(list(zip(into, arrive(), strict=True)), True, columns.sent_apart)
    if rows.held == halo.owned.rows:
        return held
    grad_local = empty(shape).zero_()
    _cut(grad_local, ROWS, rows.held, halo.owned.rows).copy_(held)
    return grad_local


def _kept_back(leg: Leg, grad: torch.Tensor, held: Interval, found: torch.Tensor) -> torch.Tensor:
    """What the kept pieces give back to what was held before a leg, in the memory of `found`."""
    found.zero_()
    for piece, part in zip(leg.kept, _sources(leg.kept, grad, held, leg.axis), strict=True):
        _cut(found, leg.axis, piece.source, leg.held).add_(part)
    return found


def layout(x: torch.Tensor) -> torch.memory_format:
    """The memory format of an image (batch, channels, rows, columns)."""
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: torch.Tensor, halo: Halo, mesh: Mesh, fill: float) -> torch.Tensor:
        ctx.halo, ctx.mesh, ctx.local_shape = halo, mesh, local.shape
        # Activation checkpointing recomputes as far as something was saved: what all ranks must take part in, all save.
        ctx.save_for_backward(local.new_empty(0))
        return gathered(local, halo, mesh, fill)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        (_,) = ctx.saved_tensors
        return scattered(grad, ctx.local_shape, ctx.halo, ctx.mesh), None, None, None


def gather_halo(
    local: torch.Tensor,
    held: Rectangle,
    mesh: Mesh | Tile,
    size: tuple[int, int],
    accesses: tuple[Access, Access],
    fill: float = 0.0,
) -> torch.Tensor:
    """Everything that an operator needs to compute its own shard of the output, without padding of its own.

    `local` (…, rows, columns) is this rank's shard, the rectangle `held` of an image of `size`. Returns (…, needed
    rows, needed columns): own pixels, neighbours' pixels, and `fill` where the operator looks past the image; zero rows
    and columns where this rank owns none of the output. All ranks that share the image must call it together.
    Differentiable: the backward pass returns each halo's gradient to its owner. A tile's `held` has its halo.
    """
    if isinstance(mesh, Tile):
        return mesh.gather(local, held, size, accesses, fill)
    halo = plan(mesh, size, accesses)
    return local if halo.nothing else _Gather.apply(local, halo, mesh, fill)
