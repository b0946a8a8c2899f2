"""The operations of kernels.py in Triton. Arithmetic is float64 where statistics are at stake, as in plain torch.

Checked in Triton's interpreter; never run on a card.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl

TOGETHER = 5
"""Copies of one launch: a shard with its four strips."""

BLOCK = 1024
FIELDS = 13
"""What a launch knows of a copy: its first block, its elements, three sizes, four strides on either side."""


@triton.jit
def _copy_one(into, part, of, block, ADD: tl.constexpr, BLOCK: tl.constexpr):
    first = tl.load(of)
    elements = tl.load(of + 1)
    i = (block - first) * BLOCK + tl.arange(0, BLOCK)
    inside = (i >= 0) & (i < elements)
    rows, columns, inner = tl.load(of + 2), tl.load(of + 3), tl.load(of + 4)
    d = i % inner
    i = i // inner
    c = i % columns
    i = i // columns
    b = i % rows
    a = i // rows
    to = a * tl.load(of + 5) + b * tl.load(of + 6) + c * tl.load(of + 7) + d * tl.load(of + 8)
    source = a * tl.load(of + 9) + b * tl.load(of + 10) + c * tl.load(of + 11) + d * tl.load(of + 12)
    value = tl.load(part + source, mask=inside)
    if ADD:
        value += tl.load(into + to, mask=inside)
    tl.store(into + to, value, mask=inside)


@triton.jit
def _copy(i0, i1, i2, i3, i4, p0, p1, p2, p3, p4, of, ADD: tl.constexpr, BLOCK: tl.constexpr, FIELDS: tl.constexpr):
    block = tl.program_id(0).to(tl.int64)
    if block < tl.load(of + FIELDS):
        _copy_one(i0, p0, of, block, ADD, BLOCK)
    elif block < tl.load(of + 2 * FIELDS):
        _copy_one(i1, p1, of + FIELDS, block, ADD, BLOCK)
    elif block < tl.load(of + 3 * FIELDS):
        _copy_one(i2, p2, of + 2 * FIELDS, block, ADD, BLOCK)
    elif block < tl.load(of + 4 * FIELDS):
        _copy_one(i3, p3, of + 3 * FIELDS, block, ADD, BLOCK)
    else:
        _copy_one(i4, p4, of + 4 * FIELDS, block, ADD, BLOCK)


def _ordered(into: torch.Tensor, part: torch.Tensor) -> tuple[tuple[int, int, int], ...]:
    """Four axes (size, stride of `into`, of `part`), those that lie together in `into` last."""
    axes = sorted(zip(into.shape, into.stride(), part.stride(), strict=True), key=lambda axis: -axis[1])
    return ((1, 0, 0),) * (4 - len(axes)) + tuple(axes)


@lru_cache(maxsize=2**12)
def _described(geometry: tuple, device: torch.device) -> tuple[torch.Tensor, int]:
    """What `_copy` reads of copies of these axes, and how many blocks they have. It stays there, for shapes recur."""
    fields, blocks = [], 0
    for axes in geometry:
        sizes, strides_into, strides_part = zip(*axes, strict=True)
        elements = sizes[0] * sizes[1] * sizes[2] * sizes[3]
        fields += [blocks, elements, *sizes[1:], *strides_into, *strides_part]
        blocks += triton.cdiv(elements, BLOCK)
    for _ in range(TOGETHER - len(geometry)):
        fields += [blocks, *[0] * (FIELDS - 1)]
    return torch.tensor(fields, dtype=torch.int64, device=device), blocks


def copy(into: list[torch.Tensor], parts: list[torch.Tensor], add: bool) -> None:
    pairs = [(i, p) for i, p in zip(into, parts, strict=True) if i.numel()]
    for start in range(0, len(pairs), TOGETHER):
        some = pairs[start : start + TOGETHER]
        for target, part in some:
            if target.shape != part.shape:
                raise ValueError(f"a part of shape {tuple(part.shape)} goes into one of {tuple(target.shape)}")
        geometry = tuple(_ordered(target, part) for target, part in some)
        described, blocks = _described(geometry, some[0][0].device)
        filled = [*some, *[some[0]] * (TOGETHER - len(some))]
        targets, sources = zip(*filled, strict=True)
        _copy[(blocks,)](*targets, *sources, described, ADD=add, BLOCK=BLOCK, FIELDS=FIELDS)


# A count of 1 must not become a constant, which has no type.
@triton.jit(do_not_specialize=["channels", "pixels", "count"])
def _moments(mean, variance, shift, sums, channels, pixels, count, COUNTED: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < channels
    offset = tl.load(mean + i, mask=inside).to(tl.float64) - tl.load(shift + i, mask=inside).to(tl.float64)
    square = tl.load(variance + i, mask=inside).to(tl.float64) + offset * offset
    weight = pixels.to(tl.float64)
    if COUNTED:
        weight = weight / count.to(tl.float64)
    tl.store(sums + i, offset * weight, mask=inside)
    tl.store(sums + channels + i, square * weight, mask=inside)
    if not COUNTED:  # noqa: SIM102
        if tl.program_id(0) == 0:
            tl.store(sums + 2 * channels, weight)


def moments(mean, variance, shift, pixels: int, count: int | None) -> torch.Tensor:
    channels = len(mean)
    sums = mean.new_empty(2 * channels + (count is None), dtype=torch.float64)
    grid = (triton.cdiv(channels, BLOCK),)
    _moments[grid](mean, variance, shift, sums, channels, pixels, count or 0, COUNTED=count is not None, BLOCK=BLOCK)
    return sums


@triton.jit(do_not_specialize=["channels", "count"])
def _statistics(
    sums, shift, running_mean, running_variance, momentum, found, channels, count,
    COUNTED: tl.constexpr, RUNNING: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < channels
    offset = tl.load(sums + i, mask=inside)
    square = tl.load(sums + channels + i, mask=inside)
    total = count.to(tl.float64)
    if not COUNTED:
        total = tl.load(sums + 2 * channels)
        offset = offset / total
        square = square / total
    mean = tl.load(shift + i, mask=inside).to(tl.float64) + offset
    variance = tl.maximum(square - offset * offset, 0.0)
    inverse = 1.0 / tl.sqrt(variance + EPS)
    kind = found.dtype.element_ty
    tl.store(found + i, mean.to(kind), mask=inside)
    tl.store(found + channels + i, variance.to(kind), mask=inside)
    tl.store(found + 2 * channels + i, inverse.to(kind), mask=inside)
    if RUNNING:
        old_mean = tl.load(running_mean + i, mask=inside).to(tl.float64)
        old_variance = tl.load(running_variance + i, mask=inside).to(tl.float64)
        share = tl.load(momentum)
        unbiased = variance * (total / (total - 1.0))
        kept = running_mean.dtype.element_ty
        tl.store(running_mean + i, (old_mean + share * (mean - old_mean)).to(kept), mask=inside)
        kept = running_variance.dtype.element_ty
        tl.store(running_variance + i, (old_variance + share * (unbiased - old_variance)).to(kept), mask=inside)


@lru_cache(maxsize=64)
def _number(value: float, device: torch.device) -> torch.Tensor:
    """In float64, which Triton's own numbers are not. Of a cumulative average it is another in each step."""
    return torch.tensor(value, dtype=torch.float64, device=device)


