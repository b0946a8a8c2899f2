"""Three optimiser steps of networks that nobody here wrote, on 2 × 2 ranks against undivided, in float64.

    mpiexec -n 4 python benchmarks/zoo_training.py

in the environment of zoo.py: timm's ConvNeXt with stochastic depth, DeepLabV3+ of segmentation_models_pytorch, and
MONAI's UNet. Printed is how far losses and weights are apart, relative to the largest of each.
"""

import copy
import os
from collections.abc import Sequence

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import torch.nn.functional as F
from mpi4py import MPI
from torch import nn
from zoo_models import let_torchvision_import

from gigapipe.spatial import Mesh, decompose, shard
from gigapipe.spatial.decompose import synchronise_as_batch_norm
from gigapipe.spatial.transports.mpi import MpiTransport


def convnext() -> nn.Module:
    import timm

    return timm.create_model("convnext_atto", pretrained=False, num_classes=2, drop_path_rate=0.3)


def deeplab() -> nn.Module:
    import segmentation_models_pytorch as smp

    return smp.DeepLabV3Plus("resnet18", encoder_weights=None, classes=2)


def unet() -> nn.Module:
    from monai.networks.nets import UNet

    return UNet(2, 3, 2, channels=(8, 16, 32), strides=(2, 2), num_res_units=2)


MODELS = {
    "timm convnext_atto, DropPath": (convnext, (161, 127)),
    "smp DeepLabV3+, resnet18": (deeplab, (160, 128)),
    "MONAI UNet": (unet, (100, 84)),
}


def trained(model: nn.Module, images: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Losses of a step with each batch of images, and weights after them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for step, image in enumerate(images):
        torch.manual_seed(100 + step)  # DropPath draws on every rank alike
        found, labels = model(image), torch.tensor([0, 1])
        if found.dim() == 4:  # a class for each pixel
            labels = labels[:, None, None].expand(-1, *found.shape[2:])
        optimizer.zero_grad()
        loss = F.cross_entropy(found, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses, [p.detach() for p in model.parameters()]


def apart(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-3)).item() for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    torch.set_num_threads(1)
    mesh = Mesh(1, 2, 2, transport=MpiTransport(MPI.COMM_WORLD))
    let_torchvision_import()
    for name, (make, size) in MODELS.items():
        torch.manual_seed(0)
        model = make().double().train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # which is drawn otherwise on a mesh, and is compared by the tests
        undivided = copy.deepcopy(model)
        synchronise_as_batch_norm(undivided)
        images = list(torch.rand(3, 2, 3, *size, dtype=torch.float64))
        theirs = trained(undivided, images)
        ours = trained(decompose(model, mesh), [shard(image, mesh) for image in images])
        differences = torch.tensor([apart(*pair) for pair in zip(ours, theirs, strict=True)], dtype=torch.float64)
        table = torch.zeros(4, 2, dtype=torch.float64)
        table[mesh.rank] = differences
        losses, weights = mesh.everyone.sum_(table).amax(0).tolist()
        if mesh.rank == 0:
            print(f"{name:32} losses {losses:.1e}  weights {weights:.1e}", flush=True)
