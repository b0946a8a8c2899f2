"""How a model's weights lie in memory: channel beside channel, which convolutions are fastest with."""

from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def in_channels_last(model: Model) -> Model:
    """The model itself, its weights of four axes in torch's channels_last."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # which torch's stubs do not know
