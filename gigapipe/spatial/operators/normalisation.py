"""Normalisation by the statistics of the undivided images, every pixel counted once."""

import torch
import torch.nn.functional as F

from gigapipe.spatial import kernels
from gigapipe.spatial.gradients import enter, is_common_leaf
from gigapipe.spatial.halo import layout
from gigapipe.spatial.mesh import Mesh, remembered_by_mesh
from gigapipe.spatial.operators.reductions import sum_over_image
from gigapipe.spatial.operators.windowed import images
from gigapipe.spatial.pooled import across
from gigapipe.spatial.refusals import LAYERS, once_differentiable
from gigapipe.spatial.tensor import NotDecomposed, SpatialTensor, decomposes
from gigapipe.spatial.tile import dense
from gigapipe.spatial.wide import narrow, where_wide, wide

IN_CACHE = 2**18  # elements

FUSED = {"cuda", "xpu"}
"""Devices with the kernels that torch's SyncBatchNorm is made of; ROCm's is called cuda, too."""


def moments_of(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (channels,) of a shard that is not empty, in the precision of statistics."""
    precision = torch.promote_types(x.dtype, torch.float32)  # as torch has it for bfloat16
    if x.device.type == "cpu" or x.device.type in FUSED:
        # torch's fast kernel. Its results have the precision of the running statistics that it is given, which mean
        # nothing: nobody reads them.
        running_mean, running_variance = x.new_empty(2, x.shape[1], dtype=precision)
        return torch.batch_norm_update_stats(x, running_mean, running_variance, 0.0)
    variance, mean = torch.var_mean(x.to(precision), (0, 2, 3), correction=0)
    return mean, variance


def _bands(x: torch.Tensor) -> list[slice]:
    """Rows, in turns: on a CPU so few that what is computed of them stays in its cache."""
    rows = x.shape[2]
    few = max(1, IN_CACHE * rows // max(1, x.numel())) if x.device.type == "cpu" else max(1, rows)
    return [slice(start, start + few) for start in range(0, rows, few)]


class _BatchNorm(torch.autograd.Function):
    """Normalise by the mean and variance over all ranks; sums travel in float64, in one all-reduce each way.

    `count` is how many pixels all ranks have, batches included; None where data ranks' batches may differ. Then it is
    summed as well, but nobody waits for it: it stays on the device. Many tiny operations would cost a GPU more time
    than the image: they are as few as give the precision.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, shift, running, momentum, mesh: Mesh, eps: float, whole: bool, count: int | None):
        channels = x.shape[1]
        pixels = x.numel() // channels
        precision = torch.promote_types(x.dtype, torch.float32)  # of the statistics, as torch has it for bfloat16
        if pixels:
            mean, variance = moments_of(x)
        else:  # a rank may own nothing of a feature map smaller than the mesh
            mean, variance = x.new_zeros(2, channels, dtype=precision)
        # Sums of squares about `shift` (the running mean, the same on every rank), not about zero: what is
        # subtracted later is then small, and nothing cancels.
        if x.device.type in kernels.DEVICES:
            sums = mesh.everyone.sum_(kernels.moments(mean, variance, shift, pixels, count))
            mean, variance, inverse = kernels.statistics(sums, shift, running, count, momentum, eps, precision)
        else:
            sums = mesh.everyone.sum_(_moments(mean, variance, shift, pixels, count))
            mean, variance, inverse = _statistics(sums, shift, running, count, momentum, eps, precision)
        total = sums[-1].clone() if count is None else None
        ctx.save_for_backward(x, weight, mean, variance, inverse, total)
        ctx.mesh, ctx.eps, ctx.has_bias, ctx.whole, ctx.count = mesh, eps, bias is not None, whole, count
        ctx.across = across(f"batch norm of {channels}")
        return _normalise(x, weight, bias, mean, variance, inverse, eps) if pixels else x.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, mean, variance, inverse, total = ctx.saved_tensors
        backward = _fused_backward if x.device.type in FUSED else _backward

        def summed(*sums: torch.Tensor, scale: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
            together = torch.empty(2 * len(mean), dtype=torch.float64, device=where_wide(x.device))
            torch.cat([s.to(together.device) for s in sums], out=together)
            if x.device.type in kernels.DEVICES and scale is not None:
                own = together if ctx.whole else together.clone()
                ctx.mesh.everyone.sum_(together)
                return kernels.of_sums(together, own, scale, total, ctx.count, ctx.whole).unbind()
            ctx.mesh.everyone.sum_(together)
            of_bias, of_weight = together.to(mean.dtype).to(x.device).chunk(2) if ctx.whole else sums
            means = torch.div(together, ctx.count or total, out=together.new_empty(together.shape, dtype=mean.dtype))
            return *means.to(x.device).chunk(2), of_bias, of_weight if scale is None else of_weight * scale

        of_shard = grad, x, weight, mean, variance, inverse
        grad_x, grad_weight, grad_bias = backward(*of_shard, ctx.mesh, ctx.eps, summed)
        of_weight, of_bias = None if weight is None else grad_weight, grad_bias if ctx.has_bias else None
        return grad_x, of_weight, of_bias, *[None] * 7


def _moments(mean, variance, shift, pixels: int, count: int | None) -> torch.Tensor:
    """As `kernels.moments`."""
    channels = len(mean)
    sums = torch.empty(2 * channels + (count is None), dtype=torch.float64, device=where_wide(mean.device))
    mean, variance, shift = (v.to(sums.device) for v in (mean, variance, shift))
    moments = sums[: 2 * channels]
    offset, square = moments.view(2, channels)
    torch.sub(mean, shift, out=offset)
    torch.addcmul(variance, offset, offset, out=square)
    if count is None:
        moments.mul_(pixels)
        sums[-1].fill_(pixels)
    else:
        moments.mul_(pixels / count)
    return sums


def _statistics(sums, shift, running, count: int | None, momentum: float, eps: float, precision: torch.dtype):
    """As `kernels.statistics`."""
    channels = len(shift)
    moments, total = sums[: 2 * channels], sums[-1]
    offset, square = (moments if count else moments / total).view(2, channels)
    mean, variance = sums.new_empty(2, channels, dtype=precision)
    torch.add(shift.to(sums.device), offset, out=mean)
    torch.addcmul(square, offset, offset, value=-1, out=variance).clamp_min_(0)
    mean, variance = mean.to(shift.device), variance.to(shift.device)
    inverse = (variance + eps).rsqrt_()
    if running is not None:
        n = count or total  # which may be on the host, where a number alone may be
        new = zip(running, (mean, variance * (n / (n - 1))), strict=True)
        torch._foreach_lerp_(list(running), [value.to(old.dtype) for old, value in new], momentum)
    return mean, variance, inverse


def _normalise(x, weight, bias, mean, variance, inverse, eps: float) -> torch.Tensor:
    """A shard that is not empty, by given statistics."""
    if x.device.type in FUSED:
        weight, bias = (v if v is None else v.to(mean.dtype) for v in (weight, bias))
        return torch.batch_norm_elemt(x, weight, bias, mean, inverse, eps)
    return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)


