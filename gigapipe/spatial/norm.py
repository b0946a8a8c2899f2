"""Batch normalisation over all ranks: the statistics of the undivided batch, every pixel counted once."""

import torch
import torch.nn.functional as F

from gigapipe.spatial.mesh import Mesh


class _BatchNorm(torch.autograd.Function):
    """Normalise by the mean and variance over all ranks; sums travel in float64, in one all-reduce each way."""

    @staticmethod
    def forward(ctx, x, weight, bias, shift, mesh: Mesh, eps: float):
        channels = x.shape[1]
        pixels = x.numel() // channels
        if pixels:
            mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)  # torch's fast kernel, of this shard
        else:  # this rank owns nothing of a feature map smaller than the mesh
            mean = variance = x.new_zeros(channels)
        # Sums of squares about `shift` (the running mean, the same on every rank), not about zero: what is
        # subtracted below is then small, and nothing cancels.
        offset = mean.double() - shift.double()
        count = torch.full((1,), pixels, dtype=torch.float64, device=x.device)
        sums = mesh.sum_(torch.cat([count, pixels * offset, pixels * (variance.double() + offset**2)]))
        count = sums[0]
        if count <= 1:
            raise ValueError("batch normalisation in training needs more than one value for each channel")
        offset, square = sums[1:].div(count).split(channels)
        mean = (shift.double() + offset).to(x.dtype)
        variance = (square - offset**2).clamp_min(0).to(x.dtype)
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.mesh, ctx.eps, ctx.has_bias = mesh, eps, bias is not None
        ctx.mark_non_differentiable(mean, variance, count)
        y = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps) if pixels else x.clone()
        return y, mean, variance, count

    @staticmethod
    def backward(ctx, grad, *_):
        x, weight, mean, variance, count = ctx.saved_tensors
        if x.numel():
            # With given statistics torch's kernel returns this shard's sums of dy * x̂ and of dy.
            _, sum_product, sum_grad = torch.ops.aten.native_batch_norm_backward(
                grad, x, weight, mean, variance, None, None, False, ctx.eps, [False, True, True]
            )
        else:
            sum_product = sum_grad = torch.zeros_like(mean)
        sums = ctx.mesh.sum_(torch.cat([sum_grad.double(), sum_product.double()])).div_(count)
        mean_grad, mean_product = sums.to(x.dtype).chunk(2)
        # dx = scale * (dy - mean(dy) - x̂ * mean(dy * x̂)), one multiply-add for x and one for dy.
        inverse = torch.rsqrt(variance + ctx.eps)
        scale = inverse if weight is None else inverse * weight
        slope = -scale * inverse * mean_product
        constant = -scale * mean_grad - slope * mean
        constant, slope, scale = (v.view(1, -1, 1, 1) for v in (constant, slope, scale))
        grad_x = torch.addcmul(constant, x, slope).addcmul_(grad, scale)
        grad_weight = None if weight is None else sum_product
        return grad_x, grad_weight, sum_grad if ctx.has_bias else None, None, None, None


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
