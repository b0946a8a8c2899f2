"""Operations that are made of others, for an image that is held and for one that is streamed alike."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from gigapipe.spatial.operators.reductions import axes_without, dimensions, summing
from gigapipe.spatial.operators.shaping import sizes_of
from gigapipe.spatial.recording import Recorded, streams_as
from gigapipe.spatial.refusals import NotDecomposed
from gigapipe.spatial.tensor import Form, SpatialTensor, decomposes

Image = SpatialTensor | Recorded


def composes(*functions: Callable) -> Callable[[Form], Form]:
    """Register a function, written in torch's other operations, as the form of `functions` for any image."""

    def register(ours: Form) -> Form:
        decomposes(*functions, enters_itself=True)(ours)
        return streams_as(*functions)(ours)

    return register


def _reduced(x: Image, dim) -> tuple[list[int], bool]:
    """The dimensions that are reduced, in order, and whether rows or columns are among them."""
    dims, divided = dimensions(x.ref.image if isinstance(x, Recorded) else x, dim)
    return sorted(dims), divided


def _by_itself(x: Image, function: Callable, *args, **kwargs) -> torch.Tensor:
    """`function` of each shard or tile, along dimensions that are not divided, its last argument."""
    if isinstance(x, Recorded):
        return x.recorder.record(function, (x, *args), kwargs)
    axes = axes_without(x, dimensions(x, args[-1])[0], kwargs.get("keepdim", False))
    return x.with_local(function(x.local, *args, **kwargs), axes)


def _wide(x: Image) -> torch.Tensor:
    """`x` in the precision in which torch sums: numbers of 16 bits in float32."""
    return x if x.dtype == summing(x.dtype) else x.to(summing(x.dtype))


def _root(total: torch.Tensor) -> torch.Tensor:
    """The square root, whose gradient at zero is zero, as torch's norms and deviations have it."""
    return torch.where(total > 0, torch.where(total > 0, total, 1.0).sqrt(), total)


