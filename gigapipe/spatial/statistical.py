"""Normalisation of a streamed image by its own statistics, exact.

The statistics are sums over the whole image, so all that leads to it since the last image that is held is computed
once for them, and again for what follows; backward alike. What is held before each norm saves that (`kept_images.py`).
"""

import torch
import torch.nn.functional as F

from gigapipe.spatial.gradients import leave
from gigapipe.spatial.operators.normalisation import moments_of
from gigapipe.spatial.operators.reductions import sum_over_everyone
from gigapipe.spatial.operators.windowed import images
from gigapipe.spatial.pooled import plain
from gigapipe.spatial.recording import Recorded, streams_as, sums_over_image
from gigapipe.spatial.refusals import once_differentiable
from gigapipe.spatial.tensor import SpatialTensor
from gigapipe.spatial.wide import narrow, where_wide, wide


class _Moments(torch.autograd.Function):
    """Sums, float64, of an image (batch, channels, rows, columns) and of its squares: (2, batch, channels)."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        channels, pixels = x.shape[1], x.shape[2] * x.shape[3]
        if not pixels:  # of a rank that owns nothing of a small image
            return torch.zeros(2, len(x), channels, dtype=torch.float64, device=where_wide(x.device))
        moments = []
        for one in x.split(1):
            # The variance is about the mean: little is lost where squares about zero, in float64, are made of both.
            mean, variance = map(wide, moments_of(one))
            moments.append(torch.stack([mean, variance + mean**2]) * pixels)
        return torch.stack(moments, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        precision = torch.promote_types(x.dtype, torch.float32)
        of_sum, of_square = grad.to(precision).to(x.device)[..., None, None]
        # In the image's own dtype, but computed in the other: kernels convert as they go.
        return torch.addcmul(of_sum, x, 2 * of_square, out=torch.empty_like(x))


@sums_over_image
def moments(x: SpatialTensor) -> torch.Tensor:
    """Sums over each image of its values and of their squares: (2, batch, channels), float64."""
    return leave(_Moments.apply(images(x, "a norm").local), x.mesh, x.batch)


def _moments(x: Recorded) -> torch.Tensor:
    return x.recorder.record(moments, (x,), {})


def _normalised(x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, weight, bias, eps: float) -> torch.Tensor:
    """By statistics (channels) or (batch, channels)."""
    scale = (variance + eps).rsqrt()
    scale, shift = narrow(scale, x), narrow(-mean * scale, x)
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
    mean, square = sum_over_everyone(_moments(x).sum(1), mesh) / count
    variance = (square - mean**2).clamp_min(0)
    if running_mean is not None:
        running_mean.lerp_(plain(mean).detach().to(running_mean), momentum)
        running_var.lerp_((plain(variance).detach() * count / (count - 1)).to(running_var), momentum)
    return _normalised(x, mean, variance, weight, bias, eps)


@streams_as(F.group_norm, torch.group_norm)
def group_norm(x, num_groups, weight=None, bias=None, eps=1e-5):
    batch, channels, rows, columns = x.shape
    count = channels // num_groups * rows * columns
    total, square = (m.view(batch, num_groups, -1).sum(2) / count for m in _moments(x))
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
    mean, square = (m / count for m in _moments(x))
    variance = (square - mean**2).clamp_min(0)
    if running_mean is not None:
        batch = plain(torch.stack([mean, variance * count / (count - 1)])).detach().mean(1)
        batch = sum_over_everyone(batch, mesh) / mesh.data
        running_mean.lerp_(batch[0].to(running_mean), momentum)
        running_var.lerp_(batch[1].to(running_var), momentum)
    return _normalised(x, mean, variance, weight, bias, eps)
