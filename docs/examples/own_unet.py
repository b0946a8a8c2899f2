"""The network of own-segmentation.yaml: a U-Net that keeps the resolution of the image."""

import torch
from torch import nn
from torch.nn import functional as F


def block(inputs, channels, stride=1):
    return nn.Sequential(
        nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False),
        nn.InstanceNorm2d(channels, affine=True),
        nn.ReLU(inplace=True),
    )


def enlarged(x, like):
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear")


class UNet(nn.Module):
    """RGB images (batch, 3, rows, columns) of any size to logits of every pixel (batch, classes, rows, columns)."""

    def __init__(self, classes, width=8):
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(inplace=True))
        self.down2 = block(width, 2 * width, stride=2)
        self.down3 = block(2 * width, 4 * width, stride=2)
        self.up2 = block(6 * width, 2 * width)
        self.up1 = nn.Sequential(nn.Conv2d(3 * width, width, 3, padding=1), nn.ReLU(inplace=True))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        x = self.down1(x)
        half = self.down2(x)
        quarter = self.down3(half)
        half = self.up2(torch.cat([enlarged(quarter, half), half], 1))
        x = self.up1(torch.cat([enlarged(half, x), x], 1))
        return self.head(x)
