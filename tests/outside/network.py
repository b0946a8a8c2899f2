"""A network, and an operation of which gigapipe knows nothing."""

import torch.nn.functional as F
from torch import nn
from torch.overrides import wrap_torch_function

from gigapipe.spatial import Window, decomposes, windowed


@wrap_torch_function(lambda x: (x,))  # so that torch asks images what it means
def median(x):
    """The median of 3 × 3 pixels, with zeros around the image."""
    return median_within(F.pad(x, (1, 1, 1, 1)))


def median_within(x):
    return x.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4).median(4).values


@decomposes(median)
def _(x):
    window = Window(kernel=3, padding=(1, 1))
    return windowed(x, (window, window), lambda shard, needed, out: median_within(shard), channels=x.shape[1])


class Medians(nn.Module):
    """Two convolutions with medians between them: a feature map, on top of which come gigapipe's pool and head."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, width, 3, 2, 1), nn.Conv2d(width, 2 * width, 3, 2, 1)

    def forward(self, x):
        return self.second(median(self.first(x).relu())).relu()
