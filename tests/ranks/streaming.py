"""Ranks that stream their shards, against the undivided model."""

import torch
from monai.networks.nets import UNet
from spatial_cases import frozen_resnet18
from torch import nn

from gigapipe.models import resnet18
from gigapipe.spatial import Plan
from gigapipe.spatial.check import compare


def unet() -> nn.Module:
    return UNet(2, 3, 2, channels=(4, 8, 16), strides=(2, 2), num_res_units=1, norm=("instance", {"affine": True}))


NETWORKS = {
    "ResNet-18, frozen": (frozen_resnet18, (101, 77), Plan(tile=50, kept=frozenset({4, 18}), whole_from=35)),
    "ResNet-18, BatchNorm": (lambda: resnet18(2, width=16), (61, 45), Plan(tile=40, kept=frozenset({4, 11, 18}))),
    "U-Net": (unet, (44, 36), Plan(tile=20)),
}


def network(mesh, name: str) -> tuple[float, str]:
    """The largest error, and of what it is."""
    make, size, plan = NETWORKS[name]
    torch.manual_seed(0)
    worst = compare(make(), torch.rand(2 * mesh.data, 3, *size, dtype=torch.float64) - 0.5, mesh, plan)[0]
    return worst.error, f"{worst.kind} {worst.name}"
