"""The halo exchange: every rank gets the part of its neighbours' shards that its next operator looks at.

What a rank needs is the interval arithmetic of `window.py` applied to the output that it owns; what it lacks is
needed minus owned. Sizes and meshes are known to all, so each rank works out alone what to send to whom and what to
expect from whom: at most one message for each ordered pair of ranks, corners included, however far the halo reaches.
Nothing is negotiated.

The backward pass is the adjoint: the gradient of a received halo goes back to its owner, who adds it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from gigapipe.spatial.mesh import Mesh, remembered_by_mesh
from gigapipe.spatial.refusals import once_differentiable
from gigapipe.spatial.tile import Tile
from gigapipe.spatial.window import Access, Interval, Rectangle, output_size


class Copy(NamedTuple):
    """A rectangle of the image, and the rectangle of an operator's input that is a copy of it."""

    source: Rectangle
    place: Rectangle
    steps: tuple[int, int]  # along rows and columns; see window.Piece

    @property
    def flips(self) -> list[int]:
        return [axis for axis, step in zip((-2, -1), self.steps, strict=True) if step == -1]

    def put(self, part: torch.Tensor, buffer: torch.Tensor, needed: Rectangle) -> None:
        """Write `part`, which holds `source`, to its place in `buffer`, which holds `needed`."""
        buffer[(..., *self.place.within(needed))] = part.flip(self.flips) if self.flips else part

    def gradient(self, grad: torch.Tensor, needed: Rectangle) -> torch.Tensor:
        """The gradient of `source`, given that of `needed`: the adjoint of `put`."""
        part = grad[(..., *self.place.within(needed))]
        for axis, step in zip((-2, -1), self.steps, strict=True):
            if step == 0:
                part = part.sum(axis, keepdim=True)
        return part.flip(self.flips) if self.flips else part


@dataclass(frozen=True)
class Halo:
    """Who sends what to whom, in global rows and columns, so that one operator can run.

    `needed` may reach past the image: what no copy writes is padding. `kept` are the copies of own pixels;
    `sends` and `receives` pair a peer with what goes to it and comes from it, in the same order on both sides.
    """

    owned: Rectangle
    needed: Rectangle
    kept: tuple[Copy, ...]
    sends: tuple[tuple[int, tuple[Rectangle, ...]], ...]
    receives: tuple[tuple[int, tuple[Copy, ...]], ...]

    @property
    def received(self) -> list[Copy]:
        return [copy for _, copies in self.receives for copy in copies]

    @property
    def nothing(self) -> bool:
        """Whether the operator's input on this rank is its shard, and others need none of it."""
        return self.needed == self.owned and not self.sends and len(self.kept) <= 1


@remembered_by_mesh
def plan(mesh: Mesh, size: tuple[int, int], accesses: tuple[Access, Access]) -> Halo:
    """The halo of an operator that looks at an image of `size` by `accesses` (rows, columns)."""
    out_size = output_size(accesses, size)
    nowhere = Rectangle(Interval(0, 0), Interval(0, 0))

    def needs(row: int, column: int) -> Rectangle:
        out = mesh.rectangle(out_size, row, column)
        return nowhere if out.empty else Rectangle(accesses[0].needs(out.rows), accesses[1].needs(out.columns))

    def copies(needed: Rectangle, owned: Rectangle) -> tuple[Copy, ...]:
        """What of `needed` comes from `owned`."""
        if needed.empty or owned.empty:
            return ()
        rows, columns = (
            [piece.of(o) for piece in access.pieces(n, s)]
            for access, n, s, o in zip(accesses, needed, size, owned, strict=True)
        )
        return tuple(
            Copy(Rectangle(r.source, c.source), Rectangle(r.place, c.place), (r.step, c.step))
            for r in rows
            for c in columns
            if r.source.size and c.source.size and r.place.size and c.place.size
        )

    owned, needed = mesh.rectangle(size), needs(mesh.row, mesh.column)
    sends, receives = [], []
    for rank, row, column in mesh.peers():
        outgoing = copies(needs(row, column), owned)
        incoming = copies(needed, mesh.rectangle(size, row, column))
        if outgoing:
            sends.append((rank, tuple(copy.source for copy in outgoing)))
        if incoming:
            receives.append((rank, incoming))
    return Halo(owned, needed, copies(needed, owned), tuple(sends), tuple(receives))


