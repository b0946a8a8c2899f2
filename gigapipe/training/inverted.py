"""Pixels as a network sees them."""

from collections.abc import Sequence

import numpy as np
import torch

from gigapipe.pyramids.recycled import Recycled

BAND = 2**16
"""Bytes at most of the rows that are worked on at a time: they stay in a CPU's caches."""

LARGE = 2**20
"""Bytes of pixels from which on compiled code is faster, which takes a third of a second to load."""

COMPILED = 120_000_000
"""Bytes that a process then takes for that code, and for what it is compiled with (measured)."""


def inverted(images: Sequence[np.ndarray], memory: Recycled | None = None) -> torch.Tensor:
    """uint8 images (channel, row, column) as a network sees them: (batch, channel, row, column), float32, 0 is white
    and 1 is black. It lies in `memory`, if that is given.

    What lies outside a slide, and the zeros that a convolution pads with, are then both white glass.
    """
    channels, rows, columns = images[0].shape
    found = (memory or Recycled()).empty((len(images), rows, columns, channels), np.float32)
    if sum(image.size for image in images) >= LARGE:
        from gigapipe.training.interleaved import interleave

        for image, made in zip(images, found, strict=True):
            interleave(np.ascontiguousarray(image), made, AT)
        return torch.from_numpy(found).movedim(3, 1)
    # By bands, and in bytes as far as that goes: a large tile costs as much to bring about as to convolve.
    band = max(1, BAND // max(1, channels * columns))
    for image, made in zip(images, torch.from_numpy(found), strict=True):
        for start in range(0, rows, band):
            part = torch.from_numpy(255 - image[:, start : start + band])  # by numpy, which knows negative strides
            torch.div(part.movedim(0, 2).contiguous(), 255, out=made[start : start + band])
    return torch.from_numpy(found).movedim(3, 1)


AT = (255 - np.arange(256)).astype(np.float32) / np.float32(255)
"""What becomes of each grey level."""
