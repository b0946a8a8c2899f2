"""What the operators that gather their halo into one padded tensor have in common."""

from collections.abc import Callable, Sequence

import torch

from gigapipe.spatial.halo import gather_halo
from gigapipe.spatial.tensor import NotDecomposed, SpatialTensor
from gigapipe.spatial.window import Access, Interval, Rectangle


def pair(value) -> tuple[int, int]:
    """torch's own rule: one number stands for both axes."""
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))


def images(x: SpatialTensor, name: str) -> SpatialTensor:
    """`x`, if it is laid out as torch's image operators want it: (batch, channels, rows, columns)."""
    if not isinstance(x, SpatialTensor) or x.dim() != 4 or x.axes != (2, 3):
        raise NotDecomposed(
            f"{name} of {tuple(x.shape)}", "give it a decomposed (batch, channels, rows, columns), batch included"
        )
    return x


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
    @torch.autograd.function.once_differentiable
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
    size = tuple(access.output_size(n) for access, n in zip(accesses, x.image_size, strict=True))
    shard = gather_halo(x.local, x.mesh, x.image_size, accesses, fill)
    out = x.mesh.rectangle(size)
    if out.empty:
        local = _Nothing.apply((x.shape[0], channels, *out.shape), shard, *parameters)
    else:
        needed = Rectangle(*(access.needs(o) for access, o in zip(accesses, out, strict=True)))
        local = operate(shard, needed, out)
    return SpatialTensor(local, size, x.mesh)


def crop(x: torch.Tensor, inner: Rectangle, outer: Rectangle) -> torch.Tensor:
    """`inner` out of a tensor that holds `outer`."""
    return x if inner == outer else x[(..., *inner.within(outer))]


def scaled(rectangle: Rectangle, factors: tuple[int, int]) -> Rectangle:
    """The rectangle on an image enlarged by whole `factors`."""
    return Rectangle(*(Interval(i.start * f, i.stop * f) for i, f in zip(rectangle, factors, strict=True)))
