"""One rank against many: is a model's decomposition exact?"""

import copy
import importlib
import math
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.utils._pytree import tree_leaves

from gigapipe.spatial.decompose import decompose, synchronise_as_batch_norm
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.recording import Recorded
from gigapipe.spatial.sharding import gather, shard
from gigapipe.spatial.stream import Plan, stream
from gigapipe.spatial.tensor import SpatialTensor

TOLERANCE = 1e-10


class Difference(NamedTuple):
    """How far a decomposed quantity is from the undivided one: the largest difference over the largest value."""

    kind: str  # output, gradient, input gradient or statistics
    name: str
    error: float


def compare(model: nn.Module, images: torch.Tensor, mesh: Mesh, plan: Plan | None = None) -> list[Difference]:
    """Differences between `model` on the mesh and undivided, in float64 and training mode, the worst first.

    `images` (batch, channels, rows, columns) are the same on all ranks, a batch that the data ranks share out. Each
    rank computes the undivided model too. Compared are all outputs, every parameter's gradient, the input's gradient
    and every buffer. Dropout is switched off, for torch's own cannot be drawn in parts. With a `plan` the mesh's ranks
    stream their images. All ranks call it together.
    """
    undivided = copy.deepcopy(model).double().to(images.device).train()
    for module in undivided.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    ours = decompose(copy.deepcopy(undivided), mesh)
    synchronise_as_batch_norm(undivided)
    share = len(images) // mesh.data
    mine = slice(mesh.data_index * share, (mesh.data_index + 1) * share)
    whole = images.double().clone().requires_grad_()
    image = shard(images[mine].double(), mesh)
    image.local.requires_grad_()

    expected = tree_leaves(undivided(whole))
    found = tree_leaves(ours(stream(image, plan) if plan else image))
    found = [f.computed() if isinstance(f, Recorded) else f for f in found]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(e.shape, generator=generator, dtype=e.dtype).to(e.device) for e in expected]
    sum((e * w).sum() for e, w in zip(expected, weights, strict=True)).div(mesh.data).backward()
    sum((f * w[mine]).sum() for f, w in zip(found, weights, strict=True)).backward()

    differences = []

    def add(kind: str, pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
        # A value that should be zero is rounding alone: it is measured against the others of its kind.
        floor = 1e-3 * max((e.abs().max().item() for _, e in pairs.values() if e.numel()), default=0.0)
        for name, (f, e) in pairs.items():
            # Each rank compares what it holds; the worst of all ranks counts.
            worst = math.inf if f is None else (f - e).abs().max().item() if e.numel() else 0.0
            scale = max(e.abs().max().item() if e.numel() else 0.0, floor)
            table = torch.zeros(mesh.size, 2, dtype=torch.float64, device=images.device)
            table[mesh.rank, 0], table[mesh.rank, 1] = math.inf if math.isnan(worst) else worst, scale
            worst, scale = mesh.everyone.sum_(table).amax(0).tolist()
            differences.append(Difference(kind, name, worst / scale if scale else worst))

    def together(f, e):
        return (gather(f) if isinstance(f, SpatialTensor) else f).detach(), e[mine].detach()

    add("output", {str(i): together(f, e) for i, (f, e) in enumerate(zip(found, expected, strict=True))})
    mine_of_whole = whole.grad[(mine, ..., *(slice(*i) for i in mesh.rectangle(images.shape[-2:])))]
    add("input gradient", {"": (image.local.grad, mine_of_whole)})
    theirs = dict(undivided.named_parameters())
    trained = {n: (p.grad, theirs[n].grad) for n, p in ours.named_parameters() if theirs[n].grad is not None}
    add("gradient", trained)
    theirs = dict(undivided.named_buffers())
    add("statistics", {n: (b.double(), theirs[n].double()) for n, b in ours.named_buffers()})
    return sorted(differences, key=lambda d: d.error, reverse=True)


def load(name: str) -> Callable[[], nn.Module]:
    """The function `package.module:function`, called without arguments for a model.

    Raises ValueError if there is none.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name}: {error}; give a model as package.module:function") from error


def check(
    name: str, size: tuple[int, int], shape: tuple[int, int, int], batch: int = 2, tile: int | None = None
) -> list[Difference]:
    """`compare` the model that the function `name` makes on random images of `size`, on ranks started here.

    `shape` is the mesh's data, rows and columns; `batch` images a data rank. With a `tile` the ranks stream their
    images, by tiles of so many pixels a side. Raises ValueError if `name` names no model, and RuntimeError with the
    first rank's message if a rank fails.
    """
    sys.path.insert(0, "")
    load(name)
    ranks = shape[0] * shape[1] * shape[2]
    with tempfile.TemporaryDirectory() as folder:
        arguments = (folder, name, size, shape, batch, tile)
        context = torch.multiprocessing.spawn(_rank, arguments, nprocs=ranks, join=False)
        try:
            while not context.join():
                pass
        except Exception as error:
            failed = sorted(Path(folder).glob("failed-*"))
            raise RuntimeError(f"{name}: {failed[0].read_text() if failed else error}") from error
        return [Difference(*row) for row in torch.load(Path(folder, "differences"), weights_only=True)]


def _rank(rank: int, folder: str, name: str, size, shape, batch: int, tile: int | None) -> None:
    ranks = shape[0] * shape[1] * shape[2]
    store = dist.FileStore(str(Path(folder, "store")), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(minutes=5))
    torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
    try:
        sys.path.insert(0, "")
        torch.manual_seed(0)
        model = load(name)()
        first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        images = torch.rand(batch * shape[0], first.in_channels if first else 3, *size, dtype=torch.float64)
        differences = compare(model, images, Mesh(*shape), Plan(tile) if tile else None)
    except Exception as error:
        Path(folder, f"failed-{rank}").write_text(
            str(error) if isinstance(error, NotImplementedError | ValueError) else traceback.format_exc()
        )
        raise
    if rank == 0:
        torch.save([tuple(d) for d in differences], Path(folder, "differences"))
    dist.barrier()
    # As a forked child ends. The interpreter's own end would race with gloo's threads, which give back the barrier's
    # tensors to it: now and then they abort the process.
    os._exit(0)
