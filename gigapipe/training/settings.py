"""What determines the trained weights, whatever is learnt."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from gigapipe.training.augmentation import Augmentation, Look


@dataclass(frozen=True, kw_only=True)
class Settings(ABC):
    """What determines the trained weights, beside the slides. Written into the model and its checkpoint."""

    task: ClassVar[str]
    """What is learnt, in a word."""

    mpp: float
    fold: int
    epochs: int
    batch: int  # slides a step, over all data ranks
    learning_rate: float
    weight_decay: float
    seed: int
    precision: str = "float32"  # of activations; "bfloat16" by autocast, the weights stay float32
    accumulate: int = 1  # batches whose gradients make one step
    schedule: str = "cosine"  # of the learning rate: see _schedule
    patience: int | None = None  # epochs without a better validation that are one too many
    symmetries: str = "all"  # how slides may look: see Augmentation
    shift: float = 0.0
    stain: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0

    def look(self, epoch: int, slide: str) -> Look:
        """How a slide looks in an epoch of training."""
        looks = Augmentation(self.symmetries, self.shift, self.stain, self.brightness, self.contrast)
        return looks.look(self.seed, epoch, slide)

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    @abstractmethod
    def model(self) -> nn.Module:
        """An untrained network."""
