"""Pooling, by windows and over the whole image."""

import torch
import torch.nn.functional as F

from gigapipe.spatial.halo import gathered, layout, plan, scattered
from gigapipe.spatial.operators.reductions import largest_over_image, mean, summing
from gigapipe.spatial.operators.windowed import images, pair, windowed
from gigapipe.spatial.tensor import NotDecomposed, SpatialTensor, decomposes
from gigapipe.spatial.window import Bins, Interval, Window

max_pool_with_indices = torch.ops.aten.max_pool2d_with_indices
max_pool_backward = torch.ops.aten.max_pool2d_with_indices_backward


class _MaxPool(torch.autograd.Function):
    """Max pooling of shard and halo. Only the places of the maxima are kept, not the padded shard."""

    @staticmethod
    def forward(ctx, local, mesh, size, axes: tuple[Window, Window]):
        halo = plan(mesh, size, axes)
        ctx.halo, ctx.mesh, ctx.shape, ctx.layout = halo, mesh, local.shape, layout(local)
        ctx.arguments = [w.kernel for w in axes], [w.stride for w in axes], [0, 0], [w.dilation for w in axes], False
        buffer = local if halo.nothing else gathered(local, halo, mesh, float("-inf"))
        ctx.buffer_shape = buffer.shape
        out = mesh.rectangle(tuple(w.output_size(n) for w, n in zip(axes, size, strict=True)))
        if out.empty:
            y, indices = local.new_zeros(*local.shape[:2], *out.shape), None
        else:
            y, indices = max_pool_with_indices(buffer, *ctx.arguments)
        ctx.save_for_backward(local.new_empty(0) if indices is None else indices)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (indices,) = ctx.saved_tensors
        if indices.numel():
            # The kernel wants its input for the shape alone.
            like = torch.empty(ctx.buffer_shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.layout)
            grad = max_pool_backward(grad, like, *ctx.arguments, indices)
        else:
            grad = grad.new_zeros(ctx.buffer_shape)
        return grad if ctx.halo.nothing else scattered(grad, ctx.shape, ctx.halo, ctx.mesh), None, None, None


def _windows(kernel, stride, padding, dilation, ceil: bool) -> tuple[Window, Window]:
    """The windows along rows and columns; ValueError where torch would not pool by them."""
    if any(not 0 <= 2 * p <= k for p, k in zip(pair(padding), pair(kernel), strict=True)):
        raise ValueError(f"pooling by {kernel} is padded by at most half of it, not by {padding}")
    axes = zip(pair(kernel), pair(stride), pair(padding), pair(dilation), strict=True)
    return tuple(Window(k, s, (p, p), d, ceil) for k, s, p, d in axes)


@decomposes(F.max_pool2d_with_indices, F.adaptive_max_pool2d_with_indices)
def with_indices(x, *args, **kwargs):
    raise NotDecomposed("max pooling with return_indices", "upsample by interpolation or a transposed convolution")


@decomposes(torch.max_pool2d, F.max_pool2d)
def max_pool2d(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    images(x, "max_pool2d")
    axes = _windows(kernel_size, stride or kernel_size, padding, dilation, ceil_mode)
    if x.mesh.image_ranks == 1:
        local = F.max_pool2d(x.local, kernel_size, stride, padding, dilation, ceil_mode)
        return SpatialTensor(local, tuple(local.shape[2:]), x.mesh)
    size = tuple(window.output_size(n) for window, n in zip(axes, x.image_size, strict=True))
    return SpatialTensor(_MaxPool.apply(x.local, x.mesh, x.image_size, axes), size, x.mesh)


@decomposes(F.avg_pool2d)
def avg_pool2d(x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):
    images(x, "avg_pool2d")
    stride = stride or kernel_size
    axes = _windows(kernel_size, stride, padding, 1, ceil_mode)

    def counts(axis: int, out: Interval) -> torch.Tensor:
        """How many pixels the windows of the outputs `out` average along an axis."""
        window, size = axes[axis], x.image_size[axis]
        start = torch.arange(out.start, out.stop, device=x.device) * window.stride - window.padding[0]
        stop = torch.clamp(start + window.kernel, max=size + window.padding[1])
        if not count_include_pad:
            start, stop = start.clamp(min=0), stop.clamp(max=size)
        return (stop - start).to(summing(x.dtype))

    def operate(shard, needed, out):
        total = F.avg_pool2d(shard.to(summing(x.dtype)), kernel_size, stride, divisor_override=1)
        divisor = divisor_override or torch.outer(counts(0, out.rows), counts(1, out.columns))
        return (total / divisor).to(x.dtype)

    return windowed(x, axes, operate, x.shape[1])


@decomposes(F.lp_pool2d)
def lp_pool2d(x, norm_type, kernel_size, stride=None, ceil_mode=False):
    area = pair(kernel_size)[0] * pair(kernel_size)[1]
    mean = avg_pool2d(x.pow(norm_type), kernel_size, stride, 0, ceil_mode)
    return (torch.sign(mean) * F.relu(torch.abs(mean))).mul(area).pow(1.0 / norm_type)


def _bins(x: SpatialTensor, output_size) -> tuple[Bins, Bins]:
    """How adaptive pooling divides rows and columns; None stands for as many bins as there are."""
    sizes = output_size if isinstance(output_size, tuple | list) else (output_size, output_size)
    return tuple(Bins(n, n if m is None else m) for n, m in zip(x.image_size, sizes, strict=True))


def _cells(out: Interval, needed: Interval, bins: Bins):
    """Each output's slice of an input that holds `needed`."""
    return [bins.needs(Interval(i, i + 1)).within(needed) for i in range(*out)]


@decomposes(F.adaptive_avg_pool2d)
def adaptive_avg_pool2d(x, output_size):
    """To size 1 a plain tensor, the same on every rank; to any other size an image again."""
    axes = _bins(images(x, "adaptive_avg_pool2d"), output_size)
    if (axes[0].bins, axes[1].bins) == (1, 1):
        return mean(x, (-2, -1), keepdim=True)

    def operate(shard, needed, out):
        rows, columns = (_cells(*axis) for axis in zip(out, needed, axes, strict=True))
        shard = torch.cat([shard[:, :, cell].mean(2, keepdim=True) for cell in rows], 2)
        return torch.cat([shard[..., cell].mean(3, keepdim=True) for cell in columns], 3)

    return windowed(x, axes, operate, x.shape[1])


@decomposes(F.adaptive_max_pool2d)
def adaptive_max_pool2d(x, output_size, return_indices=False):
    """To size 1 a plain tensor, the same on every rank; to any other size an image again."""
    axes = _bins(images(x, "adaptive_max_pool2d"), output_size)
    if (axes[0].bins, axes[1].bins) == (1, 1):
        return largest_over_image(x)[:, :, None, None]

    def operate(shard, needed, out):
        rows, columns = (_cells(*axis) for axis in zip(out, needed, axes, strict=True))
        lines = [torch.cat([F.adaptive_max_pool2d(shard[:, :, r, c], 1) for c in columns], 3) for r in rows]
        return torch.cat(lines, 2)

    return windowed(x, axes, operate, x.shape[1])
