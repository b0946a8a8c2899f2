"""What determines the trained weights, whatever is learnt."""

import math
from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar

import torch
from pydantic import SerializerFunctionWrapHandler, model_serializer
from torch import nn

from gigapipe.configuration.configuration import Learning, OwnNetwork
from gigapipe.configuration.values import Since
from gigapipe.training.augmentation import Augmentation, AugmentationRanges


class Settings(OwnNetwork, Learning, ABC):
    """What determines the trained weights, beside the slides. Written into the model and its checkpoint."""

    task: ClassVar[str]
    """What is learnt, in a word: one of `TASKS`."""

    mpp: float
    fold: int
    seed: int
    network_code: Annotated[str | None, Since("0.2")] = None  # of a network of the user's: see `named.code_of`
    own_task: Annotated[str | None, Since("0.2")] = None  # the name of a task of the user's, which this is then
    task_code: Annotated[str | None, Since("0.2")] = None  # and its code
    method: Annotated[str, Since("0.2")] = ""  # in a comparison: see `Configuration.methods`
    shift: float = 0.0  # of a canvas; a slide that is taken whole lies where it lies

    @model_serializer(mode="wrap")
    def without_what_is_new(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is new and at its default is left out, so that a training of an older release is gone on with."""
        fields = type(self).model_fields
        new = {name for name, field in fields.items() if any(isinstance(m, Since) for m in field.metadata)}
        return {k: v for k, v in written(self).items() if k not in new or getattr(self, k) != self.default(k)}

    def augmentation(self, epoch: int, slide: str) -> Augmentation:
        """That of a slide in an epoch of training."""
        ranges = AugmentationRanges(self.symmetries, self.shift, self.stain, self.brightness, self.contrast)
        return ranges.draw(self.seed, epoch, slide)

    def epochs_of(self, steps: int) -> int:
        """Passes over the training slides, each of so many `steps`."""
        return max(self.epochs, math.ceil(self.least_steps / steps))

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, getattr(torch, self.precision), enabled=self.precision != "float32")

    @abstractmethod
    def model(self) -> nn.Module:
        """An untrained network."""
