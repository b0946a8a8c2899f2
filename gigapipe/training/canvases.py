"""Canvases as a rank sees them: its rectangle of each slide, read from the pyramid, flipped and turned alike on all."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from gigapipe.pyramids import Pyramid
from gigapipe.pyramids.canvas import read_canvas
from gigapipe.spatial import Mesh, SpatialTensor


class Canvases:
    """The canvases of the slides of `table` (columns `slide`, `label`), `size` px a side at `mpp` µm per pixel.

    Label `classes[i]` is class i. Raises InputError if a pyramid is missing or lacks the resolution.
    """

    def __init__(self, table: pd.DataFrame, folder: Path, mpp: float, size: int, classes: list[str], mesh: Mesh):
        self.slides = list(table["slide"])
        self.labels = torch.tensor([classes.index(label) for label in table["label"]])
        self.pyramids = [Pyramid(Path(folder) / slide) for slide in self.slides]
        for pyramid in self.pyramids:
            pyramid.array(mpp)
        self.mpp, self.size, self.mesh = mpp, size, mesh

    def __len__(self) -> int:
        return len(self.slides)

    def batch(self, indices: list[int], symmetries: list[int] | None = None) -> tuple[SpatialTensor, torch.Tensor]:
        """Images (batch, 3, size, size), of which this rank reads only what it owns, and labels (batch,).

        float32 darkness: 0 is white, 1 is black, so that what lies outside the slide, and the zeros that a
        convolution pads with, are both white glass. `symmetries` picks one of the square's eight symmetries for each.
        """
        local = np.stack(
            [
                self._rectangle(self.pyramids[i], symmetry)
                for i, symmetry in zip(indices, symmetries or [0] * len(indices), strict=True)
            ]
        )
        darkness = torch.from_numpy(local).to(torch.float32).neg_().add_(255).div_(255)
        darkness = darkness.contiguous(memory_format=torch.channels_last)
        return SpatialTensor(darkness, (self.size, self.size), self.mesh), self.labels[indices]

    def _rectangle(self, pyramid: Pyramid, symmetry: int) -> np.ndarray:
        """This rank's rectangle of the canvas after `symmetry` (0–7: transpose, flip rows, flip columns)."""
        transpose, flip_rows, flip_columns = symmetry & 4, symmetry & 2, symmetry & 1
        rows, columns = self.mesh.rectangle((self.size, self.size))
        # The symmetry is undone on the rectangle's place, and done on its pixels.
        if flip_rows:
            rows = (self.size - rows.stop, self.size - rows.start)
        if flip_columns:
            columns = (self.size - columns.stop, self.size - columns.start)
        if transpose:
            rows, columns = columns, rows
        pixels = read_canvas(pyramid, self.mpp, self.size, tuple(rows), tuple(columns))
        if transpose:
            pixels = pixels.transpose(0, 2, 1)
        if flip_rows:
            pixels = pixels[:, ::-1]
        if flip_columns:
            pixels = pixels[:, :, ::-1]
        return pixels
