"""Pixels as a network sees them."""

from collections.abc import Sequence

import numpy as np
import torch

from gigapipe.pyramids.recycled import Recycled
from gigapipe.training.augmentation import UNCHANGED, Augmentation

BAND = 2**16
"""Bytes at most of the rows that are worked on at a time: they stay in a CPU's caches."""

BAND_ON_DEVICE = 2**24
"""The same of what is sent to a device at a time, which has to start operations for each."""

LARGE = 2**20
"""Bytes of pixels from which on compiled code is faster, which takes a third of a second to load."""

COMPILED = 120_000_000
"""Bytes that a process then takes for that code, and for what it is compiled with (measured)."""

HOST = torch.device("cpu")


def as_seen(
    images: Sequence[np.ndarray],
    augmentations: Sequence[Augmentation] | None = None,
    device: torch.device = HOST,
    memory: Recycled | None = None,
) -> torch.Tensor:
    """uint8 images (channel, row, column) of one size as a network sees them, each in the colours of its augmentation:
    (batch, channel, row, column), float32 in channels_last, `inverted`, on a device.

    A GPU is sent bytes, and does the rest by bands. On the host the result lies in `memory`, if that is given.
    """
    augmentations = augmentations or [UNCHANGED] * len(images)
    if device.type == "cpu":
        return _in_colours(inverted(images, memory), augmentations)
    return by_bands(images, augmentations, device)


def by_bands(images: Sequence[np.ndarray], augmentations: Sequence[Augmentation], device: torch.device) -> torch.Tensor:
    """The same on a GPU, where a band's rows are inverted and coloured at a time: memory for copies stays small."""
    channels, rows, columns = images[0].shape
    found = torch.empty((len(images), rows, columns, channels), device=device).movedim(3, 1)
    band = max(1, BAND_ON_DEVICE // max(1, channels * columns))
    for i, image in enumerate(images):
        for start in range(0, rows, band):
            made = found[i : i + 1, :, start : start + band]
            torch.div(torch.from_numpy(255 - image[:, start : start + band]).to(device), 255, out=made[0])
            _in_colours(made, augmentations[i : i + 1])
    return found


def _in_colours(images: torch.Tensor, augmentations: Sequence[Augmentation]) -> torch.Tensor:
    """Images (batch, 3, rows, columns), float32 inverted intensity, in the colours of their augmentations; in place."""
    for image, augmentation in zip(images.split(1), augmentations, strict=True):
        if (coloured := augmentation.colour(image)) is not image:
            image.copy_(coloured)
    return images


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
