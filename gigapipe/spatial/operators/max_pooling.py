"""Max pooling of a shard: on a CPU without a copy of it, else as in regathered.py.

The shard goes through torch's own kernel with the kernel's own padding, while the halo travels. Then the bands of the
output whose windows reach into the halo, a row or a column mostly, are pooled again, each from a small buffer.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from gigapipe.spatial.halo import layout, return_halos, send_halos
from gigapipe.spatial.halo_plan import Halo, plan
from gigapipe.spatial.mesh import Mesh, remembered_by_mesh
from gigapipe.spatial.operators import regathered
from gigapipe.spatial.operators.windowed import Alone, images, pair, pooling_windows, whole, windowed
from gigapipe.spatial.refusals import once_differentiable
from gigapipe.spatial.tensor import SpatialTensor, decomposes
from gigapipe.spatial.tile import Tile
from gigapipe.spatial.window import Interval, Rectangle, Window, output_size

max_pool_with_indices = torch.ops.aten.max_pool2d_with_indices
max_pool_backward = torch.ops.aten.max_pool2d_with_indices_backward


@dataclass(frozen=True)
class _Band:
    """Outputs that are pooled from a buffer, filled from shard and halo; minus infinity outside of the image."""

    outputs: tuple  # where they are in this rank's output
    shape: tuple[int, int]  # of the buffer
    parts: tuple[
        tuple[int, tuple, tuple], ...
    ]  # source (0 the shard, then each strip of halo), where there, where here

    @classmethod
    def of(cls, band: Rectangle, out: Rectangle, windows: tuple[Window, Window], halo: Halo) -> "_Band":
        needed = Rectangle(*(w.needs(o) for w, o in zip(windows, band, strict=True)))
        sources = [halo.owned, *halo.received]
        parts = [(i, source, source.intersect(needed)) for i, source in enumerate(sources)]
        return cls(
            (..., *band.within(out)),
            needed.shape,
            tuple(
                (i, (..., *part.within(source)), (..., *part.within(needed)))
                for i, source, part in parts
                if not part.empty
            ),
        )

    def buffer(self, sources: list[torch.Tensor]) -> torch.Tensor:
        buffer = sources[0].new_full((*sources[0].shape[:2], *self.shape), float("-inf"))
        for source, there, here in self.parts:
            buffer[here] = sources[source][there]
        return buffer


@dataclass(frozen=True)
class _Geometry:
    """What this rank computes of a max pooling, and from what."""

    windows: tuple[Window, Window]
    halo: Halo
    out: Rectangle
    alone: Alone | None  # None where torch's kernel cannot compute the shard alone
    bands: tuple[_Band, ...]


@remembered_by_mesh
def _geometry(mesh: Mesh, size: tuple[int, int], windows: tuple[Window, Window]) -> _Geometry:
    halo = plan(mesh, size, windows)
    out = mesh.rectangle(output_size(windows, size))
    alone, right = None, Rectangle(Interval(out.rows.start, out.rows.start), out.columns)
    if not out.empty and not halo.owned.intersect(halo.needed).empty:
        shard = Alone.of(windows, halo.owned, halo.needed, out)
        if all(2 * p <= w.kernel for p, w in zip(shard.padding, windows, strict=True)):  # torch pads by no more
            alone = shard
            right = Rectangle(*(_seeing_only(*axis) for axis in zip(windows, halo.owned, size, out, strict=True)))
    bands = (
        Rectangle(Interval(out.rows.start, right.rows.start), out.columns),
        Rectangle(Interval(right.rows.stop, out.rows.stop), out.columns),
        Rectangle(right.rows, Interval(out.columns.start, right.columns.start)),
        Rectangle(right.rows, Interval(right.columns.stop, out.columns.stop)),
    )
    return _Geometry(
        windows, halo, out, alone, tuple(_Band.of(band, out, windows, halo) for band in bands if not band.empty)
    )


def _seeing_only(window: Window, owned: Interval, size: int, out: Interval) -> Interval:
    """Those of the outputs `out` whose windows see nothing of an axis of `size` but `owned`."""
    start, stop = out
    if owned.start > 0:
        start = min(stop, max(start, window.sees(Interval(0, owned.start), out).stop))
    if owned.stop < size:
        stop = max(start, min(stop, window.sees(Interval(owned.stop, size), out).start))
    return Interval(start, stop)


class _Kernel(NamedTuple):
    """A max pooling, without padding where it is of a shard or tile, which finds the maxima again in the backward
    pass; see `_MaxPool`."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    fill: float = float("-inf")
    padding: tuple[int, int] = (0, 0)

    def __call__(self, x):
        return F.max_pool2d(x, self.kernel, self.stride, self.padding, self.dilation)

    def gradients(self, grad, mask, x):
        arguments = self.kernel, self.stride, self.padding, self.dilation, False
        return (max_pool_backward(grad, x, *arguments, max_pool_with_indices(x, *arguments)[1]),)


