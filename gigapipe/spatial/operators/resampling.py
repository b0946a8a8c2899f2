"""Operations that change an image's size pixel by pixel: padding, cropping, interpolation, pixel shuffling."""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from gigapipe.spatial.halo import gather_halo, layout
from gigapipe.spatial.operators.windowed import crop, images, pair, scaled, windowed
from gigapipe.spatial.refusals import once_differentiable
from gigapipe.spatial.tensor import NotDecomposed, SpatialTensor, decomposes
from gigapipe.spatial.torch_internals import memory_of, without_modes
from gigapipe.spatial.window import (
    Access,
    Flipped,
    Interpolation,
    Padded,
    Rectangle,
    Rolled,
    Shuffled,
    Window,
    output_size,
)


def _moved(x: SpatialTensor, accesses: Iterable[Access], fill: float = 0.0) -> SpatialTensor:
    """An image each of whose pixels is a pixel of `x`, or `fill`."""
    rows, columns = accesses
    size = output_size((rows, columns), x.image_size)
    local = gather_halo(x.local.movedim(x.axes, (-2, -1)), x.rectangle, x.mesh, x.image_size, (rows, columns), fill)
    steps = [access.stride if isinstance(access, Window) else 1 for access in (rows, columns)]
    local = local[..., :: steps[0], :: steps[1]] if max(steps) > 1 else local
    local = local.reshape(*local.shape[:-2], *x.mesh.rectangle(size).shape)  # of nothing, too, the right shape
    return SpatialTensor(local.movedim((-2, -1), x.axes), size, x.mesh, x.axes)


def part_of_image(x: SpatialTensor, rows: tuple[int, int, int], columns: tuple[int, int, int]) -> SpatialTensor:
    """Rows and columns from (start) to before (stop), each or every `step`th, as an image of their own."""
    cuts = zip((rows, columns), x.image_size, strict=True)
    return _moved(x, [Window(1, step, (-start, stop - n)) for (start, stop, step), n in cuts])


def rolled(x: SpatialTensor, shifts: Sequence[int]) -> SpatialTensor:
    """Rows and columns moved on, those past the end to the beginning."""
    shifts = [shift % n if n else 0 for shift, n in zip(shifts, x.image_size, strict=True)]
    return _moved(x, [Rolled(shift) if shift else Window(1) for shift in shifts]) if any(shifts) else x


def flipped(x: SpatialTensor, axes: Sequence[bool]) -> SpatialTensor:
    """Rows, columns or both in reverse."""
    if not any(axes):
        return x
    return _moved(x, [Flipped(n) if turned else Window(1) for n, turned in zip(x.image_size, axes, strict=True)])


def padded(x: SpatialTensor, margins: Sequence[tuple[int, int]], mode="constant", value=None) -> SpatialTensor:
    """As F.pad, with so many rows and columns before and after."""
    if mode not in ("constant", "reflect", "replicate", "circular"):
        raise NotImplementedError(f"unrecognised padding mode {mode}")  # as torch does
    if mode != "constant" and min(map(min, margins)) < 0:
        raise NotDecomposed(f"{mode} padding by a negative number", "crop by slicing")
    if mode == "constant":
        found = _moved(x, [Window(1, padding=margin) for margin in margins], value or 0.0)
        if memory_of(found.local) == memory_of(x.local):  # torch's is a copy always
            found = found.with_local(found.local.clone())
        return found
    return _moved(x, [Padded(mode, margin) if any(margin) else Window(1) for margin in margins])


@decomposes(F.pixel_shuffle, torch.pixel_shuffle)
def pixel_shuffle(x, upscale_factor):
    r = upscale_factor
    if r < 1 or x.shape[1] % r**2:
        raise RuntimeError(f"pixel_shuffle by {r} of {x.shape[1]} channels")  # as torch does
    return windowed(
        images(x, "pixel_shuffle"),
        (Shuffled(r), Shuffled(r)),
        lambda shard, needed, out: crop(F.pixel_shuffle(shard, r), out, scaled(needed, (r, r))),
        x.shape[1] // r**2,
    )


