"""Ranks that stream their shards, against the undivided model."""

import math

import torch
from monai.networks.nets import UNet
from spatial_cases import frozen_resnet18
from torch import nn

from gigapipe.models import GigapixelUNet, resnet18
from gigapipe.spatial import Plan, decompose, plan_streaming, shard, stream
from gigapipe.spatial.check import compare
from gigapipe.spatial.layers import Layers
from gigapipe.spatial.planning import candidates, trace
from gigapipe.training.losses import dice_and_cross_entropy_of_classes, dice_of_classes


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


def loss_of_classes(mesh, tile: int | None) -> list[float]:
    """The relative errors of the loss of four classes, of their Dice, and of the gradients, held or streamed."""
    torch.manual_seed(0)
    pixels = torch.rand(1, 3, 150, 130, dtype=torch.float64)
    values = torch.randint(4, (1, 1, 150, 130)).double()
    model, ours = (GigapixelUNet(4).double() for _ in range(2))
    ours.load_state_dict(model.state_dict())
    logits = model(pixels)
    expected = dice_and_cross_entropy_of_classes(logits, values)
    expected.backward()

    decompose(ours, mesh)
    image, mask = shard(pixels, mesh), shard(values, mesh)
    if tile:
        image = stream(image, Plan(tile=tile))
        mask = stream(mask, beside=image)
    found = dice_and_cross_entropy_of_classes(ours(image), mask)
    found.backward()
    with torch.no_grad():
        overlap = dice_of_classes(ours(shard(pixels, mesh)), shard(values, mesh)) / dice_of_classes(logits, values)
    errors = [
        ((p.grad - q.grad).norm() / q.grad.norm()).item()
        for p, q in zip(ours.parameters(), model.parameters(), strict=True)
    ]
    return [abs(found.item() / expected.item() - 1), abs(overlap.item() - 1), max(errors)]


def planned(mesh) -> float:
    """Bytes of a pooling of 8 × 512 × 512 float32 after another operation, not streamed."""
    model = decompose(nn.Sequential(nn.Tanh(), nn.MaxPool2d(3, 2, 1)), mesh)
    with torch.no_grad():
        return plan_streaming(model, (1, 8, 512, 512), 50e9, mesh, base=0.0).peak


def planned_of_kept(mesh) -> float:
    """Bytes of an image of 8 × 256 × 256 float32 that is kept between two convolutions, beside what tiles take."""
    model = decompose(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)), mesh)
    with torch.no_grad():
        layers = Layers(trace(model, (1, 3, 256, 256), mesh, None, torch.float32, "cpu"), mesh, read=True)
        (found,) = (c for c in candidates(layers, math.inf) if c.stored == (layers.cuts[0],) and not c.whole)
    return found.peak - found.shares[1].forward
