"""Canvases and pairs as a training has them, of pixels that are made up: for steps whose values do not matter."""

import numpy as np
import torch

from gigapipe.spatial import Mesh
from gigapipe.spatial.window import Rectangle
from gigapipe.training.augmentation import AS_IT_IS, Look
from gigapipe.training.canvases import darkness, in_colours
from gigapipe.training.streaming import Image, Streaming


class Slides:
    """`number` slides of `side` px, half of them of class 1; in place of `Canvases` and of `Pairs`."""

    def __init__(self, number: int, side: int, mesh: Mesh):
        self.slides = [f"slide {i}" for i in range(number)]
        self.labels = torch.arange(number) % 2
        self.side, self.mesh = side, mesh

    def __len__(self) -> int:
        return len(self.slides)

    def identity(self) -> list:
        return self.slides

    def size(self, index: int) -> tuple[int, int]:
        return self.side, self.side

    def batch(
        self, indices: list[int], looks: list[Look] | None = None, streaming: Streaming | None = None
    ) -> tuple[Image, torch.Tensor]:
        def read(rectangle: Rectangle) -> torch.Tensor:
            pixels = np.random.default_rng(0).integers(0, 256, (len(indices), 3, *rectangle.shape), np.uint8)
            return in_colours(darkness(pixels), looks or [AS_IT_IS] * len(indices))

        streaming = streaming or Streaming(None, self.mesh)
        return streaming.image(read, (len(indices), 3, self.side, self.side)), self.labels[indices]

    def image(self, index: int, streaming: Streaming, look: Look = AS_IT_IS) -> Image:
        return self.batch([index], [look], streaming)[0]

    def mask(self, index: int, streaming: Streaming, beside: Image, look: Look = AS_IT_IS) -> Image:
        return streaming.image(lambda r: torch.zeros(1, 1, *r.shape), (1, 1, self.side, self.side), beside)
