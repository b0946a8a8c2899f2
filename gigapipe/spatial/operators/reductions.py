"""Reductions: over the whole image, which gives a plain tensor, or over dimensions that are not divided."""

import torch

from gigapipe.spatial.gradients import leave
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.pooled import across
from gigapipe.spatial.refusals import LAYERS, once_differentiable
from gigapipe.spatial.tensor import NotDecomposed, SpatialTensor, decomposes, name_of
from gigapipe.spatial.transports import Transport


class _Sum(torch.autograd.Function):
    """Sum over ranks, the same on each, of which each makes something of its own. Its adjoint is the same sum."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, ranks: Transport, everyone: bool) -> torch.Tensor:
        ctx.ranks = ranks
        if everyone:
            ctx.across = across(f"sum of {tuple(x.shape)}")
        ctx.save_for_backward(x.new_empty(0))  # so that checkpointing comes as far as this on every rank
        return ranks.sum_(x.clone(memory_format=torch.contiguous_format))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        (_,) = ctx.saved_tensors
        return ctx.ranks.sum_(grad.clone(memory_format=torch.contiguous_format)), None, None


def sum_over_image(x: torch.Tensor, mesh: Mesh) -> torch.Tensor:
    """The sum of the ranks' tensors, for each rank to go on with its shard. Differentiable.

    What goes on as a plain tensor, the same on all ranks, is summed by `gradients.leave`.
    """
    return x if mesh.image_ranks == 1 else _Sum.apply(x, mesh.image, False)


def sum_over_everyone(x: torch.Tensor, mesh: Mesh) -> torch.Tensor:
    """The sum over the mesh's images of what is the same on the ranks that share one. Differentiable."""
    mesh.agree((LAYERS[-1:], tuple(x.shape)), device=x.device, layer=True)
    return x if mesh.data == 1 else _Sum.apply(x, mesh.everyone, True) / mesh.image_ranks


def largest_over_image(x: SpatialTensor) -> torch.Tensor:
    """The largest value (batch, channels) of an image; of equals the first, row by row, has the gradient."""
    rows, columns = x.rectangle
    flat = x.local.flatten(2)
    if flat.shape[2]:
        value, place = flat.detach().max(2)
        value, place = value.double(), place.double()
        row, column = place.div(columns.size, rounding_mode="floor"), place.remainder(columns.size)
        index = (rows.start + row) * x.shape[-1] + columns.start + column
        mine = flat.gather(2, place.long()[..., None])[..., 0]
    else:
        value = torch.full(flat.shape[:2], -torch.inf, dtype=torch.float64, device=x.device)
        index = torch.full_like(value, torch.inf)
        mine = flat.sum(2)  # zeros that keep the rank in the graph
    table = torch.zeros(2, x.mesh.image_ranks, *value.shape, dtype=torch.float64, device=x.device)
    table[0, x.mesh.image_rank], table[1, x.mesh.image_rank] = value, index
    values, indices = x.mesh.image.sum_(table)
    largest = (values == values.amax(0)) | values.isnan()  # torch too lets NaN through
    first = torch.where(largest, indices, torch.inf).argmin(0)
    return leave(torch.where(first == x.mesh.image_rank, mine, torch.zeros_like(mine)), x.mesh, x.batch)


def _dimensions(x: SpatialTensor, dim) -> tuple[set[int], bool]:
    """The dimensions that are reduced, and whether the image's rows and columns are among them."""
    if dim is None or dim in ((), []):
        dim = range(x.dim())
    given = [x.dimension(d) for d in ([dim] if isinstance(dim, int) else dim)]
    dims = set(given)
    if len(dims) < len(given):
        raise RuntimeError(f"dimensions {dim} name one several times")  # as torch does
    divided = dims & set(x.axes)
    if len(divided) == 1:
        raise NotDecomposed(
            "a reduction over rows or columns alone", "reduce over both or neither, or gigapipe.spatial.gather(x) first"
        )
    return dims, bool(divided)


def axes_without(x: SpatialTensor, dims: set[int], keepdim: bool) -> tuple[int, int]:
    """Where rows and columns are once `dims` are gone."""
    return x.axes if keepdim else tuple(axis - sum(d < axis for d in dims) for axis in x.axes)


def summing(dtype: torch.dtype) -> torch.dtype:
    """What sums of `dtype` are made in, as torch does in its means: 16 bits overflow, and count 257 pixels as 256."""
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype


@decomposes(torch.sum, torch.Tensor.sum)
def sum_(x, dim=None, keepdim=False, dtype=None):
    dims, whole = _dimensions(x, dim)
    local = x.local.sum(sorted(dims), keepdim=keepdim, dtype=dtype)
    return leave(local, x.mesh, x.batch) if whole else x.with_local(local, axes_without(x, dims, keepdim))


@decomposes(torch.mean, torch.Tensor.mean)
def mean(x, dim=None, keepdim=False, dtype=None):
    dims, whole = _dimensions(x, dim)
    if not whole:
        return x.with_local(x.local.mean(sorted(dims), keepdim, dtype=dtype), axes_without(x, dims, keepdim))
    if not (dtype or x.dtype).is_floating_point:
        raise RuntimeError(f"mean(): the input must be of floating point, not {dtype or x.dtype}")  # as torch has it
    count = torch.Size(x.shape[d] for d in dims).numel()
    total = x.local.sum(sorted(dims), keepdim=keepdim, dtype=dtype or summing(x.dtype))
    return (leave(total, x.mesh, x.batch) / count).to(dtype or x.dtype)


def _extreme(function):
    def ours(x, dim=(), keepdim=False):
        dims, whole = _dimensions(x, dim)
        if whole:
            raise NotDecomposed(f"{name_of(function)} over the image", "use adaptive_max_pool2d(x, 1)")
        return x.with_local(function(x.local, sorted(dims), keepdim), axes_without(x, dims, keepdim))

    return ours


decomposes(torch.amax, torch.Tensor.amax)(_extreme(torch.amax))
decomposes(torch.amin, torch.Tensor.amin)(_extreme(torch.amin))


def _selecting(function):
    def ours(x, dim=None, keepdim=False):
        if not isinstance(dim, int) or _dimensions(x, dim)[1]:
            raise NotDecomposed(
                f"{name_of(function)} over the image, or of two",
                "take it over channels, or adaptive_max_pool2d(x, 1)",
            )
        values, indices = function(x.local, dim, keepdim)
        axes = axes_without(x, {x.dimension(dim)}, keepdim)
        kind = torch.return_types.max if function is torch.max else torch.return_types.min
        return kind((x.with_local(values, axes), x.with_local(indices, axes)))

    return ours


decomposes(torch.max, torch.Tensor.max)(_selecting(torch.max))
decomposes(torch.min, torch.Tensor.min)(_selecting(torch.min))


@decomposes(torch.argmax, torch.Tensor.argmax)
def argmax(x, dim=None, keepdim=False):
    dims, whole = _dimensions(x, dim)
    if whole:
        raise NotDecomposed("argmax over the image", "take it over the channels")
    return x.with_local(x.local.argmax(dim, keepdim), axes_without(x, dims, keepdim))
