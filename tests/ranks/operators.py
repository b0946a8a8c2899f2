"""Single operations and small models on a mesh, against undivided torch."""

import torch
from spatial_cases import ALL_CASES, made
from torch import nn

from gigapipe.spatial import Mesh, SpatialTensor, shard
from gigapipe.spatial.check import compare
from gigapipe.spatial.transports import Alone


def case(mesh: Mesh, name: str) -> tuple[float, str]:
    """The largest error of a case of spatial_cases.py, and of what it is."""
    model = made(name)
    images = torch.rand(2 * mesh.data, 3, *ALL_CASES[name].size, dtype=torch.float64) - 0.5
    worst = compare(model, images, mesh)[0]
    return worst.error, f"{worst.kind} {worst.name}"


def dropout(mesh: Mesh) -> float:
    """Dropout of each kind on the mesh against one rank, from rank 0's seed: the largest difference here."""
    whole = torch.rand(2 * mesh.data, 5, 13, 9, dtype=torch.float64)
    mine = slice(2 * mesh.data_index, 2 * mesh.data_index + 2)
    differences = []
    for layer in (
        nn.Dropout(0.4), nn.Dropout2d(0.4), nn.AlphaDropout(0.4), nn.FeatureAlphaDropout(0.4),
        lambda x: torch.bernoulli(torch.full_like(x, 0.6)), lambda x: torch.rand_like(x).sub(0.4).relu(),
        lambda x: torch.randn_like(x).add(0.25).relu(),
    ):  # fmt: skip
        torch.manual_seed(7)
        expected = layer(SpatialTensor(whole, (13, 9), Mesh(transport=Alone()))).local
        torch.manual_seed(7 + mesh.rank)  # rank 0's counts
        found = layer(shard(whole[mine], mesh)).local
        assert 0.2 < (expected == expected.min()).double().mean() < 0.6 or 0.2 < (expected == 0).double().mean() < 0.6
        rows, columns = mesh.rectangle((13, 9))
        differences.append((found - expected[mine, :, slice(*rows), slice(*columns)]).abs().max().item())
    return max(differences)
