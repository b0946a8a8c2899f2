"""Sums of gradients over ranks: in as few messages as need no copying."""

from collections.abc import Sequence

import torch

from gigapipe.spatial.torch_internals import has_memory_to_itself
from gigapipe.spatial.transports import Transport

ALONE = 2**14  # elements from which a gradient is a message of its own: copying it into another would cost more


def summed(grads: Sequence[torch.Tensor], strides: Sequence[Sequence[int]], ranks: Transport) -> list[torch.Tensor]:
    """The sums over `ranks` of their gradients, of these strides, bitwise alike on all ranks.

    It is for a backward function's gradients, whose memory is taken where nobody else has it.
    Large ones travel in the order of their memory, which ranks have in common; the small ones of a dtype together.
    """
    results = []
    for grad, stride in zip(grads, strides, strict=True):
        if grad.stride() != stride or grad.requires_grad or not has_memory_to_itself(grad):
            grad = torch.empty_strided(grad.shape, stride, dtype=grad.dtype, device=grad.device).copy_(grad)
        results.append(grad)
    small: dict[torch.dtype, list[torch.Tensor]] = {}
    for result in results:
        if result.numel() < ALONE:
            small.setdefault(result.dtype, []).append(result)
        else:
            ranks.sum_(result.permute(sorted(range(result.dim()), key=result.stride, reverse=True)))
    for few in small.values():
        if len(few) == 1 and few[0].is_contiguous():
            ranks.sum_(few[0])
            continue
        flat = ranks.sum_(torch.cat([result.flatten() for result in few]))
        for result, part in zip(few, flat.split([result.numel() for result in few]), strict=True):
            result.copy_(part.view_as(result))
    return results


def dense_strides(x: torch.Tensor) -> tuple[int, ...]:
    """The strides that a copy of `x` has."""
    return torch.empty_like(x, device="meta").stride()
