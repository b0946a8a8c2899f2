"""Normalisation of a streamed image by its own statistics, exact.

The statistics are sums over the whole image, so all that leads to it since the last image that is held is computed
once for them, and again for what follows; backward alike. What is held before each norm saves that (`kept_images.py`).
"""

import torch
import torch.nn.functional as F

from gigapipe.spatial.gradients import enter, leave
from gigapipe.spatial.operators.normalisation import moments_of
from gigapipe.spatial.operators.reductions import sum_over_everyone
from gigapipe.spatial.operators.windowed import images
from gigapipe.spatial.pooled import plain
from gigapipe.spatial.recording import Recorded, streams_as, sums_over_image
from gigapipe.spatial.refusals import once_differentiable
from gigapipe.spatial.tensor import SpatialTensor
from gigapipe.spatial.tile import dense
from gigapipe.spatial.wide import narrow, where_wide, wide


def _scaled(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """`scale` x + `shift`: of the shape and dtype of `x` (batch, channels, rows, columns), computed in theirs.

    They are (channels,) or (batch, channels). By torch's kernel for frozen norms, which reads and writes once, and
    converts as it goes.
    """
    if scale.dim() == 2 and len(scale) > 1:
        y = torch.empty_like(x)
        for i in range(len(x)):
            y[i : i + 1] = _scaled(x[i : i + 1], scale[i], shift[i])
        return y
    if not x.numel():
        return torch.empty_like(x)
    scale, shift = scale.flatten(), shift.flatten()
    return torch.batch_norm(dense(x), scale, shift, *_neutral(scale), False, 0.0, 0.0, False)


def _neutral(scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A mean and a variance that change nothing."""
    return torch.zeros_like(scale), torch.ones_like(scale)


class _Scaled(torch.autograd.Function):
    """The same with its gradients."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, scale)
        return _scaled(x, scale, shift)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        x, scale = ctx.saved_tensors
        if not x.numel():
            return torch.zeros_like(x), torch.zeros_like(scale), torch.zeros_like(scale)
        mask = list(ctx.needs_input_grad)
        found = []
        for i in range(len(scale) if scale.dim() == 2 else 1):
            part = slice(i, i + 1) if scale.dim() == 2 else slice(None)
            own = scale[part].flatten()
            neutral = _neutral(own)
            kernel = torch.ops.aten.native_batch_norm_backward
            found.append(kernel(dense(grad[part]), dense(x[part]), own, *neutral, *neutral, False, 0.0, mask))
        of_x, of_scale, of_shift = zip(*found, strict=True)
        return (
            (of_x[0] if len(found) == 1 else torch.cat(of_x)) if mask[0] else None,
            torch.stack(of_scale).view_as(scale) if mask[1] else None,
            torch.stack(of_shift).view_as(scale) if mask[2] else None,
        )


def scaled(x: SpatialTensor, scale: torch.Tensor, shift: torch.Tensor) -> SpatialTensor:
    """`scale` x + `shift`, of an image (batch, channels, rows, columns); they are (channels,) or (batch, channels).

    They are of float32, or of float64 for such an image; the result has the image's dtype.
    """
    return x.with_local(_Scaled.apply(images(x, "a norm").local, *enter([scale, shift], x.mesh)))


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
            mean, variance = map(wide, moments_of(dense(one)))
            moments.append(torch.stack([mean, variance + mean**2]) * pixels)
        return torch.stack(moments, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        of_sum, of_square = grad.to(torch.promote_types(x.dtype, torch.float32)).to(x.device)
        return _scaled(x, 2 * of_square, of_sum)


@sums_over_image
def moments(x: SpatialTensor) -> torch.Tensor:
    """Sums over each image of its values and of their squares: (2, batch, channels), float64."""
    return leave(_Moments.apply(images(x, "a norm").local), x.mesh, x.batch)


def _moments(x: Recorded) -> torch.Tensor:
    return x.recorder.record(moments, (x,), {})


def _normalised(x: Recorded, mean: torch.Tensor, variance: torch.Tensor, weight, bias, eps: float) -> torch.Tensor:
    """By statistics (channels) or (batch, channels)."""
    scale = (variance + eps).rsqrt()
    scale, shift = narrow(scale, x), narrow(-mean * scale, x)
    if weight is not None:
        scale, shift = scale * weight, shift * weight
    if bias is not None:
        shift = shift + bias
    precision = torch.promote_types(x.dtype, torch.float32)
    return x.recorder.record(scaled, (x, scale.to(precision), shift.to(precision)), {})


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
