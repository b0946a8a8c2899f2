"""One door to all networks: gigapipe's own by their names, and what a function of the user's makes.

Such a network takes images (batch, 3, rows, columns), float32, 0 for white and 1 for black, and makes class scores
(batch, classes) of them; or an image (batch, channels, rows, columns), which a pool and a linear layer of gigapipe's
then go on with. Which of them it is, its output's shape tells.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from gigapipe import named
from gigapipe.errors import InputError
from gigapipe.models.efficientnet import EfficientNetLite0
from gigapipe.models.patches import Patches
from gigapipe.models.resnet import POOLS, RESNETS, AttentionPool2d
from gigapipe.spatial.check import in_one_line


class Headed(nn.Module):
    """A network that makes an image, a pool over all of its positions, and a linear layer: logits (batch, classes)."""

    def __init__(self, features: nn.Module, channels: int, classes: int, pool: str):
        super().__init__()
        self.features = features
        self.avgpool = POOLS[pool](channels)  # the names are those of ResNet
        self.fc = nn.Linear(channels, classes)
        if isinstance(self.avgpool, AttentionPool2d):
            nn.init.zeros_(self.avgpool.score.weight)  # begins as the average

    def forward(self, x):
        return self.fc(self.pooled(x))

    def pooled(self, x):
        """Images (batch, 3, rows, columns) to what the last layer sees of them (batch, channels)."""
        return torch.flatten(self.avgpool(self.last_map(x)), 1)

    def last_map(self, x):
        """Images (batch, 3, rows, columns) to what is pooled of them (batch, channels, …)."""
        return self.features(x)


def classifier(
    network: str,
    options: Mapping[str, Any],
    classes: int,
    side: int,
    norm: str,
    pool: str,
    width: int,
    patch: int | None = None,
    stages: str = "last",
) -> nn.Module:
    """An untrained network: canvases (batch, 3, `side`, `side`) to logits (batch, classes).

    `options` are the keywords of a function `network` of the user's, which is given the number of `classes`, too, if
    it has a parameter of that name. `stages` are those whose maps EfficientNet returns. With `patch` it takes patches
    of so many pixels a side, and returns features (batch, channels) of each. InputError if it cannot be made, or makes
    neither class scores nor an image.
    """
    if network in RESNETS:
        return RESNETS[network](classes, norm, pool, width)
    if network == "efficientnet_lite0":
        features = EfficientNetLite0(norm, stages)
        return Headed(features, features.channels, classes, pool)
    if patch:
        encoder = made(network, options)
        shape = output_shape(encoder, network, (patch, patch))
        if len(shape) != 2:
            raise InputError(
                f"network {network}: makes {_shown(shape)} of one patch of {patch} px; it must return features "
                "(1, channels)"
            )
        return Headed(Patches(encoder, patch, shape[1]), shape[1], classes, pool)
    model = made(network, options, classes)
    shape = output_shape(model, network, (side, side))
    if len(shape) == 4:
        return Headed(model, shape[1], classes, pool)
    if len(shape) != 2:
        raise InputError(
            f"network {network}: makes {_shown(shape)} for one image; it must return class scores (1, {classes}), or "
            "an image (1, channels, rows, columns)"
        )
    if shape[1] != classes:
        raise InputError(
            f"network {network}: makes {shape[1]} scores, but {classes} are needed; give it a parameter `classes`, or "
            "set the number in network_options, as num_classes; or let it return its last feature map"
        )
    if pool != "average":
        raise InputError(f"network {network}: returns class scores, and so has its own pooling; remove pool: {pool}")
    return model


def segmenter(network: str, options: Mapping[str, Any], channels: int, size: tuple[int, int]) -> nn.Module:
    """An untrained network of the user's: images (batch, 3, rows, columns) to logits (batch, channels, rows, columns).

    `options` are its keywords; it is given the number of `channels` as `classes` if it has a parameter of that name.
    InputError if it cannot be made, or makes something else of an image of `size` (rows, columns).
    """
    model = made(network, options, channels)
    if (shape := output_shape(model, network, size)) != (1, channels, *size):
        raise InputError(
            f"network {network}: makes {_shown(shape)} of one image of {size[0]} × {size[1]} px; it must return "
            f"{channels} channels of the same size, the logits of each pixel"
        )
    return model


def made(network: str, options: Mapping[str, Any], classes: int | None = None) -> nn.Module:
    """What the user's function `network` makes. InputError if that is no network."""
    function = named.load(network)
    try:
        if classes is not None and "classes" in _parameters(function):
            options = {"classes": classes, **options}
        model = function(**options)
    except Exception as error:
        raise InputError(f"network {network}: {in_one_line(error)}; correct it, or network_options") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"network {network}: makes a {type(model).__name__}, not a torch.nn.Module; correct it")
    return model


def _parameters(function) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(function).parameters)
    except ValueError:  # of what is built in
        return ()


def output_shape(model: nn.Module, network: str, size: tuple[int, int]) -> tuple[int, ...]:
    """The shape of what a model makes of one image of `size`; nothing is computed. InputError if it fails."""
    image = torch.empty(1, 3, *size)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    if type(image) is torch.Tensor:  # it has pixels
        image, tensors = image.to("meta"), {name: tensor.to("meta") for name, tensor in tensors.items()}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.device(image.device):
            output = torch.func.functional_call(model, tensors, image)
    except Exception as error:
        raise InputError(
            f"network {network}: on an image of 1 × 3 × {size[0]} × {size[1]}: {in_one_line(error)}; correct it"
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    if not isinstance(output, torch.Tensor):
        raise InputError(
            f"network {network}: makes a {type(output).__name__}; it must return one tensor, class scores or an image"
        )
    return tuple(output.shape)


def _shown(shape: tuple[int, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


def take_by_name(model: nn.Module, weights: Mapping[str, torch.Tensor], where: str) -> str:
    """Give a network those weights that have the name and shape of one of its own; a line that says which.

    Of a `Headed` model they are those of the network below. InputError if there are none.
    """
    network = model.features if isinstance(model, Headed) else model
    network = network.encoder if isinstance(network, Patches) else network
    own = network.state_dict()
    taken = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    if not any(name in taken for name, _ in network.named_parameters()):
        raise InputError(
            f"{where}: none of its {len(weights)} weights has name and shape of one of the network's "
            f"(it has {_few(weights)}; the network {_few(own)}); give weights of this network"
        )
    network.load_state_dict(own | taken)
    lines = [f"{where}: {len(taken)} of the network's {len(own)} weights are loaded"]
    shapes = [name for name in weights if name in own and name not in taken]
    for what, names in (
        ("with another shape, not loaded", shapes),
        ("not in the file, not loaded", [name for name in own if name not in weights]),
        ("only in the file", [name for name in weights if name not in own]),
    ):
        if names:
            lines.append(f"{len(names)} {what} ({_few(names)})")
    return "; ".join(lines)


def _few(names) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
