"""A U-Net of 4,492 parameters for gigapixel images: few channels, large kernels, high strides.

A U-Net with as many parameters, large kernels and high strides segmented tissue on 16,000 × 64,000 px in unified memory
(Remedios et al., MIDL 2023, arXiv:2304.12149). Its layers were not published; these are ours. Each output
but the first is 9 parameters more.
"""

import torch
import torch.nn.functional as F
from torch import nn


class GigapixelUNet(nn.Module):
    """RGB images (batch, 3, rows, columns) of any size to logits of every pixel (batch, outputs, rows, columns)."""

    def __init__(self, outputs: int = 1):
        super().__init__()
        self.down1 = nn.Conv2d(3, 8, 7, 4, padding=3)
        self.down2 = nn.Conv2d(8, 4, 5, 4, padding=2)
        self.down3 = nn.Conv2d(4, 7, 5, 4, padding=2)
        self.up2 = nn.Conv2d(7 + 4, 7, 3, padding=1)
        self.up1 = nn.Conv2d(7 + 8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, outputs, 1)

    def forward(self, x):
        quarter = F.relu(self.down1(x))
        sixteenth = F.relu(self.down2(quarter))
        y = F.relu(self.down3(sixteenth))
        y = F.relu(self.up2(torch.cat([enlarged(y, sixteenth), sixteenth], 1)))
        y = F.relu(self.up1(torch.cat([enlarged(y, quarter), quarter], 1)))
        return enlarged(self.head(y), x)


def enlarged(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`x`, interpolated to the rows and columns of `like`."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear")
