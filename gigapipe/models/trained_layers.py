"""Which layers of a network are trained; the others keep their weights, and run as in prediction."""

from torch import nn

from gigapipe.errors import InputError
from gigapipe.models.efficientnet import EfficientNetLite0
from gigapipe.models.networks import Headed
from gigapipe.models.resnet import ResNet

KEPT_MAPS = 2e9
"""Bytes of last feature maps of frozen layers that a rank keeps, at most; further ones are computed each time."""


def freeze(model: nn.Module, train: str, network: str) -> None:
    """Let no gradient be computed of what is not trained: `head`, pooling and last layer alone are, as with `probe`;
    `last`, the last stage, too; `all`.

    InputError if a `network` of the user's has its own head.
    """
    if train == "all":
        return
    if not isinstance(model, Headed | ResNet):
        raise InputError(
            f"train: {train}: {network} has its own head; return its last feature map, to which gigapipe adds pool and "
            "a linear layer"
        )
    trained = [model.avgpool, model.fc, *(_last_stage(model) if train == "last" else [])]
    model.requires_grad_(False)
    for module in trained:
        module.requires_grad_(True)


def _last_stage(model: Headed | ResNet) -> list[nn.Module]:
    features = model.features if isinstance(model, Headed) else model
    if isinstance(features, ResNet | EfficientNetLite0):
        return features.last_stage
    return [child for child in features.children() if any(True for _ in child.parameters())][-1:]


def training_mode(model: nn.Module) -> None:
    """As `model.train()`, but what has only frozen weights runs as in prediction: without dropout, and its norms with
    the statistics that they have.
    """
    model.train()
    for module in model.modules():
        weights = list(module.parameters())
        if weights and not any(p.requires_grad for p in weights):
            module.eval()