def _variance(x: Image, dims: list[int], correction: int, keepdim: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Variance and mean over dimensions of which rows or columns are some: in two passes, for rounding's sake."""
    count = torch.Size(x.shape[d] for d in dims).numel()
    average = torch.mean(_wide(x), dims, keepdim=True)
    squares = torch.sum(torch.square(_wide(x) - average), dims, keepdim=True)
    # torch divides by nothing less than zero, and by zero too.
    variance, mean = (squares / max(0, count - correction)).to(x.dtype), average.to(x.dtype)
    return (variance, mean) if keepdim else (variance.squeeze(tuple(dims)), mean.squeeze(tuple(dims)))


def _spread(*functions: Callable, over_image: Callable, otherwise: Callable) -> None:
    """Register `functions` of a deviation: made of variance and mean, or by torch along what is not divided."""

    @composes(*functions)
    def ours(x, dim=None, unbiased=None, keepdim=False, *, correction=None):
        if isinstance(dim, bool):  # var(x, unbiased)
            dim, unbiased = None, dim
        if correction is None:
            correction = 0 if unbiased is False else 1
        dims, divided = _reduced(x, dim)
        if divided:
            return over_image(*_variance(x, dims, correction, keepdim))
        return otherwise(x, dims, correction=correction, keepdim=keepdim)


def _with_mean(function: Callable) -> Callable:
    return lambda x, dims, correction, keepdim: (
        function(x, dims, correction=correction, keepdim=keepdim),
        torch.mean(x, dims, keepdim),
    )


def _shard_by_shard(function: Callable) -> Callable:
    return lambda x, dims, **options: _by_itself(x, function, dims, **options)


_spread(torch.var, torch.Tensor.var, over_image=lambda variance, _: variance, otherwise=_shard_by_shard(torch.var))
_spread(
    torch.std, torch.Tensor.std, over_image=lambda variance, _: _root(variance), otherwise=_shard_by_shard(torch.std)
)
_spread(torch.var_mean, over_image=lambda variance, mean: (variance, mean), otherwise=_with_mean(torch.var))
_spread(torch.std_mean, over_image=lambda variance, mean: (_root(variance), mean), otherwise=_with_mean(torch.std))


@composes(torch.linalg.vector_norm)
def vector_norm(x, ord=2, dim=None, keepdim=False, *, dtype=None):
    x = x if dtype is None else x.to(dtype)
    dims, divided = _reduced(x, dim)
    if not divided:
        return _by_itself(x, torch.linalg.vector_norm, ord, dims, keepdim=keepdim)
    if ord in (math.inf, -math.inf):
        return (torch.amax if ord > 0 else torch.amin)(torch.abs(x), dims, keepdim)
    if ord == 0:
        return torch.sum(x != 0, dims, keepdim).to(x.dtype)
    if ord == 2:
        return _root(torch.sum(torch.square(_wide(x)), dims, keepdim)).to(x.dtype)
    total = torch.sum(torch.pow(torch.abs(_wide(x)), ord), dims, keepdim)
    return torch.pow(total, 1 / ord).to(x.dtype)


@composes(torch.norm, torch.Tensor.norm)
def norm(x, p="fro", dim=None, keepdim=False, out=None, dtype=None):
    if out is not None or p == "nuc":
        raise NotDecomposed("norm with out, or nuclear", "take the norm of its numbers, and what it returns")
    return vector_norm(x, 2 if p in ("fro", None) else p, dim, keepdim, dtype=dtype)


@composes(torch.logsumexp, torch.Tensor.logsumexp)
def logsumexp(x, dim, keepdim=False):
    dims, divided = _reduced(x, dim)
    if not divided:
        return _by_itself(x, torch.logsumexp, dims, keepdim=keepdim)
    largest = torch.amax(_wide(x).detach(), dims, keepdim=True)
    largest = torch.where(largest.isfinite(), largest, 0.0)  # as torch has it
    total = torch.log(torch.sum(torch.exp(_wide(x) - largest), dims, keepdim=True)) + largest
    return (total if keepdim else total.squeeze(tuple(dims))).to(x.dtype)


@composes(torch.Tensor.expand_as)
def expand_as(x, other):
    return x.expand(other.shape)


@composes(torch.Tensor.view_as, torch.Tensor.reshape_as)
def reshape_as(x, other):
    return x.reshape(other.shape)


def _new(function: Callable, alike: Callable) -> None:
    """Register `function`, which makes a tensor of any size with an image's dtype and device; of its size, an image."""

    @composes(function)
    def ours(x, *size, **options):
        size = torch.Size(sizes_of(size) if size else options.pop("size"))
        if size == x.shape and not options:
            return alike(x)
        return function(torch.empty(0, dtype=x.dtype, device=x.device), size, **options)


_new(torch.Tensor.new_zeros, torch.zeros_like)
_new(torch.Tensor.new_empty, torch.zeros_like)
_new(torch.Tensor.new_ones, torch.ones_like)


@composes(torch.Tensor.new_full)
def new_full(x, size, fill_value, **options):
    if torch.Size(size) == x.shape and not options:
        return torch.full_like(x, fill_value)
    return torch.empty(0, dtype=x.dtype, device=x.device).new_full(size, fill_value, **options)


@composes(torch.Tensor.new_tensor)
def new_tensor(x, data, *, dtype=None, device=None, requires_grad=False):
    return torch.tensor(data, dtype=dtype or x.dtype, device=device or x.device, requires_grad=requires_grad)


@composes(F.rms_norm, torch.rms_norm)
def rms_norm(x, normalized_shape, weight=None, eps=None):
    dims = list(range(x.dim() - len(normalized_shape), x.dim()))
    if _reduced(x, dims)[1]:
        raise NotDecomposed(
            "rms_norm over rows and columns", "normalise the channels of a (batch, rows, columns, channels) image"
        )
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    found = _wide(x) * torch.rsqrt(torch.mean(torch.square(_wide(x)), dims, keepdim=True) + eps)
    return (found if weight is None else found * weight).to(x.dtype)
