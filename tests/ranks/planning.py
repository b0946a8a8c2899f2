"""Bytes that real ranks send in one step."""

import functools

import torch

from gigapipe.models import RESNETS, GigapixelUNet
from gigapipe.planning.cost import default_loss
from gigapipe.spatial import SpatialTensor, decompose, late_gradients

RESNET = functools.partial(RESNETS["resnet10"], 2)
CASES = {  # uneven sizes; 75 px end as 3, fewer than 4 ranks
    "resnet10, rows": (RESNET, (1, 3, 75, 53), (1, 4, 1), "float32"),
    "resnet10, blocks": (RESNET, (1, 3, 117, 131), (1, 2, 2), "bfloat16"),
    "resnet10, data": (RESNET, (2, 3, 75, 53), (2, 1, 2), "float32"),
    "unet, blocks": (GigapixelUNet, (1, 3, 149, 203), (1, 2, 2), "float32"),
    "unet, data": (GigapixelUNet, (1, 3, 149, 203), (2, 2, 1), "bfloat16"),
}


def sent(mesh, case: str) -> int:
    """Bytes that this rank sends in one step, as `gigapipe train` makes it."""
    make, shape, _, precision = CASES[case]
    model = decompose(make().to(memory_format=torch.channels_last), mesh)
    transports = {mesh.everyone, mesh.image}
    for transport in transports:
        transport.sent_bytes = 0
    local = torch.rand(*shape[:2], *mesh.rectangle(shape[2:]).shape).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", getattr(torch, precision), enabled=precision != "float32"):
        output = model(SpatialTensor(local, shape[2:], mesh))
    with late_gradients(mesh):
        default_loss(output).backward()
    return sum(transport.sent_bytes for transport in transports)
