"""Convolution of a shard: of a large one on a CPU without a copy of it, else as in regathered.py.

A convolution is linear in its input, so the output of a shard with its halo is the output of the shard alone, padded
with zeros, plus those of the halo's strips. The shard goes through torch's own kernel with the kernel's own padding,
and each strip, a few rows or columns, adds to the few outputs that it reaches. So no padded buffer is made or kept,
the exchange goes on while the shard is computed, and both hold in the backward pass too.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from gigapipe.spatial.halo import layout, return_halos, send_halos
from gigapipe.spatial.halo_plan import Halo, plan
from gigapipe.spatial.mesh import Mesh, remembered_by_mesh
from gigapipe.spatial.operators import regathered
from gigapipe.spatial.operators.windowed import Alone, crop, images, pair, whole, windowed
from gigapipe.spatial.refusals import once_differentiable
from gigapipe.spatial.tensor import SpatialTensor, cropped, decomposes
from gigapipe.spatial.tile import Tile
from gigapipe.spatial.torch_internals import fused_convolution, fuses, has_memory_to_itself
from gigapipe.spatial.window import Interval, Rectangle, Transposed, Window, output_size, split

convolution_backward = torch.ops.aten.convolution_backward
threshold_backward = torch.ops.aten.threshold_backward

LARGE = 2**27  # elements; see _gradients


@dataclass(frozen=True)
class _Geometry:
    """What this rank computes of a convolution, and from what."""

    windows: tuple[Window, Window]
    halo: Halo
    out: Rectangle
    alone: Alone | None  # None where nothing of the shard is looked at

    def reached(self, part: Rectangle) -> Rectangle:
        """Those of this rank's outputs that `part` of the input reaches."""
        return Rectangle(*(w.sees(p, o) for w, p, o in zip(self.windows, part, self.out, strict=True)))

    def margins(self, part: Rectangle) -> list[int]:
        """F.pad's argument that makes `part` what those outputs look at; cuts off, below zero, what they do not."""
        needed = [w.needs(o) for w, o in zip(self.windows, self.reached(part), strict=True)]
        before_after = [(p.start - n.start, n.stop - p.stop) for p, n in zip(part, needed, strict=True)]
        return [margin for axis in reversed(before_after) for margin in axis]


@remembered_by_mesh
def _geometry(mesh: Mesh, size: tuple[int, int], windows: tuple[Window, Window]) -> _Geometry:
    halo = plan(mesh, size, windows)
    out = mesh.rectangle(output_size(windows, size))
    alone = None
    if not out.empty and not halo.owned.intersect(halo.needed).empty:
        alone = Alone.of(windows, halo.owned, halo.needed, out)
    return _Geometry(windows, halo, out, alone)


def _wrong_in_16_bits(x, weight, stride, padding, dilation) -> bool:
    """Whether torch 2.13's CPU kernel (oneDNN, AMX) computes this wrongly in bfloat16, by 70 % and more.

    It does with a stride and an output that is one column wide, and with 1 × 1 kernels with stride and padding.
    """
    if x.dtype not in (torch.bfloat16, torch.float16) or x.device.type != "cpu" or max(pair(stride)) == 1:
        return False
    window = Window(weight.shape[3], pair(stride)[1], (pair(padding)[1],) * 2, pair(dilation)[1])
    return window.output_size(x.shape[3]) == 1 or (weight[0, 0].numel() == 1 and any(pair(padding)))


