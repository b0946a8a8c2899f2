"""What is summed over an image or over ranks is summed in float64: on its device, or on the host if that has none."""

import functools

import torch

WITHOUT = {"mps"}
"""Kinds of device that have no float64."""


@functools.cache
def has_float64(device: torch.device) -> bool:
    """Not Apple's GPUs, and not all of Intel's."""
    if device.type == "xpu":
        return torch.xpu.get_device_properties(device).has_fp64
    return device.type not in WITHOUT


def where_wide(device: torch.device) -> torch.device:
    """Where numbers of a device are in float64."""
    return device if has_float64(device) else torch.device("cpu")


def wide(x: torch.Tensor) -> torch.Tensor:
    """Numbers in float64, few of them: a device that has none is waited for. Differentiable."""
    return x.to(where_wide(x.device)).double()  # in two steps: a device converts what it sends


def sum_wide(x: torch.Tensor) -> torch.Tensor:
    """The sum of an image's numbers, float64; of a device that has none, sums of rows in its own numbers are summed."""
    return x.double().sum() if has_float64(x.device) else wide(x.sum(-1)).sum()


def narrow(x: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
    """Wide numbers, for an image: in float32 on its device, where that has no float64; else as they are."""
    return x if has_float64(beside.device) else x.float().to(beside.device)
