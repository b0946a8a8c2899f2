"""The halo exchange: every rank gets the part of its neighbours' shards that its next operator looks at.

What a rank needs is the window's interval arithmetic applied to the output that it owns; what it lacks is needed
minus owned. Sizes and meshes are known to all, so each rank works out alone what to send to whom and what to
expect from whom: at most one rectangle for each ordered pair of ranks, corners included, however far the halo
reaches. Nothing is negotiated.

The backward pass is the adjoint: the gradient of a received halo goes back to its owner, who adds it.
"""

import functools
from dataclasses import dataclass

import torch
import torch.distributed as dist

from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.window import Interval, Rectangle, Window


@dataclass(frozen=True)
class Halo:
    """Who sends which rectangle to whom, in global rows and columns, so that one operator can run.

    `needed` may reach past the image: that part is padding. `sends` and `receives` pair a peer's rank with a
    rectangle, in the same order of pairs on both sides.
    """

    owned: Rectangle
    needed: Rectangle
    sends: tuple[tuple[int, Rectangle], ...]
    receives: tuple[tuple[int, Rectangle], ...]


@functools.cache
def plan(mesh: Mesh, size: tuple[int, int], windows: tuple[Window, Window]) -> Halo:
    """The halo of an operator with `windows` (rows, columns) on an image of `size` (rows, columns)."""
    image = Rectangle(Interval(0, size[0]), Interval(0, size[1]))
    out_size = windows[0].output_size(size[0]), windows[1].output_size(size[1])

    def needs(row: int, column: int) -> Rectangle:
        out = mesh.rectangle(out_size, row, column)
        if out.empty:
            return Rectangle(Interval(0, 0), Interval(0, 0))
        return Rectangle(windows[0].needs(out.rows), windows[1].needs(out.columns))

    owned, needed = mesh.rectangle(size), needs(mesh.row, mesh.column)
    sends, receives = [], []
    for rank, row, column in mesh.peers():
        outgoing = needs(row, column).intersect(image).intersect(owned)
        incoming = needed.intersect(image).intersect(mesh.rectangle(size, row, column))
        if not outgoing.empty:
            sends.append((rank, outgoing))
        if not incoming.empty:
            receives.append((rank, incoming))
    return Halo(owned, needed, tuple(sends), tuple(receives))


def exchange(outgoing: list[tuple[int, torch.Tensor]], incoming: list[tuple[int, torch.Tensor]]) -> None:
    """Send and receive contiguous tensors, at most one to and one from each rank; returns when all have arrived."""
    operations = [dist.P2POp(dist.irecv, tensor, rank) for rank, tensor in incoming]
    operations += [dist.P2POp(dist.isend, tensor, rank) for rank, tensor in outgoing]
    if operations:
        for request in dist.batch_isend_irecv(operations):
            request.wait()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: torch.Tensor, halo: Halo, fill: float) -> torch.Tensor:
        ctx.halo, ctx.local_shape = halo, local.shape
        # torch picks the convolution's kernel by memory layout: the buffer keeps the shard's.
        channels_last = local.dim() == 4 and local.is_contiguous(memory_format=torch.channels_last)
        buffer = torch.empty(
            (*local.shape[:-2], *halo.needed.shape),
            dtype=local.dtype,
            device=local.device,
            memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        ).fill_(fill)
        kept = halo.owned.intersect(halo.needed)
        if not kept.empty:
            buffer[(..., *kept.within(halo.needed))] = local[(..., *kept.within(halo.owned))]
        outgoing = [(rank, local[(..., *part.within(halo.owned))].contiguous()) for rank, part in halo.sends]
        incoming = [(rank, local.new_empty(*local.shape[:-2], *part.shape)) for rank, part in halo.receives]
        exchange(outgoing, incoming)
        for (_, received), (_, part) in zip(incoming, halo.receives, strict=True):
            buffer[(..., *part.within(halo.needed))] = received
        return buffer

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        halo = ctx.halo
        grad_local = grad.new_zeros(ctx.local_shape)
        kept = halo.owned.intersect(halo.needed)
        if not kept.empty:
            grad_local[(..., *kept.within(halo.owned))] = grad[(..., *kept.within(halo.needed))]
        outgoing = [(rank, grad[(..., *part.within(halo.needed))].contiguous()) for rank, part in halo.receives]
        incoming = [(rank, grad.new_empty(*grad.shape[:-2], *part.shape)) for rank, part in halo.sends]
        exchange(outgoing, incoming)
        for (_, received), (_, part) in zip(incoming, halo.sends, strict=True):
            grad_local[(..., *part.within(halo.owned))] += received
        return grad_local, None, None


def gather_halo(
    local: torch.Tensor, mesh: Mesh, size: tuple[int, int], windows: tuple[Window, Window], fill: float = 0.0
) -> torch.Tensor:
    """Everything that an operator needs to compute its own shard of the output, without padding of its own.

    `local` is this rank's shard (…, rows, columns) of an image of `size`. Returns (…, needed rows, needed columns):
    own pixels, neighbours' pixels, and `fill` where the window reaches past the image; zero rows and columns where
    this rank owns none of the output. All ranks that share the image must call it together. Differentiable: the
    backward pass returns each halo's gradient to its owner.
    """
    halo = plan(mesh, size, windows)
    if halo.needed == halo.owned and not halo.sends:
        return local
    return _Gather.apply(local, halo, fill)
