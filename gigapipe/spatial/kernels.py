"""One launch in place of several, on devices for which somebody asked: copies of halos, and BatchNorm's small sums.

The host starts each operation of a GPU, which takes time however little there is to do. These operations are written
in Triton (`triton_kernels.py`), and are off: nobody has seen them on a card. The environment variable of `ASKED` turns
them on for CUDA and ROCm. To torch they are operations as others are, which can be counted, faked and captured.
"""

import os
from collections.abc import Sequence

import torch

ASKED = "GIGAPIPE_TRITON"

_told = os.environ.get(ASKED) or "0"
if _told not in ("0", "1"):
    raise ValueError(f"{ASKED}={_told}: set it to 1, or to 0")

DEVICES = {"cuda"} if _told == "1" else set()
"""Devices on which these operations are used; ROCm's is called cuda, too."""

_OPERATIONS = torch.library.Library("gigapipe", "DEF")
_OPERATIONS.define("copy(Tensor(a!)[] into, Tensor[] parts, bool add) -> ()")
_OPERATIONS.define("moments(Tensor mean, Tensor variance, Tensor shift, int pixels, int? count) -> Tensor")
_OPERATIONS.define(
    "statistics(Tensor sums, Tensor shift, Tensor(a!)? running_mean, Tensor(b!)? running_variance, int? count, "
    "float momentum, float eps, ScalarType precision) -> Tensor"
)
_OPERATIONS.define("of_sums(Tensor sums, Tensor own, Tensor inverse, Tensor? total, int? count, bool whole) -> Tensor")


def copy(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], add: bool = False, apart: bool = True) -> None:
    """Write to, or add to, the first of each pair the second, of the same shape, all in one launch on `DEVICES`.

    What is written to must lie `apart`, for one launch writes in any order; else there is a launch for each.
    """
    if apart and pairs and pairs[0][0].device.type in DEVICES and pairs[0][0].dim() <= 4:
        torch.ops.gigapipe.copy([into for into, _ in pairs], [part for _, part in pairs], add)
        return
    for into, part in pairs:
        into.add_(part) if add else into.copy_(part)


def join(parts: list[torch.Tensor]) -> torch.Tensor:
    """A copy of the parts, one behind another along the first axis."""
    if not (parts[0].device.type in DEVICES and parts[0].dim() <= 4):
        return torch.cat(parts)
    lengths = [len(part) for part in parts]
    joined = parts[0].new_empty(sum(lengths), *parts[0].shape[1:])
    copy(list(zip(joined.split(lengths), parts, strict=True)))
    return joined


def moments(
    mean: torch.Tensor, variance: torch.Tensor, shift: torch.Tensor, pixels: int, count: int | None
) -> torch.Tensor:
    """What ranks sum up of a shard's statistics (channels), in float64 (2 channels): of `shift`, then of its square.

    Weighted by the shard's share of `count` pixels; where that is unknown by its `pixels`, which come last.
    """
    return torch.ops.gigapipe.moments(mean, variance, shift, pixels, count)


def statistics(
    sums: torch.Tensor,
    shift: torch.Tensor,
    running: tuple[torch.Tensor, torch.Tensor] | None,
    count: int | None,
    momentum: float,
    eps: float,
    precision: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean, variance and 1/√(variance + eps), each (channels,) in `precision`, given the sums of all ranks' `moments`.

    The running mean and variance (channels,) follow in place by `momentum`.
    """
    means = running or (None, None)
    mean, variance, inverse = torch.ops.gigapipe.statistics(sums, shift, *means, count, momentum, eps, precision)
    return mean, variance, inverse


def of_sums(
    sums: torch.Tensor,
    own: torch.Tensor,
    inverse: torch.Tensor,
    total: torch.Tensor | None,
    count: int | None,
    whole: bool,
) -> torch.Tensor:
    """What BatchNorm's backward pass makes of the sums (2 channels, float64) over all ranks of dy and dy * (x - mean).

    Their means over all pixels, then the gradients of the bias and the weight (4, channels): of the `whole`, or of this
    rank's `own` sums.
    """
    return torch.ops.gigapipe.of_sums(sums, own, inverse, total, count, whole)


def _launch(name: str):
    def launch(first, *others):
        from gigapipe.spatial import triton_kernels  # imports Triton

        with torch.cuda.device_of(first[0] if isinstance(first, list) else first):  # Triton starts on the current one
            return getattr(triton_kernels, name)(first, *others)

    return launch


for _name in ("copy", "moments", "statistics", "of_sums"):
    for _key in ("CUDA", "CPU"):  # on a CPU in Triton's interpreter
        _OPERATIONS.impl(_name, _launch(_name), _key)

_OPERATIONS.impl("copy", lambda into, parts, add: None, "Meta")
_OPERATIONS.impl(
    "moments",
    lambda mean, variance, shift, pixels, count: mean.new_empty(2 * len(mean) + (count is None), dtype=torch.float64),
    "Meta",
)
_OPERATIONS.impl("statistics", lambda sums, shift, *others: sums.new_empty(3, len(shift), dtype=others[-1]), "Meta")
_OPERATIONS.impl("of_sums", lambda sums, own, inverse, *_: inverse.new_empty(4, len(inverse)), "Meta")
