"""Pooling, by windows and over the whole image; max_pooling.py has that by the largest of a window."""

import torch
import torch.nn.functional as F

from gigapipe.spatial.operators.reductions import largest_over_image, mean, summing
from gigapipe.spatial.operators.windowed import images, pair, pooling_windows, windowed
from gigapipe.spatial.tensor import SpatialTensor, decomposes
from gigapipe.spatial.window import Bins, Interval


@decomposes(F.avg_pool2d)
def avg_pool2d(x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):
    images(x, "avg_pool2d")
    stride = kernel_size if stride is None or stride == [] else stride
    if divisor_override == 0:
        raise RuntimeError("divisor must be not zero")  # as torch does
    axes = pooling_windows(kernel_size, stride, padding, 1, ceil_mode)

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
    rows, columns = (Bins(n, n if m is None else m) for n, m in zip(x.image_size, sizes, strict=True))
    return rows, columns


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
