"""Operators that look at a copy of the shard with its halo, which is made anew in the backward pass.

One call of torch's kernel and a few copies: what a device wants that waits for the host to start each operation. A CPU,
whose memory is slow and whose host is itself, has the same without a copy: convolution.py and max_pooling.py.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from gigapipe.spatial.halo import gathered, scattered
from gigapipe.spatial.halo_plan import Halo
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.refusals import once_differentiable

WITHOUT_COPY = {"cpu"}
"""Devices on which a large shard is not copied."""


class Kernel(Protocol):
    """An operator without padding of its own."""

    fill: float
    """What lies outside of the image."""

    def __call__(self, x: torch.Tensor, *parameters: torch.Tensor | None) -> torch.Tensor:
        """Its output."""

    def gradients(
        self, grad: torch.Tensor, mask: Sequence[bool], x: torch.Tensor, *parameters: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        """Those of `mask` among the gradients of `x`, which nobody else has, and of the parameters."""


class Regathered(torch.autograd.Function):
    """A kernel's output (batch, `channels`, …) of this rank; the shard and what was received are kept, not the copy."""

    @staticmethod
    def forward(ctx, local, mesh: Mesh, halo: Halo, kernel: Kernel, shape: tuple[int, ...], *parameters):
        ctx.mesh, ctx.halo, ctx.kernel = mesh, halo, kernel
        copy, strips = gathered(local, halo, mesh, kernel.fill)
        ctx.computed = 0 not in shape[2:]
        y = kernel(copy, *parameters) if ctx.computed else local.new_zeros(shape)
        ctx.save_for_backward(local, *parameters, *strips)
        ctx.parameters = len(parameters)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        local, *rest = ctx.saved_tensors
        parameters, strips = rest[: ctx.parameters], rest[ctx.parameters :]
        mask = ctx.needs_input_grad[0], *ctx.needs_input_grad[5:]
        if ctx.computed:
            copy, _ = gathered(local, ctx.halo, ctx.mesh, ctx.kernel.fill, strips)
            of_copy, *of_parameters = ctx.kernel.gradients(grad, mask, copy, *parameters)
        else:
            of_copy = local.new_zeros((*local.shape[:2], *ctx.halo.needed.shape))
            asked = zip(parameters, mask[1:], strict=True)
            of_parameters = [torch.zeros_like(p) if wanted else None for p, wanted in asked]
        of_local = scattered(of_copy, local.shape, ctx.halo, ctx.mesh, own=True) if mask[0] else None
        return of_local, None, None, None, None, *of_parameters