def _backward(grad, x, weight, mean, variance, inverse, _, eps: float, summed) -> tuple[torch.Tensor, ...]:
    """Gradients of a shard, of the weight and of the bias.

    `summed` makes of this rank's sums means over all ranks' pixels, then the gradients of bias and weight: the sums of
    all ranks where nobody adds them up later, else this rank's, that of the weight times `scale`.
    """
    if x.numel():
        # With given statistics torch's kernel returns this shard's sums of dy * x̂ and of dy. It takes the empty tensors
        # for what a training would have saved; None will do on CPUs alone.
        nothing = x.new_empty(0, dtype=mean.dtype)
        _, sum_product, sum_grad = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, variance, nothing, nothing, False, eps, [False, True, True]
        )
    else:
        sum_product = sum_grad = torch.zeros_like(mean)
    mean_grad, mean_product, of_bias, of_weight = summed(sum_grad, sum_product)
    # dx = scale * (dy - mean(dy) - x̂ * mean(dy * x̂)), one multiply-add for x and one for dy.
    scale = inverse if weight is None else inverse * weight
    slope = -scale * inverse * mean_product
    constant = -scale * mean_grad - slope * mean
    constant, slope, scale = (v.view(1, -1, 1, 1) for v in (constant, slope, scale))
    grad_x = torch.empty_like(x)
    for rows in _bands(x):
        of_x, of_grad = x[:, :, rows].to(scale.dtype), grad[:, :, rows].to(scale.dtype)
        grad_x[:, :, rows] = torch.addcmul(constant, of_x, slope).addcmul_(of_grad, scale)
    return grad_x, of_weight, of_bias


