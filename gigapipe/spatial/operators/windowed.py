"""What the operators that look at an image through windows have in common."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from gigapipe.spatial.halo import gather_halo
from gigapipe.spatial.refusals import once_differentiable
from gigapipe.spatial.tensor import NotDecomposed, SpatialTensor
from gigapipe.spatial.window import Access, Interval, Rectangle, Window, output_size


def pair(value) -> tuple[int, int]:
    """torch's own rule: one number stands for both axes."""
    rows, columns = (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))
    return rows, columns


def pooling_windows(kernel, stride, padding, dilation, ceil: bool) -> tuple[Window, Window]:
    """The windows along rows and columns; ValueError where torch would not pool by them."""
    if min(*pair(kernel), *pair(stride), *pair(dilation)) < 1:
        raise ValueError(f"pooling by {kernel}, stride {stride}, dilation {dilation}: they are 1 or more")
    if any(not 0 <= 2 * p <= k for p, k in zip(pair(padding), pair(kernel), strict=True)):
        raise ValueError(f"pooling by {kernel} is padded by at most half of it, not by {padding}")
    axes = zip(pair(kernel), pair(stride), pair(padding), pair(dilation), strict=True)
    rows, columns = (Window(k, s, (p, p), d, ceil) for k, s, p, d in axes)
    return rows, columns


def images(x: SpatialTensor, name: str) -> SpatialTensor:
    """`x`, if it is laid out as torch's image operators want it: (batch, channels, rows, columns)."""
    if not isinstance(x, SpatialTensor) or x.dim() != 4 or x.axes != (2, 3):
        raise NotDecomposed(
            f"{name} of {tuple(x.shape)}", "give it a decomposed (batch, channels, rows, columns), batch included"
        )
    return x


class Alone(NamedTuple):
    """How torch's kernel, which pads both ends of an axis alike, computes a shard without its halo.

    It is given `kept` of the shard, pads it by `padding` on both ends of rows and columns, and of its outputs `outputs`
    are right in number and place.
    """

    kept: tuple
    padding: list[int]
    outputs: tuple

    @classmethod
    def of(cls, windows: tuple[Window, Window], owned: Rectangle, needed: Rectangle, out: Rectangle) -> "Alone":
        axes = [_axis_alone(*axis) for axis in zip(windows, owned, needed, out, strict=True)]
        kept, padding, outputs = zip(*axes, strict=True)
        return cls((..., *kept), list(padding), (..., *outputs))


def _axis_alone(window: Window, owned: Interval, needed: Interval, out: Interval) -> tuple[slice, int, slice]:
    kept = owned.intersect(needed)
    before, after = kept.start - needed.start, needed.stop - kept.stop
    extra = max(0, -(-(after - before) // window.stride))  # outputs computed in vain before the first
    return kept.within(owned), before + extra * window.stride, slice(extra, extra + out.size)


class _Nothing(torch.autograd.Function):
    """The empty output of a rank that owns none, and the zero gradients of what it would have used.

    It keeps the rank in step: its backward pass meets the others', and something is saved here as it is there,
    which is what activation checkpointing goes by when it decides how far to recompute.
    """

    @staticmethod
    def forward(ctx, shape: tuple[int, ...], shard: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(shard, *parameters)
        return shard.new_zeros(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        return None, *(torch.zeros_like(x) for x in ctx.saved_tensors)


def windowed(
    x: SpatialTensor,
    accesses: tuple[Access, Access],
    operate: Callable[[torch.Tensor, Rectangle, Rectangle], torch.Tensor],
    channels: int,
    fill: float = 0.0,
    parameters: Sequence[torch.Tensor] = (),
) -> SpatialTensor:
    """Apply `operate(input, needed, out)`, which computes the outputs `out` from the inputs `needed`."""
    size = output_size(accesses, x.image_size)
    shard = gather_halo(x.local, x.rectangle, x.mesh, x.image_size, accesses, fill)
    out = x.mesh.rectangle(size)
    if out.empty:
        local = _Nothing.apply((x.shape[0], channels, *out.shape), shard, *parameters)
    else:
        needed = Rectangle(*(access.needs(o) for access, o in zip(accesses, out, strict=True)))
        local = operate(shard, needed, out)
    return SpatialTensor(local, size, x.mesh)


def whole(x: SpatialTensor, size: tuple[int, int]) -> bool:
    """Whether all of an image of `size` is computed of all of `x`."""
    return x.rectangle.shape == x.image_size and x.mesh.rectangle(size).shape == size


def crop(x: torch.Tensor, inner: Rectangle, outer: Rectangle) -> torch.Tensor:
    """`inner` out of a tensor that holds `outer`."""
    return x if inner == outer else x[(..., *inner.within(outer))]


def scaled(rectangle: Rectangle, factors: tuple[int, int]) -> Rectangle:
    """The rectangle on an image enlarged by whole `factors`."""
    return Rectangle(*(Interval(i.start * f, i.stop * f) for i, f in zip(rectangle, factors, strict=True)))
