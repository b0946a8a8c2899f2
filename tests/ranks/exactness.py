"""Decomposed training against undivided training, in float64."""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F

from gigapipe.models import resnet18
from gigapipe.spatial import SpatialTensor, decompose
from gigapipe.spatial.halo import gather_halo
from gigapipe.spatial.window import Window


def shard(x, mesh):
    rows, columns = mesh.rectangle(x.shape[-2:])
    return x[..., slice(*rows), slice(*columns)].contiguous()


def worst(ours, theirs):
    """Largest difference of any pair of tensors, relative to the largest entry of the second."""
    differences = [(a - b).abs().max() / b.abs().max().clamp_min(1e-300) for a, b in zip(ours, theirs, strict=True)]
    return torch.stack(differences).max().item()  # unlike Python's max, it lets no NaN pass


class Trained(NamedTuple):
    """Three steps of SGD with momentum: what is compared."""

    loss: torch.Tensor
    """Of the first step."""
    gradients: list[torch.Tensor]
    """Of the first step."""
    weights: list[torch.Tensor]
    statistics: list[torch.Tensor]
    evaluation: torch.Tensor


def data(images: int, size) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.rand(images, 3, *size, dtype=torch.float64), torch.arange(images) % 2


def network(width: int) -> torch.nn.Module:
    """ResNet-18 with trainable BatchNorm."""
    torch.manual_seed(0)
    return resnet18(2, width=width).double()


def trained(model, images, labels) -> Trained:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for step in range(3):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        if step == 0:
            first = loss.detach(), [p.grad.clone() for p in model.parameters()]
        optimizer.step()
    with torch.no_grad():
        evaluation = model.eval()(images)
    weights = [p.detach() for p in model.parameters()]
    return Trained(*first, weights, [b.double() for b in model.buffers()], evaluation)


@functools.lru_cache(maxsize=2)  # of the last size, with one data rank and with two
def undivided(images: int, size, width: int) -> Trained:
    return trained(network(width), *data(images, size))


def training(mesh, size, width: int) -> tuple[int, dict[str, float]]:
    """A checksum of this rank's weights; and on rank 0 the errors against undivided training, by name."""
    images, labels = data(2 * mesh.data, size)
    mine = slice(2 * mesh.data_index, 2 * mesh.data_index + 2)
    ours = trained(decompose(network(width), mesh), SpatialTensor(shard(images[mine], mesh), size, mesh), labels[mine])
    loss = mesh.everyone.sum_(ours.loss.clone()) / mesh.size
    checksum = sum(w.view(torch.int64).sum().item() for w in ours.weights)
    if mesh.rank:
        return checksum, {}
    theirs = undivided(len(images), size, width)
    return checksum, {
        "loss": abs(loss / theirs.loss - 1).item(),
        "gradients": worst(ours.gradients, theirs.gradients),
        "weights": worst(ours.weights, theirs.weights),
        "statistics": worst(ours.statistics, theirs.statistics),
        "evaluation": worst([ours.evaluation], [theirs.evaluation[mine]]),
    }


def adjoint_of_halo(mesh, size, window: Window) -> float:
    """⟨Fx, y⟩ against ⟨x, F*y⟩, summed over ranks, where F gathers the halo."""
    torch.manual_seed(mesh.rank)
    owned = mesh.rectangle(size)
    x = torch.rand(1, 2, *owned.shape, dtype=torch.float64, requires_grad=True)
    gathered = gather_halo(x, owned, mesh, size, (window, window))
    y = torch.rand_like(gathered)
    (adjoint,) = torch.autograd.grad(gathered, x, y)
    products = torch.stack([(gathered * y).sum(), (x * adjoint).sum()]).detach()
    forward, backward = mesh.everyone.sum_(products).tolist()
    return abs(forward / backward - 1)


def normalise_without_affine(mesh) -> float:
    """BatchNorm without weight and bias, of an image with a large mean, against torch's own: output and gradient."""
    torch.manual_seed(0)
    whole = (100 + torch.rand(mesh.data, 3, 9, 7, dtype=torch.float64)).requires_grad_()
    norms = [torch.nn.BatchNorm2d(3, affine=False).double() for _ in range(2)]
    expected = norms[0](whole)
    (expected**3).sum().backward()
    mine = slice(mesh.data_index, mesh.data_index + 1)
    local = shard(whole.detach()[mine], mesh).requires_grad_()
    found = norms[1](SpatialTensor(local, (9, 7), mesh))
    (found.local**3).sum().backward()
    return worst(
        [found.local.detach(), local.grad, norms[1].running_var],
        [shard(expected.detach()[mine], mesh), shard(whole.grad[mine], mesh), norms[0].running_var],
    )
