"""Networks that see patches of a canvas, one at a time: for networks that have no decomposed form.

Each patch becomes one place of a feature map, to which a pool and a linear layer are added, as to any network that
returns one: with gated attention this is multiple-instance learning (Ilse et al. 2018, arXiv:1802.04712).
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import wrap_torch_function

from gigapipe.errors import InputError
from gigapipe.spatial import Window, decomposes, windowed

AT_A_TIME = 16
"""Patches, so that images within the encoder stay small."""


class Patches(nn.Module):
    """Images (batch, 3, rows, columns) to what `encoder` makes of each patch of `side` px a side (batch, channels, …).

    The encoder takes patches (batch, 3, side, side) and returns features (batch, channels). Patches do not overlap;
    where they do not divide an image evenly, white is added around it, alike on both sides. No gradient leads into the
    encoder. Of patches that are white all over one is computed.
    """

    def __init__(self, encoder: nn.Module, side: int, channels: int):
        super().__init__()
        self.encoder, self.side, self.channels = encoder, side, channels

    def forward(self, x):
        return embedded(x, self.encoder, self.side, self.channels)


@wrap_torch_function(lambda x, encoder, side, channels: (x,))  # so that torch asks images what it means
def embedded(x: torch.Tensor, encoder: nn.Module, side: int, channels: int) -> torch.Tensor:
    """What `Patches` makes of an undivided image."""
    rows, columns = (_window(size, side).padding for size in x.shape[-2:])
    return _embed(F.pad(x, (*columns, *rows)), encoder, side, channels)


@decomposes(embedded)
def _(x, encoder, side, channels):
    rows, columns = (_window(size, side) for size in x.image_size)

    def operate(shard, needed, out):
        return _embed(shard, encoder, side, channels)

    return windowed(x, (rows, columns), operate, channels)


def _window(size: int, side: int) -> Window:
    """The patches along an axis of an image."""
    outside = -size % side
    return Window(side, side, (outside // 2, outside - outside // 2))


@torch.no_grad()
def _embed(x: torch.Tensor, encoder: nn.Module, side: int, channels: int) -> torch.Tensor:
    """An image of whole patches (batch, 3, rows · side, columns · side) to (batch, channels, rows, columns)."""
    batch, colours, height, width = x.shape
    rows, columns = height // side, width // side
    if type(x) is not torch.Tensor or x.is_meta:  # it has no pixels
        return x.new_empty(batch, channels, rows, columns)
    cut = x.reshape(batch, colours, rows, side, columns, side).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    stained = cut.flatten(1).any(1)
    # The first that is white stands for all of them.
    chosen = stained.clone()
    chosen[(~stained).nonzero()[:1]] = True
    groups = chosen.nonzero().flatten().split(AT_A_TIME)
    found = torch.cat([encoder(cut[places]).to(x.dtype) for places in groups])
    if found.shape != (int(chosen.sum()), channels):
        raise InputError(f"a patch encoder must return features (batch, {channels}); found {tuple(found.shape)}")
    all_of_them = found.new_empty(len(cut), channels)
    all_of_them[chosen] = found
    if not stained.all():
        all_of_them[~stained] = all_of_them[(~stained).nonzero()[0]]
    return all_of_them.view(batch, rows, columns, channels).movedim(3, 1).contiguous()
