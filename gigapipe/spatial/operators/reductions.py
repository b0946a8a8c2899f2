"""Reductions: over rows, columns or both, which gives a plain tensor, or over dimensions that are not divided."""

import functools

import torch
import torch.nn.functional as F

from gigapipe.spatial.gradients import leave
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.pooled import across
from gigapipe.spatial.refusals import LAYERS, once_differentiable
from gigapipe.spatial.tensor import NotDecomposed, SpatialTensor, decomposes, name_of
from gigapipe.spatial.tile import Tile
from gigapipe.spatial.transports import Transport
from gigapipe.spatial.wide import where_wide, wide


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


def sum_over_image(x: torch.Tensor, mesh: Mesh | Tile) -> torch.Tensor:
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
        value, places = flat.detach().max(2)
        value, place = wide(value), wide(places)
        row, column = place.div(columns.size, rounding_mode="floor"), place.remainder(columns.size)
        index = (rows.start + row) * x.shape[-1] + columns.start + column
        mine = flat.gather(2, places[..., None])[..., 0]
    else:
        value = torch.full(flat.shape[:2], -torch.inf, dtype=torch.float64, device=where_wide(x.device))
        index = torch.full_like(value, torch.inf)
        mine = flat.sum(2)  # zeros that keep the rank in the graph
    table = value.new_zeros(2, x.mesh.image_ranks, *value.shape)
    table[0, x.mesh.image_rank], table[1, x.mesh.image_rank] = value, index
    values, indices = x.mesh.image.sum_(table)
    largest = (values == values.amax(0)) | values.isnan()  # torch too lets NaN through
    first = torch.where(largest, indices, torch.inf).argmin(0)
    here = (first == x.mesh.image_rank).to(mine.device)
    return leave(torch.where(here, mine, torch.zeros_like(mine)), x.mesh, x.batch)


def dimensions(x: SpatialTensor, dim) -> tuple[set[int], bool]:
    """The dimensions that are reduced, and whether rows or columns are among them."""
    if dim is None or dim in ((), []):
        dim = range(x.dim())
    given = [x.dimension(d) for d in ([dim] if isinstance(dim, int) else dim)]
    dims = set(given)
    if len(dims) < len(given):
        raise RuntimeError(f"dimensions {dim} name one several times")  # as torch does
    return dims, bool(dims & set(x.axes))


def axes_without(x: SpatialTensor, dims: set[int], keepdim: bool) -> tuple[int, int]:
    """Where rows and columns are once `dims` are gone."""
    if keepdim:
        return x.axes
    rows, columns = (axis - sum(d < axis for d in dims) for axis in x.axes)
    return rows, columns


def summing(dtype: torch.dtype) -> torch.dtype:
    """What sums of `dtype` are made in, as torch does in its means: 16 bits overflow, and count 257 pixels as 256."""
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype


def plus(total: torch.Tensor | None, x: torch.Tensor, times: int = 1) -> torch.Tensor:
    """`total` and `times` x, in a dtype that can count them."""
    x = x.to(summing(x.dtype)) * times
    return x if total is None else total.add_(x)


SHORT = torch.float16, torch.bfloat16

BAND = 2**20
"""Numbers of 16 bits that are summed at a time: in float32 they stay in a CPU's caches."""


