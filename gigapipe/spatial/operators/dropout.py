"""Dropout, and random images, that are functions of the pixel's place in the batch: every mesh draws the same.

torch's generator cannot be cut over ranks. Here one number is drawn from it, on rank 0, for each call; a hash of that
number and of the global (batch, channel, row, column) decides. Ranks therefore neither repeat each other's mask nor
disagree where they must share one.
"""

import math

import torch
import torch.nn.functional as F

from gigapipe.spatial.tensor import NotDecomposed, SpatialTensor, decomposes
from gigapipe.spatial.wide import has_float64

# splitmix64 (Steele, Lea and Flood, OOPSLA 2014, doi:10.1145/2660193.2660195), in two's complement.
_STEP, _MIX1, _MIX2 = -7046029254386353131, -4658895280553007687, -7723592293110705685


def _random_bits(x: SpatialTensor, channels: bool = False) -> torch.Tensor:
    """53 random bits, int64, for each entry of the shard; the same for all pixels of one of the `channels` if asked."""
    seed = x.mesh.draw().to(x.device)
    places = {axis: owned for axis, owned in zip(x.axes, x.rectangle, strict=True)}
    key = torch.zeros((), dtype=torch.int64, device=x.device)
    for axis, size in enumerate(x.shape):
        if axis in places and channels:
            continue
        owned = places.get(axis)
        index = torch.arange(*owned) if owned else torch.arange(size) + (x.mesh.data_index * size if axis == 0 else 0)
        # Horner's scheme over the dimensions: the flat index of the global batch.
        key = key * size + index.to(x.device).view(-1, *[1] * (x.dim() - 1 - axis))
    z = (key + 1) * _STEP + seed
    for shift, factor in ((30, _MIX1), (27, _MIX2)):
        z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))).mul_(factor)
    z ^= (z >> 31) & ((1 << 33) - 1)
    return z >> 11 & (1 << 53) - 1


def _uniform(x: SpatialTensor, between: float = 0.0) -> torch.Tensor:
    """A number from 0 to 1, and never 1, for each entry of the shard; `between` 0.5: never 0 either.

    In float64; of a device that has none in float32, by the first of the bits.
    """
    bits = _random_bits(x)
    if has_float64(x.device):
        return bits.double().add_(between).div_(2**53)
    return (bits >> 30).float().add_(between).div_(2**23)


def _kept(x: SpatialTensor, p: float, channels: bool) -> torch.Tensor:
    """Which entries of the shard are kept, each with probability 1 - p; whole `channels` at once if asked."""
    return _random_bits(x, channels) >= math.ceil(p * 2**53)


def _dropped(x: SpatialTensor, p: float, training: bool, channels: bool, inplace: bool, alpha: bool = False):
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")  # as torch does
    if not training or p == 0:
        return x
    if p == 1:
        local = x.local * 0
    elif alpha:
        # To SELU's lower limit, keeping mean and variance (Klambauer et al., NeurIPS 2017, arXiv:1706.02515).
        limit = -1.7580993408473766
        scale = ((1 - p) * (1 + p * limit**2)) ** -0.5
        local = torch.where(_kept(x, p, channels), x.local, limit) * scale - scale * limit * p
    else:
        local = x.local * _kept(x, p, channels) / (1 - p)
    if inplace:
        x.refuse_change("dropout in place")
        x.local.copy_(local)
        return x
    return x.with_local(local)


@decomposes(F.dropout)
def dropout(x, p=0.5, training=True, inplace=False):
    return _dropped(x, p, training, channels=False, inplace=inplace)


@decomposes(F.dropout2d)
def dropout2d(x, p=0.5, training=True, inplace=False):
    return _dropped(x, p, training, channels=True, inplace=inplace)


@decomposes(F.alpha_dropout)
def alpha_dropout(x, p=0.5, training=False, inplace=False):
    return _dropped(x, p, training, channels=False, inplace=inplace, alpha=True)


@decomposes(F.feature_alpha_dropout)
def feature_alpha_dropout(x, p=0.5, training=False, inplace=False):
    return _dropped(x, p, training, channels=True, inplace=inplace, alpha=True)


@decomposes(torch.rand_like)
def rand_like(x, *, dtype=None):
    return x.with_local(_uniform(x).to(dtype or x.dtype))


@decomposes(torch.randn_like)
def randn_like(x, *, dtype=None):
    return x.with_local(torch.special.ndtri(_uniform(x, between=0.5)).to(dtype or x.dtype))


@decomposes(torch.bernoulli, torch.Tensor.bernoulli)
def bernoulli(x, p=None, *, generator=None):
    if generator is not None:
        raise NotDecomposed("bernoulli with a generator", "seed torch's own by torch.manual_seed")
    chance = x.local if p is None else p
    return x.with_local((_uniform(x) < chance).to(x.dtype))