def _kernel(x, weight, bias, stride, padding, dilation, groups) -> torch.Tensor:
    """torch.conv2d of what one rank holds, which may be narrower than any image; in float32 what else were wrong."""
    if _wrong_in_16_bits(x, weight, stride, padding, dilation):
        single = x.float(), weight.float(), None if bias is None else bias.float()
        with torch.autocast("cpu", enabled=False):
            return torch.conv2d(*single, stride, padding, dilation, groups).to(x.dtype)
    return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _gradients(grad, x, weight, stride, padding, dilation, groups, mask) -> tuple[torch.Tensor | None, ...]:
    """Those of `mask` among the gradients of input, weight and bias, of a convolution that pads both ends alike.

    For a strided kernel whose output has 2²⁷ elements or more, torch 2.13 (oneDNN) has no fast weight gradient in
    channels_last, and takes minutes where it took a second: 3072² pixels into ResNet's first 64 channels are enough.
    So that no call is as large, it is summed over bands of rows.
    """

    def kernel(grad, x, padding, mask):
        return convolution_backward(
            grad, x, weight, [len(weight)], stride, padding, dilation, False, [0, 0], groups, list(mask)
        )

    bands = grad.numel() // LARGE + 1
    slow = mask[1] and max(stride) > 1 and x.device.type == "cpu" and layout(grad) == torch.channels_last
    if bands == 1 or not slow:
        return kernel(grad, x, padding, mask)
    grad_x, _, grad_bias = kernel(grad, x, padding, (mask[0], False, mask[2])) if mask[0] or mask[2] else (None,) * 3
    grad_weight = torch.zeros_like(weight)
    rows = Interval(0, x.shape[2])
    window = Window(weight.shape[2], stride[0], (padding[0],) * 2, dilation[0])
    for band in (split(grad.shape[2], bands, i) for i in range(bands)):
        needed = window.needs(band)
        held = needed.intersect(rows)
        part = F.pad(x[:, :, held.within(rows)], (0, 0, held.start - needed.start, needed.stop - held.stop))
        grad_weight += kernel(grad[:, :, slice(*band)], part, [0, padding[1]], (False, True, False))[1]
    return grad_x, grad_weight, grad_bias