@decomposes(F.pixel_unshuffle, torch.pixel_unshuffle)
def pixel_unshuffle(x, downscale_factor):
    r = downscale_factor
    if any(n % r for n in images(x, "pixel_unshuffle").image_size):
        raise NotDecomposed(f"pixel_unshuffle by {r} of {x.image_size}", f"pad the image to multiples of {r}")
    return windowed(
        x, (Window(r, r), Window(r, r)), lambda shard, needed, out: F.pixel_unshuffle(shard, r), x.shape[1] * r**2
    )


AXES = 32
"""Of how many axes it is remembered where each output looks, which is found out for every tile otherwise."""


class _Positions(NamedTuple):
    """Where in an axis each output looks, (outputs,): exactly, float64, and at which pixels before and after, int64."""

    exact: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    access: Interpolation


@functools.lru_cache(maxsize=AXES)
def _positions(
    n: int, size: int | None, scale: float | None, mode: str, align_corners, recompute_scale_factor, precision
) -> _Positions:
    """Of an axis of `n`: torch itself says, for it interpolates a ramp of positions."""
    with without_modes():  # numbers, even where nothing but shapes is asked for
        found = F.interpolate(
            torch.arange(n, dtype=precision).view(1, 1, n, 1),
            size=None if size is None else (size, 1),
            scale_factor=None if scale is None else (scale, 1.0),
            mode=mode,
            align_corners=align_corners,
            recompute_scale_factor=recompute_scale_factor,
        )
        exact = found.flatten().double()
        low, high = exact.floor().long(), exact.ceil().long()
        return _Positions(exact, low, high, Interpolation(tuple(low.tolist()), tuple(high.tolist())))