class _MaxPool(torch.autograd.Function):
    """Where the maxima were is not kept but found again in the backward pass.

    torch keeps 8 bytes for each output, and the input beside them. The input alone costs nothing where the operator
    before keeps it, as ReLU does.
    """

    @staticmethod
    def forward(ctx, local, mesh: Mesh, geometry: _Geometry):
        ctx.mesh, ctx.geometry = mesh, geometry
        kernel, stride, dilation = zip(*((w.kernel, w.stride, w.dilation) for w in geometry.windows), strict=True)
        ctx.arguments = kernel, stride, dilation
        arrive = send_halos(local, geometry.halo, mesh)
        if alone := geometry.alone:
            y = F.max_pool2d(local[alone.kept], kernel, stride, alone.padding, dilation)
            ctx.computed = y.shape
            if y.shape[-2:] != geometry.out.shape:
                y = y[alone.outputs].contiguous()  # or the view would keep the whole
        else:
            shape = *local.shape[:2], *geometry.out.shape
            y = torch.empty(shape, dtype=local.dtype, device=local.device, memory_format=layout(local))
        strips = arrive()
        for band in geometry.bands:
            y[band.outputs] = F.max_pool2d(band.buffer([local, *strips]), kernel, stride, 0, dilation)
        ctx.save_for_backward(local, *strips)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (local, *strips), geometry = ctx.saved_tensors, ctx.geometry

        def input_gradient(grad, x, padding):
            kernel, stride, dilation = ctx.arguments
            arguments = kernel, stride, padding, dilation, False
            return max_pool_backward(grad, x, *arguments, max_pool_with_indices(x, *arguments)[1])

        grad_strips, for_local = [torch.zeros_like(strip) for strip in strips], []
        for band in geometry.bands:
            grad_buffer = input_gradient(grad[band.outputs], band.buffer([local, *strips]), [0, 0])
            for source, there, here in band.parts:
                if source == 0:
                    for_local.append((there, grad_buffer[here]))
                else:
                    grad_strips[source - 1][there] += grad_buffer[here]
        add_returned_to = return_halos(grad_strips, geometry.halo, ctx.mesh, like=local)
        if alone := geometry.alone:
            computed = grad.new_zeros(ctx.computed) if grad.shape != ctx.computed else grad.clone()
            if grad.shape != ctx.computed:
                computed[alone.outputs] = grad
            for band in geometry.bands:
                computed[alone.outputs][band.outputs] = 0
            part = local[alone.kept]
            grad_local = input_gradient(computed, part, alone.padding)
            if part.shape != local.shape:
                grad_part, grad_local = grad_local, torch.zeros_like(local)
                grad_local[alone.kept] = grad_part
        else:
            grad_local = torch.zeros_like(local)
        for there, part in for_local:
            grad_local[there] += part
        return add_returned_to(grad_local), None, None


class _OfTile(torch.autograd.Function):
    """A max pooling of a tile, which finds the maxima again in the backward pass; see `_MaxPool`."""

    @staticmethod
    def forward(ctx, x, kernel: _Kernel):
        ctx.kernel = kernel
        ctx.save_for_backward(x)
        return kernel(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return *ctx.kernel.gradients(grad, (True,), *ctx.saved_tensors), None


@decomposes(torch.max_pool2d, F.max_pool2d)
def max_pool2d(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    images(x, "max_pool2d")
    stride = kernel_size if stride is None or stride == [] else stride
    windows = pooling_windows(kernel_size, stride, padding, dilation, ceil_mode)
    if x.mesh.image_ranks == 1:
        local = F.max_pool2d(x.local, kernel_size, stride, padding, dilation, ceil_mode)
        return SpatialTensor(local, output_size(windows, x.image_size), x.mesh)
    if isinstance(x.mesh, Tile):
        kernel, size = _Kernel(pair(kernel_size), pair(stride), pair(dilation)), output_size(windows, x.image_size)
        if x.mesh.out and whole(x, size) and not ceil_mode:  # torch's kernel needs no copy
            return SpatialTensor(_OfTile.apply(x.local, kernel._replace(padding=pair(padding))), size, x.mesh)
        return windowed(x, windows, lambda tile, needed, out: _OfTile.apply(tile, kernel), x.shape[1], kernel.fill)
    size = output_size(windows, x.image_size)
    if x.device.type in regathered.WITHOUT_COPY:
        local = _MaxPool.apply(x.local, x.mesh, _geometry(x.mesh, x.image_size, windows))
    else:
        kernel = _Kernel(pair(kernel_size), pair(stride), pair(dilation))
        shape = *x.shape[:2], *x.mesh.rectangle(size).shape
        local = regathered.Regathered.apply(x.local, x.mesh, plan(x.mesh, x.image_size, windows), kernel, shape)
    return SpatialTensor(local, size, x.mesh)
