"""Divide images into shards, and put shards together."""

import torch

from gigapipe.spatial.gradients import enter_image, of_images
from gigapipe.spatial.halo import gather_halo, gathered
from gigapipe.spatial.halo_plan import Halo, plan
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.pooled import Pooled, across
from gigapipe.spatial.refusals import once_differentiable
from gigapipe.spatial.tensor import SpatialTensor, refuse_lost_gradient
from gigapipe.spatial.tile import Tile
from gigapipe.spatial.window import Everything


def shard(whole: torch.Tensor, mesh: Mesh, axes: tuple[int, int] = (-2, -1)) -> SpatialTensor:
    """Divide an image that every rank has completely; `axes` are the dimensions of its rows and columns.

    Differentiable: `whole.grad` is, on every rank, the gradient of the whole image (see `gradients.py`).
    """
    size = whole.shape[axes[0]], whole.shape[axes[1]]
    local = enter_image(whole, mesh)
    for axis, owned in zip(axes, mesh.rectangle(size), strict=True):
        local = local.narrow(axis, owned.start, owned.size)
    channels_last = whole.dim() == 4 and whole.is_contiguous(memory_format=torch.channels_last)
    local = local.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    return SpatialTensor(local, size, mesh, axes)


def gather(x: SpatialTensor) -> torch.Tensor:
    """The whole image, on every rank that shares it: the inverse of `shard`. Differentiable. All these ranks must call
    it.
    """
    refuse_lost_gradient(x)
    if x.mesh.size == 1:
        return x.local
    everything = Everything(x.image_size[0], x.mesh.rows), Everything(x.image_size[1], x.mesh.columns)
    local = x.local.movedim(x.axes, (-2, -1))
    if isinstance(x.mesh, Tile):
        whole = gather_halo(local, x.rectangle, x.mesh, x.image_size, everything)
    else:
        whole = _Gathered.apply(local, plan(x.mesh, x.image_size, everything), x.mesh, x.batch)
        whole = Pooled.of(whole, x.mesh)
    return whole.movedim((-2, -1), x.axes)


class _Gathered(torch.autograd.Function):
    """The whole image (…, rows, columns) from its shards. Each rank has all of its gradient, and takes its shard's."""

    @staticmethod
    def forward(ctx, local: torch.Tensor, halo: Halo, mesh: Mesh, batch: int) -> torch.Tensor:
        ctx.halo, ctx.mesh, ctx.across = halo, mesh, across("gathered", batch=batch)
        ctx.save_for_backward(local.new_empty(0))  # so that checkpointing comes as far as this on every rank
        return gathered(local, halo, mesh, 0.0)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        (_,) = ctx.saved_tensors
        grad = of_images(grad, ctx.mesh)
        return grad[(..., *ctx.halo.owned.within(ctx.halo.needed))].clone(), None, None, None
