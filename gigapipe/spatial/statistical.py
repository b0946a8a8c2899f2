"""Normalisation of a streamed image by its own statistics, exact, at the price of a pass.

The statistics are sums over the whole image, so all that leads to it since the last image that is held is computed
once for them, and again for what follows; backward alike. Each such layer between two held images adds a pass.
"""

import torch
import torch.nn.functional as F

from gigapipe.spatial.operators.reductions import sum_over_everyone
from gigapipe.spatial.pooled import plain
from gigapipe.spatial.recording import streams_as


def _moments(x: torch.Tensor, dims: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums, float64, of an image and of its squares over `dims`, rows and columns among them: in one pass.

    They are not about a guess of the mean, which would have to be the same when checkpointing computes them again: the
    sums do not round, and the squares' rounding averages out over the pixels.
    """
    x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    total, square = torch.cat([x, x * x], 1).sum(dims, dtype=torch.float64).chunk(2, -1)
    return total, square


def _normalised(x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, weight, bias, eps: float) -> torch.Tensor:
    """By statistics (channels) or (batch, channels)."""
    scale = (variance + eps).rsqrt()
    shift = -mean * scale
    if weight is not None:
        scale, shift = scale * weight, shift * weight
    if bias is not None:
        shift = shift + bias
    scale, shift = (v.to(x.dtype)[..., None, None] for v in (scale, shift))
    return torch.addcmul(shift, x, scale)


@streams_as(F.batch_norm)
def batch_norm(x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    if not training:
        return x.recorder.record(F.batch_norm, (x, running_mean, running_var, weight, bias, False, momentum, eps), {})
    mesh = x.recorder.mesh
    count = x.shape[0] * x.shape[2] * x.shape[3] * mesh.data
    if count <= 1:
        raise ValueError("batch normalisation in training needs more than one value for each channel")
    mean, square = sum_over_everyone(torch.stack(_moments(x, (0, 2, 3))), mesh) / count
    variance = (square - mean**2).clamp_min(0)
    if running_mean is not None:
        running_mean.lerp_(plain(mean).detach().to(running_mean.dtype), momentum)
        running_var.lerp_((plain(variance).detach() * count / (count - 1)).to(running_var.dtype), momentum)
    return _normalised(x, mean, variance, weight, bias, eps)


@streams_as(F.group_norm, torch.group_norm)
def group_norm(x, num_groups, weight=None, bias=None, eps=1e-5):
    batch, channels, rows, columns = x.shape
    count = channels // num_groups * rows * columns
    total, square = (m.view(batch, num_groups, -1).sum(2) / count for m in _moments(x, (2, 3)))
    mean, variance = (m.repeat_interleave(channels // num_groups, 1) for m in (total, (square - total**2).clamp_min(0)))
    return _normalised(x, mean, variance, weight, bias, eps)


@streams_as(F.instance_norm)
def instance_norm(
    x, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5
):
    if not use_input_stats:
        return batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    count, mesh = x.shape[2] * x.shape[3], x.recorder.mesh
    if count == 1:
        raise ValueError("instance normalisation needs more than one pixel")  # as torch does
    mean, square = (m / count for m in _moments(x, (2, 3)))
    variance = (square - mean**2).clamp_min(0)
    if running_mean is not None:
        batch = plain(torch.stack([mean, variance * count / (count - 1)])).detach().mean(1)
        batch = sum_over_everyone(batch, mesh) / mesh.data
        running_mean.lerp_(batch[0].to(running_mean.dtype), momentum)
        running_var.lerp_(batch[1].to(running_var.dtype), momentum)
    return _normalised(x, mean, variance, weight, bias, eps)
