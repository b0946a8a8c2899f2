"""The optimiser: torch's AdamW, started without torch's compiler, and the learning rate of each layer."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

SHARE = "share"
"""In a group of parameters: its learning rate as a share of the step's."""


def _unwrapped(method: Any) -> Any:
    return method.__wrapped__


class AdamW(torch.optim.AdamW):
    """torch's own, to the bit. These methods of it import torch's compiler before they do their work.

    That is a third of what a rank's start takes, and some 1,500 files for each rank of a cluster to open; they are
    taken without what torch wraps around them for compiled code, of which there is none here.
    """

    step = torch.no_grad()(_unwrapped(torch.optim.AdamW.step))
    add_param_group = _unwrapped(torch.optim.AdamW.add_param_group)
    zero_grad = _unwrapped(torch.optim.AdamW.zero_grad)
    state_dict = _unwrapped(torch.optim.AdamW.state_dict)
    load_state_dict = _unwrapped(torch.optim.AdamW.load_state_dict)


def groups(model: nn.Module, first_layer_rate: float) -> Iterable[Any]:
    """What an optimiser is given of a model: its parameters; or a group a layer, with its `SHARE` of the learning rate.

    A layer is a module that has parameters of its own; they are in the order in which they were registered, which is
    that from the image to the output in any usual network. Shares rise geometrically from `first_layer_rate` to 1
    ("discriminative fine-tuning", Howard and Ruder 2018, arXiv:1801.06146, section 3.2). A parameter that two layers
    share belongs to the first.
    """
    if first_layer_rate == 1:
        return model.parameters()
    layers, seen = [], set[int]()
    for module in model.modules():
        own = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in seen]
        seen |= set(map(id, own))
        if own:
            layers.append(own)
    last = max(1, len(layers) - 1)
    shares = [first_layer_rate ** ((len(layers) - 1 - number) / last) for number in range(len(layers))]
    return [{"params": own, SHARE: share} for own, share in zip(layers, shares, strict=True)]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """That of the next step, of which each group has its share."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get(SHARE, 1.0)
