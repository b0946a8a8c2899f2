"""From whole images to shards and back."""

import torch

from gigapipe.spatial.halo import gather_halo
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.tensor import SpatialTensor, refuse_lost_gradient
from gigapipe.spatial.window import Everything


def shard(whole: torch.Tensor, mesh: Mesh, axes: tuple[int, int] = (-2, -1)) -> SpatialTensor:
    """The decomposed form of an image that every rank of it holds whole; `axes` are its rows and columns.

    Differentiable: `whole.grad`, like a parameter's, is then this rank's share (see `gradients.py`).
    """
    size = whole.shape[axes[0]], whole.shape[axes[1]]
    local = whole
    for axis, owned in zip(axes, mesh.rectangle(size), strict=True):
        local = local.narrow(axis, owned.start, owned.size)
    channels_last = whole.dim() == 4 and whole.is_contiguous(memory_format=torch.channels_last)
    local = local.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    return SpatialTensor(local, size, mesh, axes)


def gather(x: SpatialTensor) -> torch.Tensor:
    """The whole image, on every rank of it: the inverse of `shard`. Differentiable. All ranks of it call together."""
    refuse_lost_gradient(x)
    if x.mesh.image_ranks == 1:
        return x.local
    everything = tuple(
        Everything(size, parts) for size, parts in zip(x.image_size, (x.mesh.rows, x.mesh.columns), strict=True)
    )
    whole = gather_halo(x.local.movedim(x.axes, (-2, -1)), x.mesh, x.image_size, everything, held=x.rectangle)
    return whole.movedim((-2, -1), x.axes)
