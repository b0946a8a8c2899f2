"""The optimiser: torch's AdamW, started without torch's compiler, and the learning rate of each layer."""

import itertools
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


def groups(model: nn.Module, first_layer_rate: float) -> list[dict[str, Any]]:
    """What an optimiser is given of a model: groups of parameters, each with its `SHARE` of the learning rate.

    Weight decay is for matrices and kernels only: biases, and the weights and biases of norms, are in groups without.

    A layer is a module that has parameters of its own; they are in the order in which they were registered, which is
    that from the image to the output in any usual network. Shares rise geometrically from `first_layer_rate` to 1
    ("discriminative fine-tuning", Howard and Ruder 2018, arXiv:1801.06146, section 3.2). A parameter that two layers
    share belongs to the first. With a rate of 1 all layers are one.
    """
    layers = [list(model.parameters())] if first_layer_rate == 1 else _layers(model)
    last = max(1, len(layers) - 1)
    found = []
    for number, own in enumerate(layers):
        share = first_layer_rate ** ((len(layers) - 1 - number) / last)
        decayed = [parameter for parameter in own if parameter.dim() > 1]
        others = [parameter for parameter in own if parameter.dim() <= 1]
        found += [{"params": decayed, SHARE: share}] * bool(decayed)
        found += [{"params": others, SHARE: share, "weight_decay": 0.0}] * bool(others)
    return found


def _layers(model: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of each layer."""
    layers, seen = [], set[int]()
    for module in model.modules():
        own = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in seen]
        seen |= set(map(id, own))
        if own:
            layers.append(own)
    return layers


def in_groups_of(optimizer: torch.optim.Optimizer, saved: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """A state of the optimiser that was saved, in its groups.

    Older releases had one group, of the model's parameters in their order, or one a layer, of which none was without
    weight decay.
    """
    present = optimizer.state_dict()
    sizes, theirs = ([len(group["params"]) for group in state["param_groups"]] for state in (present, saved))
    if sizes == theirs:
        return saved
    before = [list(model.parameters())] if len(theirs) == 1 else _layers(model)
    places = {id(parameter): place for place, parameter in enumerate(itertools.chain.from_iterable(before))}
    numbers = {number: places[id(one)] for number, one in enumerate(_in(optimizer))}
    return present | {"state": {new: saved["state"][old] for new, old in numbers.items() if old in saved["state"]}}


def _in(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """That of the next step, of which each group has its share."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get(SHARE, 1.0)
