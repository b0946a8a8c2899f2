"""What operations say and show on a mesh."""

import warnings

import torch
from torch import nn

from gigapipe.spatial import Mesh, decompose, gather, shard


def gathering(mesh: Mesh) -> list[str]:
    """What a model says that flattens an image, in two steps."""
    model = decompose(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(120, 2)), mesh)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(2):
            model(shard(torch.rand(1, 3, 6, 5), mesh))
    return [str(w.message) for w in said]


def class_activation_map(mesh: Mesh) -> float:
    """Grad-CAM (Selvaraju et al., ICCV 2017) by hooks, on the mesh against undivided: the largest difference."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).double()
    image = torch.rand(1, 3, 21, 17, dtype=torch.float64)

    def found(image):
        seen = {}

        def look(layer, given, features):
            seen["features"] = features
            features.register_hook(lambda gradient: seen.update(gradient=gradient))

        with model[2].register_forward_hook(look):
            model(image)[0, 1].backward()
        weights = seen["gradient"].mean((2, 3), keepdim=True)
        return (weights * seen["features"]).sum(1).relu()

    expected = found(image)
    decompose(model, mesh)
    return (gather(found(shard(image, mesh))) - expected).abs().max().item()
