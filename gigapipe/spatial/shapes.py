"""Shapes, dtypes and layouts of what torch's BatchNorm kernels make, for tensors without pixels: torch has none.

Importing this tells torch. Without it planning would run the first kernel on an image of zeros, and the others, which
CPUs do not have, not at all.
"""

import torch


def _of_channels(x: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """Values (channels,) in the precision of statistics."""
    precision = torch.promote_types(x.dtype, torch.float32)
    return tuple(x.new_empty(x.shape[1], dtype=precision) for _ in range(count))


def _update_stats(x, running_mean, running_var, momentum):
    return _of_channels(x, 2)


def _elemt(x, weight, bias, mean, invstd, eps):
    return torch.empty_like(x)


def _backward_reduce(grad, x, mean, invstd, weight, for_x, for_weight, for_bias):
    return _of_channels(x, 4)


def _backward_elemt(grad, x, mean, invstd, weight, sum_dy, sum_dy_xmu, count):
    return torch.empty_like(x)


_torchs = torch.library.Library("aten", "IMPL", "Meta")  # noqa: TOR901  lives as long as the process
for _shape in (_update_stats, _elemt, _backward_reduce, _backward_elemt):
    _name = f"batch_norm{_shape.__name__}"
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{_name}", "Meta"):
        _torchs.impl(_name, _shape)
