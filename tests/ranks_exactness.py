"""Run under mpiexec: decomposed training against undivided training, in float64. Prints one JSON object a case."""

import copy
import json

import torch
import torch.nn.functional as F
from mpi4py import MPI

from gigapipe.models import resnet18
from gigapipe.spatial import SpatialTensor, decompose
from gigapipe.spatial.halo import gather_halo
from gigapipe.spatial.window import Window
from gigapipe.training.ranks import started

RANKS = MPI.COMM_WORLD.size
# data, rows, columns; and image sizes: even, odd, and so small that some ranks own nothing of the last layers.
MESHES = {1: [(1, 1, 1)], 2: [(1, 2, 1), (1, 1, 2), (2, 1, 1)], 4: [(1, 2, 2), (1, 4, 1), (2, 1, 2)]}[RANKS]
SIZES = [(96, 96), (101, 77), (40, 33)]


def shard(x, mesh):
    rows, columns = mesh.rectangle(x.shape[-2:])
    return x[..., slice(*rows), slice(*columns)].contiguous()


def worst(ours, theirs):
    """Largest difference of any pair of tensors, relative to the largest entry of the second."""
    differences = [(a - b).abs().max() / b.abs().max().clamp_min(1e-300) for a, b in zip(ours, theirs, strict=True)]
    return torch.stack(differences).max().item()  # unlike Python's max, it lets no NaN pass


def train_against_undivided(mesh, size):
    """ResNet-18 with trainable BatchNorm, two images a data rank, three steps of SGD with momentum."""
    torch.manual_seed(0)
    undivided = resnet18(2).double()
    ours = decompose(copy.deepcopy(undivided), mesh)
    images = torch.rand(2 * mesh.data, 3, *size, dtype=torch.float64)
    labels = torch.arange(2 * mesh.data) % 2
    mine = slice(2 * mesh.data_index, 2 * mesh.data_index + 2)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9) for m in (ours, undivided)]
    result = {}
    for step in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = F.cross_entropy(ours(SpatialTensor(shard(images[mine], mesh), size, mesh)), labels[mine])
        loss.backward()
        reference = F.cross_entropy(undivided(images), labels)
        reference.backward()
        if step == 0:
            mean_loss = mesh.everyone.sum_(loss.detach().clone()) / mesh.size
            result["loss"] = abs(mean_loss / reference.detach() - 1).item()
            result["gradient"] = worst(*([p.grad for p in m.parameters()] for m in (ours, undivided)))
        for optimizer in optimizers:
            optimizer.step()
    result["weights"] = worst(ours.parameters(), undivided.parameters())
    result["statistics"] = worst(*([b.double() for b in m.buffers()] for m in (ours, undivided)))
    with torch.no_grad():
        evaluated = ours.eval()(SpatialTensor(shard(images[mine], mesh), size, mesh))
        result["evaluation"] = worst([evaluated], [undivided.eval()(images)[mine]])
    return result


def adjoint_of_halo(mesh, size, windows):
    """⟨Fx, y⟩ against ⟨x, F*y⟩, summed over ranks, where F gathers the halo."""
    torch.manual_seed(mesh.rank)
    x = torch.rand(1, 2, *mesh.rectangle(size).shape, dtype=torch.float64, requires_grad=True)
    gathered = gather_halo(x, mesh, size, windows)
    y = torch.rand_like(gathered)
    (adjoint,) = torch.autograd.grad(gathered, x, y)
    products = torch.stack([(gathered * y).sum(), (x * adjoint).sum()]).detach()
    forward, backward = mesh.everyone.sum_(products).tolist()
    return abs(forward / backward - 1)


def normalise_without_affine(mesh):
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


for mesh_shape in MESHES:
    with started(*mesh_shape, threads=1) as mesh:
        for size in SIZES if mesh_shape == MESHES[0] else SIZES[1:]:
            case = train_against_undivided(mesh, size)
            if mesh.rank == 0:
                print(json.dumps({"mesh": mesh_shape, "size": size, **case}), flush=True)
        error = normalise_without_affine(mesh)
        if mesh.rank == 0:
            print(json.dumps({"mesh": mesh_shape, "norm": error}), flush=True)
        if mesh.image_ranks > 1:
            for window in (Window(7, 2, (3, 3)), Window(3, 2, (1, 1)), Window(3, 1, (20, 0), dilation=9)):
                error = adjoint_of_halo(mesh, (37, 29), (window, window))
                if mesh.rank == 0:
                    print(json.dumps({"mesh": mesh_shape, "adjoint": error, "window": str(window)}), flush=True)