class _Grown(torch.autograd.Function):
    """F.interpolate by whole factors. torch's own gradient of it uses one thread for each channel, and most wait."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, factors: tuple[int, int], mode: str) -> torch.Tensor:
        ctx.factors, ctx.mode = factors, mode
        return F.interpolate(x, scale_factor=tuple(map(float, factors)), mode=mode)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        rows, columns = ctx.factors
        # Along rows first or last is the same; columns first, for they lie together and most is gone then.
        grad = _shrunk(grad.contiguous(), columns, ctx.mode)
        return _shrunk(grad.mT.contiguous(), rows, ctx.mode).mT.contiguous(memory_format=layout(grad)), None, None


def _shrunk(grad: torch.Tensor, factor: int, mode: str) -> torch.Tensor:
    """The adjoint of interpolating the last axis of (…, n) to (…, n · factor)."""
    if factor == 1:
        return grad
    grad = grad.unflatten(-1, (-1, factor))
    if mode != "bilinear":
        return grad.sum(-1)
    # Each stretch of `factor` outputs looks at the pixel that it grew from, the one before and the one after.
    place = (torch.arange(factor, dtype=torch.float64) + 0.5) / factor - 0.5
    weights = torch.stack([(-place).clamp_min(0), 1 - place.abs(), place.clamp_min(0)], 1)
    before, own, after = (grad @ weights.to(grad)).unbind(-1)
    own = own.contiguous()
    own[..., :-1] += before[..., 1:]
    own[..., 1:] += after[..., :-1]
    own[..., 0] += before[..., 0]  # past its ends an image goes on as it ends
    own[..., -1] += after[..., -1]
    return own


def _cubic(distance: torch.Tensor) -> torch.Tensor:
    """Weights by distance in pixels, with a = -0.75 (Keys, IEEE TASSP 1981, doi:10.1109/TASSP.1981.1163711)."""
    a, d = -0.75, distance.abs()
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, 0.0))


@functools.lru_cache(maxsize=AXES)
def _taps(
    n: int, size: int | None, scale: float | None, align_corners, recompute_scale_factor
) -> tuple[torch.Tensor, torch.Tensor, Interpolation]:
    """Of each output along an axis of `n` the four pixels that it is made of, and their weights; the first and last.

    They are (outputs, 4), int64 and float64.
    """
    out = int(n * scale) if size is None and scale is not None else size
    assert out is not None  # torch itself asks for one of the two
    with without_modes():  # numbers, even where nothing but shapes is asked for
        places = torch.arange(out, dtype=torch.float64)
        if align_corners:
            places = places * ((n - 1) / (out - 1) if out > 1 else 0.0)
        else:
            step = n / out if size is not None or recompute_scale_factor or scale is None else 1 / scale
            places = (places + 0.5) * step - 0.5
        points = places.floor().long()[:, None] + torch.arange(-1, 3)
        weights = _cubic(places[:, None] - points)
        points = points.clamp(0, n - 1)
        return points, weights, Interpolation(tuple(points[:, 0].tolist()), tuple(points[:, -1].tolist()))


def _bicubic(x: SpatialTensor, sizes, scales, align_corners, recompute_scale_factor) -> SpatialTensor:
    """Each output is made of four pixels along each axis; past its ends an image goes on as it ends."""
    axes = zip(x.image_size, sizes or (None, None), scales, strict=True)
    tables = [_taps(n, o, s, align_corners, recompute_scale_factor) for n, o, s in axes]

    def operate(shard: torch.Tensor, needed: Rectangle, out: Rectangle) -> torch.Tensor:
        for axis, ((points, weights, _), n, o) in enumerate(zip(tables, needed, out, strict=True)):
            mine = slice(o.start, o.stop)
            parts = [
                shard.index_select(2 + axis, (t - n.start).to(x.device)) * w.to(shard).view(-1, *[1] * (1 - axis))
                for t, w in zip(points[mine].T, weights[mine].T, strict=True)
            ]
            shard = sum(parts[1:], parts[0])
        return shard

    rows, columns = (access for _, _, access in tables)
    return windowed(x, (rows, columns), operate, x.shape[1])


@decomposes(F.interpolate, F.upsample)
def interpolate(
    x,
    size=None,
    scale_factor=None,
    mode="nearest",
    align_corners=None,
    recompute_scale_factor=None,
    antialias=False,
):
    images(x, "interpolate")
    if mode not in ("nearest", "nearest-exact", "bilinear", "bicubic") or antialias:
        raise NotDecomposed(
            f"interpolate by {mode}{' with antialias' * bool(antialias)}",
            "use nearest, nearest-exact, bilinear or bicubic",
        )
    sizes = None if size is None else pair(size)
    scales = scale_factor if isinstance(scale_factor, tuple | list) else (scale_factor, scale_factor)
    if mode == "bicubic":
        return _bicubic(x, sizes, scales, align_corners, recompute_scale_factor)
    precision = torch.float64 if mode == "bilinear" or x.dtype == torch.float64 else torch.float32
    positions = [
        _positions(n, o, None if s is None else float(s), mode, align_corners, recompute_scale_factor, precision)
        for n, o, s in zip(x.image_size, sizes or (None, None), scales, strict=True)
    ]
    lows = [p.low for p in positions]
    highs = [p.high for p in positions]
    rows, columns = (p.access for p in positions)
    factors = len(lows[0]) // x.image_size[0], len(lows[1]) // x.image_size[1]

    by_factors = (
        not align_corners
        and all(f * n == len(low) for f, n, low in zip(factors, x.image_size, lows, strict=True))
        and (scale_factor is None or recompute_scale_factor or tuple(map(float, scales)) == factors)
    )

    def operate(shard: torch.Tensor, needed: Rectangle, out: Rectangle) -> torch.Tensor:
        if by_factors:
            # By whole factors a stretch of the image is interpolated as the image is: torch's own kernel, then a crop.
            grown = _Grown.apply(shard, factors, mode)
            return crop(grown, out, scaled(needed, factors))
        for axis, (low, high, position, n, o) in enumerate(zip(lows, highs, positions, needed, out, strict=True)):
            mine = slice(o.start, o.stop)
            lower = shard.index_select(2 + axis, (low[mine] - n.start).to(x.device))
            if mode == "bilinear":
                weight = (position.exact - low)[mine].to(shard).view(-1, *[1] * (1 - axis))
                shard = lower + weight * (shard.index_select(2 + axis, (high[mine] - n.start).to(x.device)) - lower)
            else:
                shard = lower
        return shard

    return windowed(x, (rows, columns), operate, x.shape[1])
