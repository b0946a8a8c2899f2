"""Residual networks (He et al., CVPR 2016, doi:10.1109/CVPR.2016.90) with torchvision's parameter names.

A torchvision checkpoint therefore loads by name; torchvision itself is not needed. What normalises is a choice: a slide
is a batch of one, and BatchNorm of one slide is a habit rather than a need (`NORMS`).
"""

import functools
from collections.abc import Callable

import torch
from torch import nn


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm whose statistics stay what they were loaded as; its weight and bias are trained."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.train()

    def train(self, mode: bool = True) -> "FrozenBatchNorm2d":
        return super().train(False)


class Gain(nn.Module):
    """Multiplies by one trained number that begins as zero, so that a residual branch does.

    It stands in for normalisation: "SkipInit", De and Smith, NeurIPS 2020, arXiv:2002.10444.
    """

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x * self.gain


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "frozen": FrozenBatchNorm2d,
    "group": lambda channels: nn.GroupNorm(min(32, channels), channels),
    "none": nn.Identity,
}
"""From a number of channels to a layer. `none`: biases instead, and branches that begin as zero (`Gain`)."""


class AttentionPool2d(nn.Module):
    """The mean over all positions, weighted by a softmax of what two 1 × 1 convolutions make of each: (…, 1, 1).

    Attention-based pooling of Ilse et al., ICML 2018, arXiv:1802.04712, equation 8. Their tanh bounds the scores, so
    that the softmax needs no maximum over the image: it is one sum, which ranks share and streaming goes through once.
    """

    def __init__(self, channels: int, hidden: int = 64):
        super().__init__()
        self.project = nn.Conv2d(channels, hidden, 1)
        self.score = nn.Conv2d(hidden, 1, 1, bias=False)  # a softmax would not see a bias

    def forward(self, x):
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x  # counts of positions, and exponentials
        weight = self.score(self.hidden(x)).to(x.dtype).exp()
        total = torch.cat([x * weight, weight], 1).sum((2, 3), keepdim=True)
        return total[:, :-1] / total[:, -1:]

    def hidden(self, x):
        """What positions are scored by (batch, hidden, rows, columns), each number between −1 and 1."""
        return torch.tanh(self.project(x))


class GatedAttentionPool2d(AttentionPool2d):
    """The same, in which a sigmoid of another 1 × 1 convolution gates each tanh: equation 9 there, "gated attention".

    A product of the two is bounded as the tanh is.
    """

    def __init__(self, channels: int, hidden: int = 64):
        super().__init__(channels, hidden)
        self.gate = nn.Conv2d(channels, hidden, 1)

    def hidden(self, x):
        return super().hidden(x) * torch.sigmoid(self.gate(x))


POOLS: dict[str, Callable[[int], nn.Module]] = {
    "average": lambda channels: nn.AdaptiveAvgPool2d(1),
    "max": lambda channels: nn.AdaptiveMaxPool2d(1),
    "attention": AttentionPool2d,
    "gated": GatedAttentionPool2d,
}
"""From a number of channels to what makes one value a channel of a feature map."""


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions and a shortcut, projected by 1 × 1 where the shape changes."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int, norm: str):
        super().__init__()
        bias = norm == "none"
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=bias)
        self.bn1 = NORMS[norm](channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=bias)
        self.bn2 = Gain() if norm == "none" else NORMS[norm](channels)
        self.downsample = _projection(inputs, channels, stride, norm)

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x += shortcut
        return self.relu(x)


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3 (which has the stride, as in torchvision) and 1 × 1 convolutions, and a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int, norm: str):
        super().__init__()
        bias, outputs = norm == "none", channels * self.expansion
        self.conv1 = nn.Conv2d(inputs, channels, 1, bias=bias)
        self.bn1 = NORMS[norm](channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=bias)
        self.bn2 = NORMS[norm](channels)
        self.conv3 = nn.Conv2d(channels, outputs, 1, bias=bias)
        self.bn3 = Gain() if norm == "none" else NORMS[norm](outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(inputs, outputs, stride, norm)

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x += shortcut
        return self.relu(x)


def _projection(inputs: int, outputs: int, stride: int, norm: str) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=norm == "none"), NORMS[norm](outputs))


class ResNet(nn.Module):
    """RGB images (batch, 3, rows, columns) of any size to logits (batch, classes), by a pool over all positions.

    `width` is the number of channels after the stem, 64 in the networks that were published.
    """

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        blocks: tuple[int, ...],
        classes: int = 1000,
        norm: str = "batch",
        pool: str = "average",
        width: int = 64,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, padding=3, bias=norm == "none")
        self.bn1 = NORMS[norm](width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        inputs = width
        for i, count in enumerate(blocks):
            layer: list[nn.Module] = []
            for j in range(count):
                layer.append(block(inputs, width << i, 2 if i and j == 0 else 1, norm))
                inputs = (width << i) * block.expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*layer))
        self.avgpool = POOLS[pool](inputs)  # torchvision's name, whatever the pool
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(self.avgpool, AttentionPool2d):
            nn.init.zeros_(self.avgpool.score.weight)  # begins as the average

    def forward(self, x):
        return self.fc(self.pooled(x))

    def pooled(self, x):
        """Images (batch, 3, rows, columns) to what the last layer sees of them (batch, channels)."""
        return torch.flatten(self.avgpool(self.last_map(x)), 1)

    def last_map(self, x):
        """Images (batch, 3, rows, columns) to what is pooled of them (batch, channels, rows / 32, columns / 32)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    @property
    def last_stage(self) -> list[nn.Module]:
        """The modules that are trained where only the last stage is."""
        return [self.layer4]


RESNETS: dict[str, Callable[..., ResNet]] = {
    "resnet10": functools.partial(ResNet, BasicBlock, (1, 1, 1, 1)),
    "resnet18": functools.partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": functools.partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": functools.partial(ResNet, Bottleneck, (3, 4, 6, 3)),
}
"""From `ResNet`'s other arguments to a network; `resnet10`, half of the 18, is none of torchvision's."""

resnet18 = RESNETS["resnet18"]
"""The ResNet of 18 layers, with the names of torchvision's weights; arguments: classes, norm, pool, width."""
resnet34 = RESNETS["resnet34"]
"""The ResNet of 34 layers; arguments as for `resnet18`."""
resnet50 = RESNETS["resnet50"]
"""The ResNet of 50 layers; arguments as for `resnet18`."""
