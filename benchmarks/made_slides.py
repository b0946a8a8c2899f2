"""Canvases and pairs as a training has them, of pixels that are made up: for steps whose values do not matter."""

import numpy as np
import torch

from gigapipe.spatial import Mesh
from gigapipe.spatial.window import Rectangle
from gigapipe.training.augmentation import UNCHANGED, Augmentation
from gigapipe.training.inverted import as_seen
from gigapipe.training.streaming import Image, Streaming


class Slides:
    """`number` slides of `side` px, half of them of class 1; in place of `Canvases` and of `Pairs`."""

    features = None  # no folder of them

    def __init__(self, number: int, side: int, mesh: Mesh):
        self.slides = [f"slide {i}" for i in range(number)]
        self.truth = torch.arange(number) % 2
        self.side, self.mesh = side, mesh

    def __len__(self) -> int:
        return len(self.slides)

    def identity(self) -> list:
        return self.slides

    def size(self, index: int) -> tuple[int, int]:
        return self.side, self.side

    def batch(
        self,
        indices: list[int],
        augmentations: list[Augmentation] | None = None,
        streaming: Streaming | None = None,
        following: object = None,
    ) -> tuple[Image, torch.Tensor]:
        def read(rectangle: Rectangle, device: torch.device) -> torch.Tensor:
            pixels = np.random.default_rng(0).integers(0, 256, (len(indices), 3, *rectangle.shape), np.uint8)
            return as_seen(pixels, augmentations, device)

        streaming = streaming or Streaming(None, self.mesh)
        return streaming.image(read, (len(indices), 3, self.side, self.side)), self.truth[indices]

    def image(
        self, index: int, streaming: Streaming, augmentation: Augmentation = UNCHANGED, following: object = None
    ) -> Image:
        return self.batch([index], [augmentation], streaming)[0]

    def mask(self, index: int, streaming: Streaming, beside: Image, augmentation: Augmentation = UNCHANGED) -> Image:
        return streaming.image(
            lambda r, device: torch.zeros(1, 1, *r.shape, device=device), (1, 1, self.side, self.side), beside
        )
