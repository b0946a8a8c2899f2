"""From each rank's share of the gradients to the gradients of the undivided image."""

from collections.abc import Iterable

import torch

from gigapipe.spatial.mesh import Mesh


def average_gradients(parameters: Iterable[torch.nn.Parameter], mesh: Mesh) -> None:
    """Average `.grad` over all ranks, in one all-reduce; call it after `backward()` on every rank.

    Why the average is right for every parameter, whether it met shards or pooled features: each collective's
    backward pass is its adjoint, so what a rank's `backward()` leaves in `.grad` is its share of the gradient of
    the sum of all ranks' losses. The ranks of one image have computed the same loss, and the ranks of different
    images share in a mean; both times the sum over ranks is divided by the number of ranks. It is also what
    `DistributedDataParallel` does.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if mesh.size == 1 or not grads:
        return
    flat = torch.cat([g.flatten() for g in grads])
    mesh.sum_(flat).div_(mesh.size)
    for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))
