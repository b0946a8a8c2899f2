"""The audit's cases in torch: undivided, with gigapipe.spatial, and with DTensor."""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from audit_cases import Case, Layer
from audit_reports import Found, report
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor

from gigapipe.spatial import Mesh, SpatialTensor, decompose, gather, shard


class Shortcut(nn.Module):
    def __init__(self, body: list[Layer], beside: list[Layer]):
        super().__init__()
        self.body, self.beside = sequential(body), sequential(beside)

    def forward(self, x):
        return (self.body(x) + self.beside(x)).relu()


def sequential(layers: list[Layer]) -> nn.Sequential:
    return nn.Sequential(*(getattr(nn, kind, Shortcut)(**arguments) for kind, arguments in layers))


def made(case: Case) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """The network with its weights, the images, which want a gradient, and the target."""
    arrays = {name: torch.from_numpy(array) for name, array in case.arrays().items()}
    image, target = arrays.pop("image").requires_grad_(), arrays.pop("target")
    network = sequential(case.layers).double()
    missing, unexpected = network.load_state_dict(arrays, strict=False)
    assert not unexpected and all("running" in name or "tracked" in name for name in missing), (missing, unexpected)
    return network, image, target


def undivided(case: Case) -> Found:
    network, image, target = made(case)
    output = network(image)
    loss = (output - target).square().mean()
    loss.backward()
    return found(network, loss, output, image.grad)


def ours(case: Case) -> tuple[Found, list[str]]:
    mesh = Mesh(rows=case.mesh[0], columns=case.mesh[1])
    network, image, target = made(case)
    network = decompose(network, mesh)
    whole = watched(network, case, lambda x: x.local if isinstance(x, SpatialTensor) else x)
    output = network(shard(image, mesh))
    divided = isinstance(output, SpatialTensor)
    loss = (output - (shard(target, mesh) if divided else target)).square().mean()
    loss.backward()
    return found(network, loss, gather(output) if divided else output, image.grad), whole


def dtensor(case: Case) -> tuple[Found, list[str]]:
    """Rows and columns sharded; weights, and what has no rows, replicated."""
    mesh = init_device_mesh("cpu", case.mesh, mesh_dim_names=("rows", "columns"))
    network, image, target = made(case)
    network = distribute_module(network, mesh)
    whole = watched(network, case, DTensor.to_local)
    image = distribute_tensor(image.detach(), mesh, [Shard(2), Shard(3)]).requires_grad_()
    output = network(image)
    placed = [Shard(2), Shard(3)] if target.dim() == 4 else [Replicate(), Replicate()]
    loss = (output - distribute_tensor(target, mesh, placed)).square().mean()
    loss.backward()
    return found(network, loss, output, image.grad), whole


def watched(network: nn.Sequential, case: Case, local: Callable) -> list[str]:
    """What layers leave whole on this rank, filled as the network runs; `local` is what a rank has of a tensor."""
    whole = []

    def look(layer: int, _, inputs, output):
        held, shape = local(output).shape[2:], case.shapes[layer + 1][2:]
        whole.extend(case.left_whole(layer, [h == n for h, n in zip(held, shape, strict=True)]))

    for i, layer in enumerate(network):
        layer.register_forward_hook(functools.partial(look, i))
    return whole


def found(network: nn.Module, loss, output, of_image) -> Found:
    """All that a case has, gathered; what has no gradient is missing."""
    tensors = {"loss": loss, "output": output, "image": of_image}
    tensors |= {name: p.grad for name, p in network.named_parameters()}
    whole = {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in tensors.items() if x is not None}
    return {name: x.detach().numpy() for name, x in whole.items()}


if __name__ == "__main__":
    library, folder, rank, ranks = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    report({"ours": ours, "dtensor": dtensor}[library], folder, rank)
    os._exit(0)  # gloo's threads now and then abort the interpreter's own end