def statistics(sums, shift, running_mean, running_variance, count, momentum, eps, precision) -> torch.Tensor:
    channels = len(shift)
    found = sums.new_empty(3, channels, dtype=precision)
    running = running_mean is not None
    running_mean, running_variance = (running_mean, running_variance) if running else (found, found)
    _statistics[(triton.cdiv(channels, BLOCK),)](
        sums, shift, running_mean, running_variance, _number(momentum, sums.device), found, channels,
        count or 0, COUNTED=count is not None, RUNNING=running, EPS=eps, BLOCK=BLOCK,
    )  # fmt: skip
    return found


@triton.jit(do_not_specialize=["channels", "count"])
def _of_sums(
    sums, own, inverse, total, found, channels, count,
    COUNTED: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < channels
    sum_grad = tl.load(sums + i, mask=inside)
    sum_product = tl.load(sums + channels + i, mask=inside)
    pixels = count.to(tl.float64)
    if not COUNTED:
        pixels = tl.load(total)
    kind = found.dtype.element_ty
    tl.store(found + i, (sum_grad / pixels).to(kind), mask=inside)
    tl.store(found + channels + i, (sum_product / pixels).to(kind), mask=inside)
    if not WHOLE:
        sum_grad = tl.load(own + i, mask=inside).to(tl.float64)
        sum_product = tl.load(own + channels + i, mask=inside).to(tl.float64)
    scaled = sum_product * tl.load(inverse + i, mask=inside).to(tl.float64)
    tl.store(found + 2 * channels + i, sum_grad.to(kind), mask=inside)
    tl.store(found + 3 * channels + i, scaled.to(kind), mask=inside)


def of_sums(sums, own, inverse, total, count: int | None, whole: bool) -> torch.Tensor:
    channels = len(inverse)
    found = inverse.new_empty(4, channels)
    _of_sums[(triton.cdiv(channels, BLOCK),)](
        sums, own, inverse, sums if total is None else total, found, channels, count or 0,
        COUNTED=count is not None, WHOLE=whole, BLOCK=BLOCK,
    )  # fmt: skip
    return found
