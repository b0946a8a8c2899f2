"""Canvases as a rank sees them: its rectangle of each slide, read from the pyramid, and looking alike on all."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from gigapipe.pyramids import Pyramid
from gigapipe.pyramids.canvas import read_canvas
from gigapipe.pyramids.pixel_cache import PixelCache
from gigapipe.spatial import Mesh
from gigapipe.spatial.window import Interval, Rectangle
from gigapipe.training.augmentation import UNCHANGED, Augmentation
from gigapipe.training.inverted import as_seen
from gigapipe.training.streaming import Image, Streaming

Read = Callable[[Rectangle], np.ndarray]
"""Pixels (channel, row, column), uint8, of a rectangle of an image."""

Batch = tuple[list[int], list[Augmentation] | None]
"""Canvases, by their numbers, and the augmentation of each; None: they are as they are."""


class Canvases:
    """The canvases of the slides of `table` (column `slide`), `size` px a side at `mpp` µm per pixel.

    `truth` (slides,) is what is to be learnt of them. `background` white: what lies outside the tissue becomes white.
    Chunks are kept in `stage`, a folder on the node's own disk, and what frozen layers make of them in `features`, if
    these are given. Raises InputError if a pyramid is
    missing or lacks the resolution.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        truth: torch.Tensor,
        folder: Path,
        mpp: float,
        size: int,
        mesh: Mesh,
        background: str = "keep",
        stage: Path | None = None,
        features: Path | None = None,
    ):
        self.slides = list(table["slide"])
        self.truth = truth
        self.pyramids = [Pyramid(Path(folder) / slide) for slide in self.slides]
        for pyramid in self.pyramids:
            pyramid.array(mpp)
            if background == "white":
                pyramid.outline  # noqa: B018  is there
        self.mpp, self.size, self.mesh = mpp, size, mesh
        self.masked, self.stage, self.features = background == "white", stage, features

    def __len__(self) -> int:
        return len(self.slides)

    def identity(self) -> list:
        """What makes them these canvases and no others."""
        return [self.slides, self.truth.tolist(), [pyramid.source["md5"] for pyramid in self.pyramids]]

    def batch(
        self,
        indices: list[int],
        augmentations: list[Augmentation] | None = None,
        streaming: Streaming | None = None,
        following: Batch | None = None,
    ) -> tuple[Image, torch.Tensor]:
        """Images (batch, 3, size, size), of which this rank reads only what it owns, and their truth (batch,).

        `augmentations` has one for each slide; without them slides are as they are. Streamed images are read when used;
        of others, those `following` are read meanwhile.
        """
        streaming = streaming or Streaming(None, self.mesh)
        own, ahead = self.mesh.rectangle((self.size, self.size)), streaming.ahead
        pixels = self._reader(indices, augmentations, streaming)
        if ahead:
            pixels = ahead.reader((self, indices, augmentations), own, pixels)

        def read(rectangle: Rectangle, device: torch.device) -> torch.Tensor:
            return as_seen(pixels(rectangle), augmentations, device, streaming.cache.memory)

        image = streaming.image(read, (len(indices), 3, self.size, self.size)), self.truth[indices]
        if following and ahead:
            ahead.begin((self, *following), functools.partial(self._reader(*following, streaming), own))
        return image

    def _reader(
        self, indices: list[int], augmentations: list[Augmentation] | None, streaming: Streaming
    ) -> Callable[[Rectangle], list[np.ndarray]]:
        """What gives the pixels (channel, row, column), uint8, of a rectangle of each of these canvases."""
        size, readers = (self.size, self.size), []
        for i, augmentation in zip(indices, augmentations or [UNCHANGED] * len(indices), strict=True):
            down, right = (round(part * self.size) for part in augmentation.shift)
            of_slide = functools.partial(self._read, self.pyramids[i], (down, right), streaming.cache)
            readers.append(under_symmetry(of_slide, size, augmentation.symmetry)[0])
        return lambda rectangle: [reader(rectangle) for reader in readers]

    def _read(self, pyramid: Pyramid, shift: tuple[int, int], cache: PixelCache, rectangle: Rectangle) -> np.ndarray:
        return read_canvas(pyramid, self.mpp, self.size, *rectangle, self.masked, shift, self.stage, cache)


def under_symmetry(read: Read, size: tuple[int, int], symmetry: int) -> tuple[Read, tuple[int, int]]:
    """An image of `size` under one of the square's symmetries (0–7: transpose, flip rows, flip columns), and its size.

    The symmetry is undone on a rectangle's place, and done on its pixels.
    """
    transpose, flip_rows, flip_columns = symmetry & 4, symmetry & 2, symmetry & 1
    turned = (size[1], size[0]) if transpose else size

    def read_turned(rectangle: Rectangle) -> np.ndarray:
        rows, columns = rectangle
        if flip_rows:
            rows = Interval(turned[0] - rows.stop, turned[0] - rows.start)
        if flip_columns:
            columns = Interval(turned[1] - columns.stop, turned[1] - columns.start)
        pixels = read(Rectangle(columns, rows) if transpose else Rectangle(rows, columns))
        if transpose:
            pixels = pixels.transpose(0, 2, 1)
        if flip_rows:
            pixels = pixels[:, ::-1]
        if flip_columns:
            pixels = pixels[:, :, ::-1]
        return np.ascontiguousarray(pixels)  # torch knows no negative strides

    return read_turned, turned
