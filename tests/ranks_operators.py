"""Run under mpiexec: every case of spatial_models.py on one rank and on many. Prints one JSON object a case."""

import json
import sys

import torch
from mpi4py import MPI
from spatial_models import CASES, LOSSES
from torch import nn

from gigapipe.spatial import SpatialTensor, shard
from gigapipe.spatial.check import compare
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.transports import Alone
from gigapipe.training.ranks import started

RANKS = MPI.COMM_WORLD.size
MESHES = {2: [(1, 1, 2)], 4: [(1, 2, 2), (2, 2, 1)], 6: [(1, 3, 2)]}[RANKS]


def dropout_agrees(mesh: Mesh) -> float:
    """Dropout of each kind on the mesh against one rank, from one seed: the largest difference anywhere."""
    whole = torch.rand(2 * mesh.data, 5, 13, 9, dtype=torch.float64)
    mine = slice(2 * mesh.data_index, 2 * mesh.data_index + 2)
    differences = []
    for layer in (nn.Dropout(0.4), nn.Dropout2d(0.4), nn.AlphaDropout(0.4), nn.FeatureAlphaDropout(0.4)):
        torch.manual_seed(7)
        expected = layer(SpatialTensor(whole, (13, 9), Mesh(transport=Alone()))).local
        torch.manual_seed(7)
        found = layer(shard(whole[mine], mesh)).local
        assert 0.2 < (expected == expected.min()).double().mean() < 0.6 or 0.2 < (expected == 0).double().mean() < 0.6
        rows, columns = mesh.rectangle((13, 9))
        differences.append((found - expected[mine, :, slice(*rows), slice(*columns)]).abs().max().item())
    return MPI.COMM_WORLD.allreduce(max(differences), MPI.MAX)


for shape in MESHES:
    with started(*shape, threads=1, transport=sys.argv[1]) as mesh:
        for name, (make, size) in {**CASES, **(LOSSES if mesh.data == 1 else {})}.items():
            torch.manual_seed(0)
            model = make()
            if name == "SyncBatchNorm":
                model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
            images = torch.rand(2 * mesh.data, 3, *size, dtype=torch.float64) - 0.5
            try:
                worst = compare(model, images, mesh)[0]
            except Exception as error:
                error.add_note(f"case: {name}")
                raise
            if mesh.rank == 0:
                row = {"mesh": shape, "case": name, "error": worst.error, "worst": f"{worst.kind} {worst.name}"}
                print(json.dumps(row), flush=True)
        error = dropout_agrees(mesh)
        if mesh.rank == 0:
            print(json.dumps({"mesh": shape, "case": "dropout", "error": error}), flush=True)
