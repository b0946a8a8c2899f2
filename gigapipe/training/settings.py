"""What determines the trained weights, whatever is learnt."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import nn

from gigapipe.configuration.configuration import Learning
from gigapipe.training.augmentation import Augmentation, AugmentationRanges


class Settings(Learning, ABC):
    """What determines the trained weights, beside the slides. Written into the model and its checkpoint."""

    task: ClassVar[str]
    """What is learnt, in a word."""

    mpp: float
    fold: int
    seed: int
    shift: float = 0.0  # of a canvas; a slide that is taken whole lies where it lies

    def augmentation(self, epoch: int, slide: str) -> Augmentation:
        """That of a slide in an epoch of training."""
        ranges = AugmentationRanges(self.symmetries, self.shift, self.stain, self.brightness, self.contrast)
        return ranges.draw(self.seed, epoch, slide)

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    @abstractmethod
    def model(self) -> nn.Module:
        """An untrained network."""
