"""Run under mpiexec: bytes that real ranks send in one step. Prints JSON, a line a case."""

import json

import torch
from mpi4py import MPI

from gigapipe.models import GigapixelUNet, resnet18
from gigapipe.planning.cost import default_loss
from gigapipe.spatial import Mesh, SpatialTensor, decompose
from gigapipe.spatial.transports.mpi import MpiTransport

CASES = {  # uneven sizes; 75 px end as 3, fewer than 4 ranks
    "resnet18, rows": (lambda: resnet18(2), (1, 3, 75, 53), (1, 4, 1), "float32"),
    "resnet18, blocks": (lambda: resnet18(2), (1, 3, 117, 131), (1, 2, 2), "bfloat16"),
    "resnet18, data": (lambda: resnet18(2), (2, 3, 75, 53), (2, 1, 2), "float32"),
    "unet, blocks": (GigapixelUNet, (1, 3, 149, 203), (1, 2, 2), "float32"),
    "unet, data": (GigapixelUNet, (1, 3, 149, 203), (2, 2, 1), "bfloat16"),
}


def main() -> None:
    world = MPI.COMM_WORLD
    torch.set_num_threads(1)
    for case, (make, shape, size, precision) in CASES.items():
        mesh = Mesh(*size, transport=MpiTransport(world))
        model = decompose(make().to(memory_format=torch.channels_last), mesh)
        transports = {mesh.everyone, mesh.image}
        for transport in transports:
            transport.sent_bytes = 0
        local = torch.rand(*shape[:2], *mesh.rectangle(shape[2:]).shape).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", getattr(torch, precision), enabled=precision != "float32"):
            output = model(SpatialTensor(local, shape[2:], mesh))
        default_loss(output).backward()
        sent = world.gather(sum(transport.sent_bytes for transport in transports))
        if world.rank == 0:
            print(json.dumps({"case": case, "sent": sent}), flush=True)


if __name__ == "__main__":
    main()
