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
    "group": functools.partial(nn.GroupNorm, 32),
    "none": nn.Identity,
}
"""From a number of channels to a layer. `none`: biases instead, and branches that begin as zero (`Gain`)."""


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
    """RGB images (batch, 3, rows, columns) of any size to logits (batch, classes), by global average pooling."""

    def __init__(self, block: type[BasicBlock | Bottleneck], blocks: tuple[int, ...], classes: int, norm: str):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=norm == "none")
        self.bn1 = NORMS[norm](64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        inputs = 64
        for i, (count, channels) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True)):
            layer = []
            for j in range(count):
                layer.append(block(inputs, channels, 2 if i and j == 0 else 1, norm))
                inputs = channels * block.expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*layer))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet18(classes: int = 1000, norm: str = "batch") -> ResNet:
    return ResNet(BasicBlock, (2, 2, 2, 2), classes, norm)


def resnet34(classes: int = 1000, norm: str = "batch") -> ResNet:
    return ResNet(BasicBlock, (3, 4, 6, 3), classes, norm)


def resnet50(classes: int = 1000, norm: str = "batch") -> ResNet:
    return ResNet(Bottleneck, (3, 4, 6, 3), classes, norm)
