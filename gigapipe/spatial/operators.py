"""The decomposed form of each torch operation: what a rank does to its shard, and what it must be told by others.

`DECOMPOSED` maps torch's own function to ours, which takes the same arguments. Where nothing is divided the original
runs as it is, so one rank costs nothing.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from gigapipe.spatial import norm
from gigapipe.spatial.halo import gather_halo
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.tensor import SpatialTensor
from gigapipe.spatial.window import Window

DECOMPOSED: dict[Callable, Callable] = {}


def decomposes(*functions: Callable):
    """Register a function as the decomposed form of torch's `functions`."""

    def register(ours: Callable) -> Callable:
        DECOMPOSED.update(dict.fromkeys(functions, ours))
        return ours

    return register


def _pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))


# --- Windows: convolution and pooling ---


def _windows(kernel, stride, padding, dilation) -> tuple[Window, Window]:
    axes = zip(_pair(kernel), _pair(stride), _pair(padding), _pair(dilation), strict=True)
    return tuple(Window(k, s, (p, p), d) for k, s, p, d in axes)


def _windowed(x: SpatialTensor, windows: tuple[Window, Window], fill: float, channels: int, operate, parameters=()):
    """Apply `operate(input, padding)`: to the whole image with its own padding, or to shard and halo with none."""
    size = tuple(w.output_size(n) for w, n in zip(windows, x.image_size, strict=True))
    if x.mesh.image_ranks == 1:
        return SpatialTensor(operate(x.local, tuple(w.padding[0] for w in windows)), size, x.mesh)
    shard = gather_halo(x.local, x.mesh, x.image_size, windows, fill)
    shape = x.mesh.rectangle(size).shape
    if 0 in shape:
        # This rank owns none of the output, but may owe its pixels and the parameters' gradients to the others:
        # an empty sum keeps both in the graph, so that its backward pass meets theirs.
        nothing = sum(t.flatten()[:0].sum() for t in (shard, *parameters))
        return SpatialTensor(nothing.expand(x.shape[0], channels, *shape), size, x.mesh)
    return SpatialTensor(operate(shard, (0, 0)), size, x.mesh)


@decomposes(torch.conv2d)
def conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    if isinstance(padding, str) or not isinstance(x, SpatialTensor):
        raise NotImplementedError("gigapipe.spatial: conv2d takes a decomposed input, and its padding in numbers")
    return _windowed(
        x,
        _windows(weight.shape[2:], stride, padding, dilation),
        0.0,
        weight.shape[0],
        lambda shard, padding: F.conv2d(shard, weight, bias, stride, padding, dilation, groups),
        parameters=[weight] if bias is None else [weight, bias],
    )


@decomposes(torch.max_pool2d, F.max_pool2d)
def max_pool2d(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    if ceil_mode or return_indices:
        raise NotImplementedError("gigapipe.spatial: max_pool2d has neither ceil_mode nor return_indices on a shard")
    stride = stride or kernel_size  # torch's own default
    return _windowed(
        x,
        _windows(kernel_size, stride, padding, dilation),
        float("-inf"),
        x.shape[1],
        lambda shard, padding: F.max_pool2d(shard, kernel_size, stride, padding, dilation),
    )


# --- The whole image at once: normalisation and global pooling ---


@decomposes(F.batch_norm)
def batch_norm(x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    if x.mesh.size == 1:
        return x.with_local(F.batch_norm(x.local, running_mean, running_var, weight, bias, training, momentum, eps))
    return x.with_local(
        norm.batch_norm(x.local, running_mean, running_var, weight, bias, training, momentum, eps, mesh=x.mesh)
    )


class _SumOverImage(torch.autograd.Function):
    """Sum over the ranks that share an image: a plain tensor, the same on each. Its adjoint is the same sum."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, mesh: Mesh) -> torch.Tensor:
        ctx.mesh = mesh
        return mesh.sum_images_(x.clone())

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        return ctx.mesh.sum_images_(grad.clone()), None


@decomposes(torch.mean, torch.Tensor.mean)
def mean(x, dim=None, keepdim=False):
    axes = (dim,) if isinstance(dim, int) else dim or ()
    if sorted(axis % x.dim() for axis in axes) != [x.dim() - 2, x.dim() - 1]:
        raise NotImplementedError("gigapipe.spatial: the mean of an image is over its rows and columns together")
    pixels = x.shape[-2] * x.shape[-1]
    return _SumOverImage.apply(x.local.sum((-2, -1), keepdim=keepdim), x.mesh) / pixels


@decomposes(F.adaptive_avg_pool2d)
def adaptive_avg_pool2d(x, output_size):
    if _pair(output_size) != (1, 1):
        raise NotImplementedError("gigapipe.spatial: adaptive_avg_pool2d of a shard pools the whole image, to size 1")
    return mean(x, (-2, -1), keepdim=True)


# --- Pixel by pixel ---


def _pointwise(function: Callable) -> Callable:
    def ours(*args, **kwargs):
        images = [a for a in args if isinstance(a, SpatialTensor)]
        plain = [a for a in args if isinstance(a, torch.Tensor) and not isinstance(a, SpatialTensor)]
        if any(image.image_size != images[0].image_size for image in images) or any(
            p.dim() > 1 and p.shape[-2:] != (1, 1) or p.dim() == 1 and len(p) > 1 for p in plain
        ):
            sizes = [tuple(a.shape) for a in args if isinstance(a, torch.Tensor)]
            raise NotImplementedError(f"gigapipe.spatial: {function.__name__} of images and tensors of {sizes}")
        local = [a.local if isinstance(a, SpatialTensor) else a for a in args]
        return images[0].with_local(function(*local, **kwargs))

    return ours


for _function in (
    torch.relu,
    torch.relu_,
    torch.Tensor.relu,
    torch.Tensor.relu_,
    F.relu,
    F.leaky_relu,
    F.silu,
    F.gelu,
    torch.sigmoid,
    torch.Tensor.sigmoid,
    torch.tanh,
    torch.Tensor.tanh,
    torch.add,
    torch.Tensor.add,
    torch.Tensor.add_,
    torch.Tensor.__add__,
    torch.Tensor.__radd__,
    torch.Tensor.__iadd__,
    torch.sub,
    torch.Tensor.sub,
    torch.Tensor.__sub__,
    torch.mul,
    torch.Tensor.mul,
    torch.Tensor.__mul__,
    torch.Tensor.__rmul__,
    torch.div,
    torch.Tensor.div,
    torch.Tensor.__truediv__,
):
    DECOMPOSED[_function] = _pointwise(_function)
