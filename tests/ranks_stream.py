"""Run under mpiexec: ranks that stream their shards, against the undivided model. Prints one JSON object a case."""

import json

import torch
from monai.networks.nets import UNet
from mpi4py import MPI
from test_stream import frozen_resnet18
from torch import nn

from gigapipe.models import resnet18
from gigapipe.spatial import Plan
from gigapipe.spatial.check import compare
from gigapipe.training.ranks import started

RANKS = MPI.COMM_WORLD.size
MESHES = {2: [(1, 1, 2), (2, 1, 1)], 4: [(1, 2, 2)]}[RANKS]


def unet() -> nn.Module:
    return UNet(2, 3, 2, channels=(4, 8, 16), strides=(2, 2), num_res_units=1, norm=("instance", {"affine": True}))


NETWORKS = {
    "ResNet-18, frozen": (frozen_resnet18, (101, 77), Plan(tile=50, kept=frozenset({4, 18}), whole_from=35)),
    "ResNet-18, BatchNorm": (lambda: resnet18(2), (61, 45), Plan(tile=40, kept=frozenset({4, 11, 18}))),
    "U-Net": (unet, (44, 36), Plan(tile=20)),
}

for shape in MESHES:
    with started(*shape, threads=1) as mesh:
        for name, (make, size, plan) in NETWORKS.items():
            torch.manual_seed(0)
            model = make()
            images = torch.rand(2 * mesh.data, 3, *size, dtype=torch.float64) - 0.5
            try:
                worst = compare(model, images, mesh, plan)[0]
            except Exception as error:
                error.add_note(f"case: {name}")
                raise
            if mesh.rank == 0:
                row = {"mesh": shape, "case": name, "error": worst.error, "worst": f"{worst.kind} {worst.name}"}
                print(json.dumps(row), flush=True)
