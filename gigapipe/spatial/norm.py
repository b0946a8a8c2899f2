"""Batch normalisation over all ranks: the statistics of the undivided batch, every pixel counted once."""

import torch
import torch.nn.functional as F

from gigapipe.spatial.mesh import Mesh

AXES = (0, 2, 3)


class _BatchNorm(torch.autograd.Function):
    """Normalise by the mean and variance over all ranks; sums travel in float64, in one all-reduce each way."""

    @staticmethod
    def forward(ctx, x, weight, bias, shift, mesh: Mesh, eps: float):
        channels = x.shape[1]
        pixels = x.numel() // channels
        if pixels:
            variance, mean = torch.var_mean(x, dim=AXES, correction=0)
        else:  # this rank owns nothing of a feature map smaller than the mesh
            variance = mean = x.new_zeros(channels)
        # Sums of squares about `shift` (the running mean, the same on every rank), not about zero: what is
        # subtracted below is then small, and nothing cancels.
        offset = mean.double() - shift.double()
        sums = torch.cat(
            [
                torch.full((1,), pixels, dtype=torch.float64, device=x.device),
                pixels * offset,
                pixels * (variance.double() + offset**2),
            ]
        )
        mesh.sum_(sums)
        count = sums[0]
        offset, square = sums[1:].div(count).split(channels)
        mean = (shift.double() + offset).to(x.dtype)
        variance = (square - offset**2).clamp_min(0).to(x.dtype)
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps), count)
        ctx.mesh = mesh
        ctx.mark_non_differentiable(mean, variance, count)
        y = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps) if pixels else x.clone()
        return y, mean, variance, count

    @staticmethod
    def backward(ctx, grad, *_):
        x, weight, mean, inverse, count = ctx.saved_tensors

        def column(v):
            return v.to(x.dtype).view(1, -1, 1, 1)

        sum_grad = grad.sum(AXES, dtype=torch.float64)
        sum_product = ((grad * (x - column(mean))).sum(AXES, dtype=torch.float64)) * inverse
        grad_weight, grad_bias = sum_product.to(x.dtype), sum_grad.to(x.dtype)
        sums = ctx.mesh.sum_(torch.cat([sum_grad, sum_product])).div_(count)
        mean_grad, mean_product = sums.chunk(2)
        # dx = scale * (dy - mean(dy) - x̂ * mean(dy * x̂)), one multiply-add for x and one for dy.
        scale = inverse if weight is None else inverse * weight
        slope = -(scale * inverse) * mean_product
        constant = -scale * mean_grad - slope * mean
        grad_x = torch.addcmul(column(constant), x, column(slope)).addcmul_(grad, column(scale))
        return grad_x, grad_weight if weight is not None else None, grad_bias, None, None, None


def batch_norm(
    x: torch.Tensor,
    running_mean,
    running_var,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
    *,
    mesh: Mesh,
) -> torch.Tensor:
    """`torch.nn.functional.batch_norm` of a shard `x` (batch, channels, rows, columns), as if it were whole.

    In training the mean and the variance are those of all pixels of all images of the mesh, over data, rows and
    columns alike, and the running statistics are updated from them, identically on every rank.
    """
    if not training:
        if x.numel() == 0:
            return x
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    shift = torch.zeros(x.shape[1], dtype=x.dtype, device=x.device) if running_mean is None else running_mean.detach()
    y, mean, variance, count = _BatchNorm.apply(x, weight, bias, shift.clone(), mesh, eps)
    if running_mean is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        unbiased = variance * (count / (count - 1)).to(variance.dtype)
        running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    return y
