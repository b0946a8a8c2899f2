"""Operations that change an image's size pixel by pixel: padding, cropping, interpolation, pixel shuffling."""

import functools

import torch
import torch.nn.functional as F

from gigapipe.spatial.halo import gather_halo, layout
from gigapipe.spatial.operators.windowed import crop, images, pair, scaled, windowed
from gigapipe.spatial.refusals import once_differentiable
from gigapipe.spatial.tensor import NotDecomposed, SpatialTensor, decomposes
from gigapipe.spatial.torch_internals import memory_of, without_modes
from gigapipe.spatial.window import Padded, Rectangle, Shuffled, Taps, Window


def _moved(x: SpatialTensor, accesses, fill: float = 0.0) -> SpatialTensor:
    """An image each of whose pixels is a pixel of `x`, or `fill`."""
    size = tuple(access.output_size(n) for access, n in zip(accesses, x.image_size, strict=True))
    local = gather_halo(x.local.movedim(x.axes, (-2, -1)), x.mesh, x.image_size, tuple(accesses), fill, x.rectangle)
    local = local.reshape(*local.shape[:-2], *x.mesh.rectangle(size).shape)  # of nothing, too, the right shape
    return SpatialTensor(local.movedim((-2, -1), x.axes), size, x.mesh, x.axes)


def crop_image(x: SpatialTensor, rows: tuple[int, int], columns: tuple[int, int]) -> SpatialTensor:
    """Rows and columns from (start) to before (stop), as an image of their own."""
    margins = [(-start, stop - n) for (start, stop), n in zip((rows, columns), x.image_size, strict=True)]
    return _moved(x, [Window(1, padding=margin) for margin in margins])


@decomposes(F.pad)
def pad(x, pad, mode="constant", value=None):
    pad = list(pad)
    sides = {x.dim() - 1 - i // 2: tuple(pad[i : i + 2]) for i in range(0, len(pad), 2)}
    if any(any(p) and axis not in x.axes for axis, p in sides.items()):
        raise NotDecomposed("pad along other dimensions than rows and columns", "concatenate zeros along them")
    margins = [sides.get(axis, (0, 0)) for axis in x.axes]
    if mode not in ("constant", "reflect", "replicate", "circular"):
        raise NotImplementedError(f"unrecognised padding mode {mode}")  # as torch does
    if mode != "constant" and min(map(min, margins)) < 0:
        raise NotDecomposed(f"{mode} padding by a negative number", "crop by slicing")
    if mode == "constant":
        padded = _moved(x, [Window(1, padding=margin) for margin in margins], value or 0.0)
        if memory_of(padded.local) == memory_of(x.local):  # torch's is a copy always
            padded = padded.with_local(padded.local.clone())
        return padded
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


@functools.cache
def _positions(
    n: int, size: int | None, scale: float | None, mode: str, align_corners, recompute_scale_factor, precision
) -> torch.Tensor:
    """Where in an axis of `n` each output looks: torch itself says, for it interpolates a ramp of positions."""
    with without_modes():  # numbers, even where nothing but shapes is asked for
        found = F.interpolate(
            torch.arange(n, dtype=precision).view(1, 1, n, 1),
            size=None if size is None else (size, 1),
            scale_factor=None if scale is None else (scale, 1.0),
            mode=mode,
            align_corners=align_corners,
            recompute_scale_factor=recompute_scale_factor,
        )
        return found.flatten().double()


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
    if mode not in ("nearest", "nearest-exact", "bilinear") or antialias:
        raise NotDecomposed(
            f"interpolate by {mode}{' with antialias' * bool(antialias)}", "use nearest, nearest-exact or bilinear"
        )
    sizes = None if size is None else pair(size)
    scales = scale_factor if isinstance(scale_factor, tuple | list) else (scale_factor, scale_factor)
    precision = torch.float64 if mode == "bilinear" or x.dtype == torch.float64 else torch.float32
    positions = [
        _positions(n, o, None if s is None else float(s), mode, align_corners, recompute_scale_factor, precision)
        for n, o, s in zip(x.image_size, sizes or (None, None), scales, strict=True)
    ]
    with without_modes():
        lows, highs = [p.floor().long() for p in positions], [p.ceil().long() for p in positions]
        accesses = tuple(Taps(tuple(low.tolist()), tuple(high.tolist())) for low, high in zip(lows, highs, strict=True))
    factors = [o // n for o, n in zip(map(len, lows), x.image_size, strict=True)]

    by_factors = (
        not align_corners
        and all(f * n == len(low) for f, n, low in zip(factors, x.image_size, lows, strict=True))
        and (scale_factor is None or recompute_scale_factor or [float(s) for s in scales] == factors)
    )

    def operate(shard: torch.Tensor, needed: Rectangle, out: Rectangle) -> torch.Tensor:
        if by_factors:
            # By whole factors a stretch of the image is interpolated as the image is: torch's own kernel, then a crop.
            grown = _Grown.apply(shard, tuple(factors), mode)
            return crop(grown, out, scaled(needed, factors))
        for axis, (low, high, position, n, o) in enumerate(zip(lows, highs, positions, needed, out, strict=True)):
            mine = slice(o.start, o.stop)
            lower = shard.index_select(2 + axis, (low[mine] - n.start).to(x.device))
            if mode == "bilinear":
                weight = (position - low)[mine].to(shard).view(-1, *[1] * (1 - axis))
                shard = lower + weight * (shard.index_select(2 + axis, (high[mine] - n.start).to(x.device)) - lower)
            else:
                shard = lower
        return shard

    return windowed(x, accesses, operate, x.shape[1])