def _fused_backward(grad, x, weight, mean, _, inverse, mesh: Mesh, eps: float, summed) -> tuple[torch.Tensor, ...]:
    """The same by the kernels of SyncBatchNorm, which keep no copies of the image in float32.

    What they demand, read in ATen's Normalization.cu and .cuh (ROCm/pytorch ee04104d), not run:
    - an image that is not empty;
    - mean, invstd and the sums in float32, of float64 in float64, and contiguous. A weight may have the image's dtype
      or theirs, but of bfloat16 one of the two kernels takes theirs alone. Without a weight, nobody may ask for
      gradients of it or the bias;
    - dy in the image's dtype. Where both lie in channels_last, so does the result; else it is contiguous;
    - the counts of the ranks in int32, on the device, which are added up. Here the sums are divided already: an image
      may have more pixels than int32 can count.
    """
    weight = None if weight is None else weight.to(mean.dtype)
    if x.numel():
        grad = grad.contiguous(memory_format=layout(x))
        asked = weight is not None
        sum_grad, sum_product, *_ = torch.batch_norm_backward_reduce(grad, x, mean, inverse, weight, True, asked, asked)
    else:
        sum_grad = sum_product = torch.zeros_like(mean)
    # Their sum of products is of dy * (x - mean).
    mean_grad, mean_product, of_bias, of_weight = summed(sum_grad, sum_product, scale=inverse)
    grad_x = torch.empty_like(x)
    if x.numel():
        grad_x = torch.batch_norm_backward_elemt(
            grad, x, mean, inverse, weight, mean_grad, mean_product, _one(mesh, x.device)
        )
    return grad_x, of_weight, of_bias


@remembered_by_mesh
def _one(mesh: Mesh, device: torch.device) -> torch.Tensor:
    return torch.ones(1, dtype=torch.int32, device=device)


@decomposes(F.batch_norm, enters_itself=True)
def batch_norm(
    x: SpatialTensor,
    running_mean,
    running_var,
    weight=None,
    bias=None,
    training=False,
    momentum=0.1,
    eps=1e-5,
) -> SpatialTensor:
    """In training the mean and the variance are those of all pixels of all images of the mesh, over data, rows and
    columns alike, and the running statistics are updated from them, identically on every rank.
    """
    local = images(x, "batch_norm").local
    # The sums over everyone that the gradient needs in training are those of leaves already.
    whole = training and all(is_common_leaf(t) for t in (weight, bias) if t is not None)
    if not whole:
        weight, bias = enter([weight, bias], x.mesh)
    if x.mesh.size == 1:
        return x.with_local(F.batch_norm(local, running_mean, running_var, weight, bias, training, momentum, eps))
    if not training:
        if local.numel() == 0:  # torch refuses an empty image; its parameters must get their zero gradients
            y = local if weight is None else local * weight.view(-1, 1, 1)
            return x.with_local(y if bias is None else y + bias.view(-1, 1, 1))
        return x.with_local(F.batch_norm(dense(local), running_mean, running_var, weight, bias, False, momentum, eps))
    assert isinstance(x.mesh, Mesh)  # of a streamed image statistical.py has another
    if x.shape[0] * x.image_size[0] * x.image_size[1] * x.mesh.data <= 1:
        raise ValueError("batch normalisation in training needs more than one value for each channel")
    x.mesh.agree((LAYERS[-1:], x.shape[1]), device=x.device, layer=True)
    count = x.shape[0] * x.image_size[0] * x.image_size[1] if x.mesh.data == 1 else None
    shift = torch.zeros(x.shape[1], device=x.device) if running_mean is None else running_mean.detach()
    running = None if running_mean is None else (running_mean, running_var)
    y = _BatchNorm.apply(local, weight, bias, shift, running, momentum, x.mesh, eps, whole, count)
    return x.with_local(y)


