"""From each rank's share of the gradients to the gradients of the undivided image."""

from collections.abc import Iterable

import torch

from gigapipe.spatial.mesh import Mesh

ALONE = 2**14  # elements from which a gradient is a message of its own: copying it into another would cost more


def average_gradients(parameters: Iterable[torch.Tensor], mesh: Mesh) -> None:
    """Average `.grad` over all ranks; after `backward()`, on every rank.

    Why the average is right for every parameter, whether it met shards or pooled features: each collective's
    backward pass is its adjoint, so what a rank's `backward()` leaves in `.grad` is its share of the gradient of
    the sum of all ranks' losses. The ranks of one image have computed the same loss, and the ranks of different
    images share in a mean; both times the sum over ranks is divided by the number of ranks. It is also what
    `DistributedDataParallel` does. What is averaged already stays as it is, so gradients may be accumulated.

    Large gradients are summed where they lie, the small ones together.
    """
    if mesh.size == 1:
        return
    small: dict[torch.dtype, list[torch.Tensor]] = {}
    for parameter in parameters:
        grad = parameter.grad
        if grad is None:
            continue
        if grad.numel() < ALONE:
            small.setdefault(grad.dtype, []).append(grad)
            continue
        # In the order of the parameter's memory, which is alike on all ranks; the gradient's usually is the same.
        order = sorted(range(grad.dim()), key=parameter.stride, reverse=True)
        in_memory = grad.permute(order)
        whole = in_memory.contiguous()
        mesh.everyone.sum_(whole).div_(mesh.size)
        if whole.data_ptr() != grad.data_ptr():
            in_memory.copy_(whole)
    for grads in small.values():
        flat = torch.cat([grad.flatten() for grad in grads])
        mesh.everyone.sum_(flat).div_(mesh.size)
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))