class _Kernel(NamedTuple):
    """A convolution, without padding where it is of a shard or tile; its weight and bias are its parameters."""

    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    fill: float = 0.0
    padding: tuple[int, int] = (0, 0)

    def __call__(self, x, weight, bias):
        return _kernel(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def followed(self, x, weight, bias, added: torch.Tensor | None, relu: bool) -> torch.Tensor:
        """The same with what is `added`, and with `relu` its ReLU; on a CPU in one pass over memory."""
        options = list(self.stride), list(self.padding), list(self.dilation), self.groups
        # In another memory format nothing is gained, and torch 2.13 fails in bfloat16.
        if fuses(x) and (relu if added is None else layout(x) == torch.channels_last):
            return fused_convolution(x, weight, bias, added, relu, *options)
        y = torch.conv2d(x, weight, bias, *options)
        if added is not None:
            y += added
        return y.relu_() if relu else y

    def room(self, x, weight) -> torch.Tensor:
        """A tensor for the result."""
        axes = zip(weight.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        windows = (Window(k, s, (p, p), d) for k, s, p, d in axes)
        size = [window.output_size(n) for window, n in zip(windows, x.shape[2:], strict=True)]
        return torch.empty(len(x), len(weight), *size, dtype=x.dtype, device=x.device)

    def gradients(self, grad, mask, x, weight, bias):
        options = list(self.stride), list(self.padding), list(self.dilation), self.groups
        return _gradients(grad, x, weight, *options, mask)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local, weight, bias, mesh: Mesh, geometry: _Geometry, groups: int):
        ctx.mesh, ctx.geometry, ctx.has_bias = mesh, geometry, bias is not None
        stride, dilation = [w.stride for w in geometry.windows], [w.dilation for w in geometry.windows]
        ctx.kernel = stride, dilation, groups
        arrive = send_halos(local, geometry.halo, mesh)
        if alone := geometry.alone:
            y = _kernel(local[alone.kept], weight, bias, stride, alone.padding, dilation, groups)
            ctx.computed = y.shape
            if y.shape[-2:] != geometry.out.shape:
                y = y[alone.outputs].contiguous()  # or the view would keep the whole
        else:
            y = local.new_zeros(len(local), len(weight), *geometry.out.shape)
            y += 0 if bias is None else bias.view(-1, 1, 1)
        strips = arrive()
        for strip, source in zip(strips, geometry.halo.received, strict=True):
            reached = geometry.reached(source)
            if not reached.empty:
                padded = F.pad(strip, geometry.margins(source))
                y[(..., *reached.within(geometry.out))] += _kernel(padded, weight, None, stride, 0, dilation, groups)
        ctx.save_for_backward(local, weight, *strips)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        local, weight, *strips = ctx.saved_tensors
        geometry, (for_local, for_weight, for_bias) = ctx.geometry, ctx.needs_input_grad[:3]
        stride, dilation, groups = ctx.kernel
        grad_weights, strip_grads = [], []
        for strip, source in zip(strips, geometry.halo.received, strict=True):
            reached = geometry.reached(source)
            if reached.empty:
                strip_grads.append(torch.zeros_like(strip))
                continue
            margins = geometry.margins(source)
            part = grad[(..., *reached.within(geometry.out))]
            padded, mask = F.pad(strip, margins), (for_local, for_weight, False)
            grad_padded, grad_weight, _ = _gradients(part, padded, weight, stride, [0, 0], dilation, groups, mask)
            if grad_weight is not None:
                grad_weights.append(grad_weight)
            if grad_padded is not None:
                strip_grads.append(F.pad(grad_padded, [-margin for margin in margins]))
        if for_local:
            add_returned_to = return_halos(strip_grads, geometry.halo, ctx.mesh, like=local)
        if alone := geometry.alone:
            part, computed = local[alone.kept], grad
            if grad.shape != ctx.computed:
                computed = grad.new_zeros(ctx.computed)
                computed[alone.outputs] = grad
            mask = for_local, for_weight, for_bias
            grad_local, grad_weight, grad_bias = _gradients(
                computed, part, weight, stride, alone.padding, dilation, groups, mask
            )
            if grad_weight is not None:
                grad_weights.append(grad_weight)
            if grad_local is not None and part.shape != local.shape:
                grad_part, grad_local = grad_local, torch.zeros_like(local)
                grad_local[alone.kept] = grad_part
        else:
            grad_local = torch.zeros_like(local) if for_local else None
            grad_bias = grad.sum((0, 2, 3)) if for_bias else None
        if for_local and grad_local is not None:
            grad_local = add_returned_to(grad_local)
        grad_weight = None
        if for_weight:
            # The shard's own comes last, and is by far the largest: add the strips' to it.
            grad_weight = grad_weights.pop() if grad_weights else torch.zeros_like(weight)
            for part in grad_weights:
                grad_weight += part
        return grad_local, grad_weight, grad_bias, None, None, None


def _refuse(x, weight, channels: int, stride, padding, dilation, groups: int) -> None:
    """Raise RuntimeError for what torch refuses; a rank without pixels would not notice."""
    if isinstance(padding, str):
        padding = 0
    if min(*pair(stride), *pair(dilation), groups) < 1 or min(pair(padding)) < 0:
        raise RuntimeError(f"convolution: stride {stride}, padding {padding}, dilation {dilation}, groups {groups}")
    if x.shape[1] != channels or len(weight) % groups:
        raise RuntimeError(
            f"convolution of {x.shape[1]} channels by a weight of {tuple(weight.shape)} in {groups} groups"
        )


def _mixed(x: SpatialTensor, *parameters):
    """Shard and parameters in autocast's precision, where it is on: halos then travel in it, too."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return x.local, *parameters
    dtype = torch.get_autocast_dtype(kind)
    lower = (t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in (x.local, *parameters))
    return tuple(lower)  # float64 stays as it is, as torch has it


def _windows(weight, stride, padding, dilation) -> tuple[Window, Window]:
    if padding == "same":
        if max(pair(stride)) > 1:
            raise ValueError("padding='same' is not for strided convolutions")  # as torch has it
        pads = [(d * (k - 1) // 2, -(-d * (k - 1) // 2)) for k, d in zip(weight.shape[2:], pair(dilation), strict=True)]
    else:
        pads = [(p, p) for p in pair(0 if padding == "valid" else padding)]
    rows, columns = (
        Window(k, s, p, d) for k, s, p, d in zip(weight.shape[2:], pair(stride), pads, pair(dilation), strict=True)
    )
    return rows, columns


@decomposes(torch.conv2d)
def conv2d(x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    images(x, "conv2d")
    _refuse(x, weight, weight.shape[1] * groups, stride, padding, dilation, groups)
    axes = _windows(weight, stride, padding, dilation)
    size = output_size(axes, x.image_size)
    if x.mesh.image_ranks == 1 and x.shape[0] * len(weight) * math.prod(size) < LARGE:
        return SpatialTensor(torch.conv2d(x.local, weight, bias, stride, padding, dilation, groups), size, x.mesh)
    local, weight, bias = _mixed(x, weight, bias)
    if isinstance(x.mesh, Tile):  # it has its halo
        return windowed(
            x.with_local(local),
            axes,
            lambda shard, needed, out: _kernel(shard, weight, bias, stride, 0, dilation, groups),
            len(weight),
            parameters=[weight] if bias is None else [weight, bias],
        )
    with torch.autocast(x.device.type, enabled=False):
        # Deep in a network there is more of the weights than of the shard: one gradient of them costs less than
        # one for the shard and one for each strip, and a padded copy of the shard is small.
        if weight.numel() > local.numel() or x.device.type not in regathered.WITHOUT_COPY:
            kernel = _Kernel(pair(stride), pair(dilation), groups)
            shape = len(local), len(weight), *x.mesh.rectangle(size).shape
            halo = plan(x.mesh, x.image_size, axes)
            y = regathered.Regathered.apply(local, x.mesh, halo, kernel, shape, weight, bias)
        else:
            y = _Convolution.apply(local, weight, bias, x.mesh, _geometry(x.mesh, x.image_size, axes), groups)
    return SpatialTensor(y, size, x.mesh)


class _Convolved(torch.autograd.Function):
    """A convolution; what is `added` to it, and with `relu` the ReLU of that."""

    @staticmethod
    def forward(ctx, x, weight, bias, added, relu: bool, kernel: _Kernel, valued: bool):
        y = kernel.followed(x, weight, bias, added, relu) if valued or relu else kernel.room(x, weight)
        ctx.kernel, ctx.relu = kernel, relu
        ctx.save_for_backward(x, weight, y if relu else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, y = ctx.saved_tensors
        if ctx.relu:
            into = {"grad_input": grad} if has_memory_to_itself(grad) else {}
            grad = threshold_backward(grad, y, 0, **into)
        mask = ctx.needs_input_grad[:3]
        found = ctx.kernel.gradients(grad, mask, x, weight, None) if any(mask) else (None,) * 3
        return *found, grad if ctx.needs_input_grad[3] else None, None, None, None


def convolved(
    x: SpatialTensor,
    weight,
    bias,
    added: SpatialTensor | None,
    relu: bool,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    valued: bool = True,
    before_relu: bool = False,
) -> SpatialTensor:
    """conv2d of a tile, what is `added` to it, of the same image size and dtype, and with `relu` the ReLU of that.

    If it is not `valued`, only gradients of it are asked for: what they do not need is not computed. `before_relu`
    leaves the ReLU to the caller.
    """
    relu = relu and not before_relu
    axes = _windows(weight, stride, padding, dilation)
    local, weight, bias = _mixed(x, weight, bias)
    x, kernel = x.with_local(local), _Kernel(pair(stride), pair(dilation), groups)

    def of_tile(shard: torch.Tensor, out: Rectangle, kernel: _Kernel) -> torch.Tensor:
        other = None if added is None else cropped(added, out).local
        if not _wrong_in_16_bits(shard, weight, stride, kernel.padding, dilation):
            return _Convolved.apply(shard, weight, bias, other, relu, kernel, valued)
        y = kernel(shard, weight, bias)
        y = y if other is None else y + other
        return y.relu() if relu else y

    size = output_size(axes, x.image_size)
    padded = whole(x, size) and kernel._replace(padding=(axes[0].padding[0], axes[1].padding[0]))
    if padded and all(window.padding[0] == window.padding[1] for window in axes):  # torch's kernel needs no copy
        return SpatialTensor(of_tile(x.local, x.mesh.rectangle(size), padded), size, x.mesh)
    parameters = [weight] if bias is None else [weight, bias]
    return windowed(x, axes, lambda shard, needed, out: of_tile(shard, out, kernel), len(weight), parameters=parameters)


@decomposes(torch.conv_transpose2d)
def conv_transpose2d(x, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    images(x, "conv_transpose2d")
    _refuse(x, weight, weight.shape[0], stride, padding, dilation, groups)
    for more, s, d in zip(pair(output_padding), pair(stride), pair(dilation), strict=True):
        if not 0 <= more < max(s, d):
            raise RuntimeError(f"output_padding {more} must be smaller than stride {s} or dilation {d}")
    rows, columns = (
        Transposed(k, s, p, d, o)
        for k, s, p, d, o in zip(
            weight.shape[2:], pair(stride), pair(padding), pair(dilation), pair(output_padding), strict=True
        )
    )
    axes = rows, columns

    def operate(shard, needed, out):
        y = torch.conv_transpose2d(shard, weight, bias, stride, 0, 0, groups, dilation)
        starts = [axis.begins(n.start) for axis, n in zip(axes, needed, strict=True)]
        computed = Rectangle(*(Interval(b, b + n) for b, n in zip(starts, y.shape[2:], strict=True)))
        return crop(y, out, computed)

    return windowed(
        x.with_local(_mixed(x)[0]),
        axes,
        operate,
        weight.shape[1] * groups,
        parameters=[weight] if bias is None else [weight, bias],
    )