def send_halos(local: torch.Tensor, halo: Halo, mesh: Mesh) -> Callable[[], list[torch.Tensor]]:
    """Begin to exchange halos of the shard `local`; the result waits, and returns those of `halo.received`."""
    outgoing = [(rank, [local[(..., *part.within(halo.owned))] for part in parts]) for rank, parts in halo.sends]
    incoming = [(rank, [copy.source.shape for copy in copies]) for rank, copies in halo.receives]
    return _exchange(outgoing, incoming, mesh, like=local)


def return_halos(
    grads: list[torch.Tensor], halo: Halo, mesh: Mesh, like: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Begin to return the gradients of `halo.received` to their owners: the adjoint of `send_halos`.

    The result waits, and adds what this rank gets to the gradient of its shard, in place. `like` has the batch,
    channels, dtype and device of both.
    """
    remaining = iter(grads)
    outgoing = [(rank, [next(remaining) for _ in copies]) for rank, copies in halo.receives]
    incoming = [(rank, [part.shape for part in parts]) for rank, parts in halo.sends]
    arrive = _exchange(outgoing, incoming, mesh, like)

    def add_to(grad_local: torch.Tensor) -> torch.Tensor:
        sent = [part for _, parts in halo.sends for part in parts]
        for received, part in zip(arrive(), sent, strict=True):
            grad_local[(..., *part.within(halo.owned))] += received
        return grad_local

    return add_to


def _exchange(outgoing, incoming, mesh: Mesh, like: torch.Tensor) -> Callable[[], list[torch.Tensor]]:
    """Send lists of tensors and receive tensors of lists of shapes, one message for each other rank."""
    lead = like.shape[:-2]
    depth = lead.numel()
    # As a list: what is sent must be contiguous, and in the same order whatever the memory format on either side.
    messages = [(rank, torch.cat([part.reshape(-1) for part in parts])) for rank, parts in outgoing]
    expected = [(rank, like.new_empty(depth * sum(r * c for r, c in shapes))) for rank, shapes in incoming]
    wait = mesh.image.exchange(messages, expected)

    def arrive() -> list[torch.Tensor]:
        wait()
        return [
            part.view(*lead, *shape)
            for (_, message), (_, shapes) in zip(expected, incoming, strict=True)
            for part, shape in zip(message.split([depth * r * c for r, c in shapes]), shapes, strict=True)
        ]

    return arrive


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: torch.Tensor, halo: Halo, mesh: Mesh, fill: float) -> torch.Tensor:
        ctx.halo, ctx.mesh, ctx.local_shape = halo, mesh, local.shape
        # Activation checkpointing recomputes as far as something was saved: what all ranks must take part in, all save.
        ctx.save_for_backward(local.new_empty(0))
        return gathered(local, halo, mesh, fill)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        (_,) = ctx.saved_tensors
        return scattered(grad, ctx.local_shape, ctx.halo, ctx.mesh), None, None, None


def gathered(local: torch.Tensor, halo: Halo, mesh: Mesh, fill: float) -> torch.Tensor:
    """Own pixels, neighbours' pixels and `fill`: a new tensor (…, needed rows, needed columns)."""
    arrive = send_halos(local, halo, mesh)
    # torch picks an operator's kernel by memory layout: the buffer keeps the shard's.
    buffer = torch.empty(
        (*local.shape[:-2], *halo.needed.shape), dtype=local.dtype, device=local.device, memory_format=layout(local)
    )
    if sum(math.prod(copy.place.shape) for copy in (*halo.kept, *halo.received)) < math.prod(halo.needed.shape):
        buffer.fill_(fill)
    for copy in halo.kept:
        copy.put(local[(..., *copy.source.within(halo.owned))], buffer, halo.needed)
    for copy, part in zip(halo.received, arrive(), strict=True):
        copy.put(part, buffer, halo.needed)
    return buffer


def scattered(grad: torch.Tensor, shape: torch.Size, halo: Halo, mesh: Mesh) -> torch.Tensor:
    """The adjoint of `gathered`: the gradient of the shard, of `shape`, given that of the gathered tensor."""
    received = [copy.gradient(grad, halo.needed) for copy in halo.received]
    add_returned_to = return_halos(received, halo, mesh, like=grad)
    if [copy.source for copy in halo.kept] == [halo.owned]:
        grad_local = halo.kept[0].gradient(grad, halo.needed).clone(memory_format=layout(grad))
    else:
        grad_local = torch.zeros(shape, dtype=grad.dtype, device=grad.device)
        for copy in halo.kept:
            grad_local[(..., *copy.source.within(halo.owned))] += copy.gradient(grad, halo.needed)
    return add_returned_to(grad_local)


def layout(x: torch.Tensor) -> torch.memory_format:
    """The memory format of an image (batch, channels, rows, columns)."""
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


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