def _group_statistics(x: SpatialTensor, groups: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Mean and variance (batch, groups) of each group of channels of each image, and how many values each is of."""
    batch, channels = x.shape[:2]
    count = channels // groups * x.image_size[0] * x.image_size[1]
    flat = x.local.reshape(batch, groups, -1)
    if flat.dtype in (torch.bfloat16, torch.float16):
        flat = flat.float()
    if flat.shape[2]:
        variance, mean = torch.var_mean(flat, 2, correction=0)
        mean, variance = wide(mean), wide(variance)
    else:
        mean = variance = wide(flat.sum(2))  # zeros that keep the rank in the graph
    # The mean first, then squares about it: nothing cancels.
    share = flat.shape[2] / count
    whole_mean = sum_over_image(share * mean, x.mesh)
    whole_variance = sum_over_image(share * (variance + (mean - whole_mean) ** 2), x.mesh)
    return whole_mean, whole_variance, count


def _normalised(x: SpatialTensor, mean, variance, weight, bias, eps: float) -> torch.Tensor:
    """The shard, normalised by statistics (batch, groups), then scaled and shifted for each channel."""
    repeats = x.shape[1] // mean.shape[1]
    scale = (variance + eps).rsqrt().repeat_interleave(repeats, 1)
    shift = -mean.repeat_interleave(repeats, 1) * scale
    scale, shift = narrow(scale, x), narrow(shift, x)
    if weight is not None:
        scale, shift = scale * weight, shift * weight
    if bias is not None:
        shift = shift + bias
    scale, shift = (v.to(x.dtype)[:, :, None, None] for v in (scale, shift))
    return torch.addcmul(shift, x.local, scale)


@decomposes(F.group_norm, torch.group_norm)
def group_norm(x, num_groups, weight=None, bias=None, eps=1e-5):
    if images(x, "group_norm").mesh.image_ranks == 1:
        return x.with_local(F.group_norm(x.local, num_groups, weight, bias, eps))
    mean, variance, _ = _group_statistics(x, num_groups)
    return x.with_local(_normalised(x, mean, variance, weight, bias, eps))


@decomposes(F.instance_norm)
def instance_norm(
    x,
    running_mean=None,
    running_var=None,
    weight=None,
    bias=None,
    use_input_stats=True,
    momentum=0.1,
    eps=1e-5,
):
    images(x, "instance_norm")
    if not use_input_stats:
        return batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    if x.image_size[0] * x.image_size[1] == 1:
        raise ValueError("instance normalisation needs more than one pixel")  # as torch does
    mean, variance, count = _group_statistics(x, x.shape[1])
    if running_mean is not None:
        # As torch does, the mean over the batch; here over all data ranks' batches, each met by `image_ranks` ranks.
        x.mesh.agree((LAYERS[-1:], x.shape[1]), device=x.device, layer=True)
        batch = torch.stack([mean.detach(), variance.detach() * count / (count - 1)]).mean(1)
        batch = x.mesh.everyone.sum_(batch) / x.mesh.size
        running_mean.lerp_(batch[0].to(running_mean), momentum)
        running_var.lerp_(batch[1].to(running_var), momentum)
    return x.with_local(_normalised(x, mean, variance, weight, bias, eps))


@decomposes(F.layer_norm, torch.layer_norm)
def layer_norm(x, normalized_shape, weight=None, bias=None, eps=1e-5):
    if max(x.axes) >= x.dim() - len(normalized_shape):
        raise NotDecomposed(
            "layer_norm over rows and columns", "normalise the channels of a (batch, rows, columns, channels) image"
        )
    return x.with_local(F.layer_norm(x.local, normalized_shape, weight, bias, eps))