class _SumOfBands(torch.autograd.Function):
    """The sum of numbers of 16 bits over `dims`, kept at size 1, in float32; its gradient has 16 bits.

    On CPUs torch makes a copy of the whole image in float32 for it, and takes six times as long.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, dims: list[int], axis: int) -> torch.Tensor:
        ctx.shape, ctx.dtype = x.shape, x.dtype
        lines = max(1, BAND * x.shape[axis] // max(1, x.numel()))
        first, *others = (band.sum(dims, keepdim=True, dtype=torch.float32) for band in x.split(lines, axis))
        return functools.reduce(torch.Tensor.add_, others, first)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        return grad.to(ctx.dtype).expand(ctx.shape), None, None


def returned(total: torch.Tensor, dtype: torch.dtype, mesh: Mesh | Tile) -> torch.Tensor:
    """A sum in the dtype that torch returns it in; a tile's not yet, for it is added to others' (see `plus`)."""
    return total if isinstance(mesh, Tile) and mesh.out else total.to(dtype)


def _of_the_image(x: SpatialTensor, local: torch.Tensor, dims: set[int], keepdim: bool) -> torch.Tensor:
    """The plain tensor that is the sum of all shards' sums over `dims`, which are of size 1 in `local`.

    Of rows or columns alone, a shard's sums have their place in a tensor as long as the other axis.
    """
    total = leave(_at_its_place(x, local, dims), x.mesh, x.batch)
    return total if keepdim else total.squeeze(tuple(sorted(dims)))


def _at_its_place(x: SpatialTensor, local: torch.Tensor, dims: set[int]) -> torch.Tensor:
    """`local` among zeros, as long as the image along what of rows and columns is not in `dims`."""
    margins = [0, 0] * local.dim()
    for axis, owned, n in zip(x.axes, x.rectangle, x.image_size, strict=True):
        if axis not in dims:
            place = 2 * (local.dim() - 1 - axis)
            margins[place : place + 2] = owned.start, n - owned.stop
    return F.pad(local, margins) if any(margins) else local


@decomposes(torch.sum, torch.Tensor.sum)
def sum_(x, dim=None, keepdim=False, dtype=None):
    dims, divided = dimensions(x, dim)
    if divided and dtype == torch.float32 and x.local.dtype in SHORT and x.device.type == "cpu":
        local = _SumOfBands.apply(x.local, sorted(dims), min(dims & set(x.axes)))
    else:
        local = x.local.sum(sorted(dims), keepdim=divided or keepdim, dtype=dtype)
    return _of_the_image(x, local, dims, keepdim) if divided else x.with_local(local, axes_without(x, dims, keepdim))


@decomposes(torch.mean, torch.Tensor.mean)
def mean(x, dim=None, keepdim=False, dtype=None):
    dims, divided = dimensions(x, dim)
    if not divided:
        return x.with_local(x.local.mean(sorted(dims), keepdim, dtype=dtype), axes_without(x, dims, keepdim))
    if not (dtype or x.dtype).is_floating_point:
        raise RuntimeError(f"mean(): the input must be of floating point, not {dtype or x.dtype}")  # as torch has it
    count = torch.Size(x.shape[d] for d in dims).numel()
    total = sum_(x, sorted(dims), keepdim, dtype=dtype or summing(x.dtype))
    return returned(total / count, dtype or x.dtype, x.mesh)


class _Ties(torch.autograd.Function):
    """Zeros of `shape`, whose gradient goes to the input's entries in `shares`."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, shares: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        ctx.save_for_backward(shares)
        return x.new_zeros(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        (shares,) = ctx.saved_tensors
        return grad * shares, None, None


def _extreme_of_ranks(x: SpatialTensor, dims: set[int], sign: int) -> torch.Tensor:
    """The largest (`sign` 1) or smallest (-1) values over `dims`, without a gradient; float64, `dims` of size 1, where
    the device's numbers are wide.
    """
    local, extreme = x.local.detach(), torch.amax if sign > 0 else torch.amin
    shape = [1 if d in dims else n for d, n in enumerate(local.shape)]
    if local.numel():
        mine = wide(extreme(local, sorted(dims), keepdim=True)) * sign
    else:
        mine = torch.full(shape, -torch.inf, dtype=torch.float64, device=where_wide(x.device))
    found = torch.stack([mine, torch.ones_like(mine)])  # values, and where there are any
    found = torch.stack([_at_its_place(x, f, dims) for f in found])
    table = found.new_zeros(x.mesh.image_ranks, *found.shape)
    table[x.mesh.image_rank] = found
    values, there = x.mesh.image.sum_(table).unbind(1)
    return torch.where(there > 0, values, -torch.inf).amax(0) * sign


def _extreme(function):
    """Of several that are the largest each has its share of the gradient, as in torch."""
    sign = 1 if function is torch.amax else -1

    def ours(x, dim=(), keepdim=False):
        dims, divided = dimensions(x, dim)
        if not divided:
            return x.with_local(function(x.local, sorted(dims), keepdim), axes_without(x, dims, keepdim))
        extreme = _extreme_of_ranks(x, dims, sign).to(x.device, x.dtype)
        shape = [1 if d in dims else n for d, n in enumerate(x.local.shape)]
        if x.requires_grad:
            chosen = x.with_local(x.local.detach()) == extreme
            shares = (chosen.to(x.dtype) / sum_(chosen, sorted(dims), keepdim=True)).local
            zeros = _Ties.apply(x.local, shares, tuple(shape))
        else:
            zeros = x.local.new_zeros(shape)
        extreme = extreme + _of_the_image(x, zeros, dims, keepdim=True)
        return extreme if keepdim else extreme.squeeze(tuple(sorted(dims)))

    return ours


amax = decomposes(torch.amax, torch.Tensor.amax)(_extreme(torch.amax))
amin = decomposes(torch.amin, torch.Tensor.amin)(_extreme(torch.amin))


def _selecting(function, extreme, of_two):
    kind = torch.return_types.max if function is torch.max else torch.return_types.min

    def ours(x, dim=None, keepdim=False):
        if isinstance(dim, torch.Tensor):
            return of_two(x, dim)
        if dim is None:
            return extreme(x)
        if dimensions(x, dim)[1]:
            name = name_of(function)
            raise NotDecomposed(f"{name} along rows or columns, with indices", f"use a{name}, which gives none")
        values, indices = function(x.local, dim, keepdim)
        axes = axes_without(x, {x.dimension(dim)}, keepdim)
        return kind((x.with_local(values, axes), x.with_local(indices, axes)))

    return ours


decomposes(torch.max, torch.Tensor.max)(_selecting(torch.max, amax, torch.maximum))
decomposes(torch.min, torch.Tensor.min)(_selecting(torch.min, amin, torch.minimum))


@decomposes(torch.argmax, torch.Tensor.argmax)
def argmax(x, dim=None, keepdim=False):
    dims, divided = dimensions(x, dim)
    if divided:
        raise NotDecomposed(
            "argmax over rows or columns", "take it over the channels, or of gigapipe.spatial.gather(x)"
        )
    return x.with_local(x.local.argmax(dim, keepdim), axes_without(x, dims, keepdim))
