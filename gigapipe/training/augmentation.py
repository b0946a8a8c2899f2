"""How a slide is augmented in an epoch: drawn once for all ranks and tiles, and done to any rectangle of it alone.

Turns and shifts say which pixels of the slide a rectangle shows; colours change pixel by pixel, and glass stays white,
so that it goes on without a border into what a convolution pads with.
"""

from dataclasses import dataclass

import numpy as np
import torch

HED = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Optical densities (stain, RGB) of haematoxylin, eosin and DAB (Ruifrok and Johnston, Anal. Quant. Cytol. Histol. 23,
291–299, 2001), scaled to length 1 below."""
HED = HED / HED.norm(dim=1, keepdim=True)

FULL = 1 - 1 / 256
"""The largest inverted intensity of which the optical density is taken: 8 bits know no more."""


@dataclass(frozen=True)
class Augmentation:
    """What is done to one slide: it is shifted, turned, and its colours changed."""

    symmetry: int = 0  # of the square's eight: see under_symmetry
    shift: tuple[float, float] = (0.0, 0.0)  # rows and columns, in sides of the canvas
    stains: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factors of haematoxylin, eosin and the rest
    brightness: float = 1.0  # factor of the inverted intensity
    contrast: float = 1.0  # exponent of the inverted intensity

    def colour(self, image: torch.Tensor) -> torch.Tensor:
        """Images (batch, 3, rows, columns), float32 inverted intensity (0 is white), in the slide's new colours."""
        if self.stains != (1.0, 1.0, 1.0):
            density = -torch.log1p(-image.clamp_max(FULL))
            mixed = torch.linalg.inv(HED) @ torch.diag(torch.tensor(self.stains)) @ HED
            image = -torch.expm1(-(density.movedim(1, -1) @ mixed.to(density.device)).clamp_min(0)).movedim(-1, 1)
        if self.contrast != 1:
            image = image**self.contrast
        if self.brightness != 1:
            image = (image * self.brightness).clamp_max(1)
        return image


UNCHANGED = Augmentation()


@dataclass(frozen=True)
class AugmentationRanges:
    """How far augmentations may differ: each is drawn evenly between the two ends.

    `symmetries` all: flips and quarter turns; none. `shift`: up to this share of the canvas's side, along each axis.
    `stain`: the strength of each stain is multiplied by 1 ± `stain` ("HED-light" without its offset, which would tint
    the glass: Tellez et al., Med. Image Anal. 58, 101544, 2019). `brightness`: the inverted
    intensity is multiplied by 1 ± `brightness`. `contrast`: its exponent is between 1 / (1 + `contrast`) and
    1 + `contrast`.
    """

    symmetries: str = "all"
    shift: float = 0.0
    stain: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0

    def draw(self, seed: int, epoch: int, slide: str) -> Augmentation:
        """The augmentation of a slide in an epoch; it depends on nothing else."""
        rng = np.random.default_rng([seed, epoch, int.from_bytes(slide.encode())])
        symmetry, place, stains = rng.integers(8), rng.uniform(-1, 1, 2), rng.uniform(-1, 1, 3)
        brightness, contrast = rng.uniform(-1, 1, 2)
        return Augmentation(
            int(symmetry) if self.symmetries == "all" else 0,
            tuple((self.shift * place).tolist()),
            tuple((1 + self.stain * stains).tolist()),
            1 + self.brightness * float(brightness),
            (1 + self.contrast) ** float(contrast),
        )
