"""What stands between a rank's training step and a CUDA graph, or torch.compile; looked for without a GPU.

    python benchmarks/graphs.py

A CUDA graph records what a step starts on the device. It refuses what makes the host wait, and copies from memory of
the host that is not pinned. Both are listed by where in gigapipe they are, for a second step: ResNet-18 on 8 × 8 ranks
of one image, on 2 × 2 × 2, and the U-Net with Dice on 2 × 2. Then whether torch traces a step of one rank on the CPU
into one graph (make_fx), and what torch.compile says of the same model.
"""

# ruff: noqa: E402  torch comes after fake_cuda
import collections
import math
import subprocess
import sys
import warnings

from fake_cuda import CUDA, interior, mesh_of, pretended, where  # before torch

# isort: split
import torch
import torch.nn.functional as F
from made_slides import Slides
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from watch import SETTINGS, step, trainable

from gigapipe.models import resnet18
from gigapipe.spatial import Mesh, SpatialTensor, decompose, shard
from gigapipe.training.segmentation import Segmentation, SegmenterSettings

aten = torch.ops.aten
SIZE = 2048
MESHES = {"ResNet-18, 1 × 8 × 8": (1, 8, 8), "ResNet-18, 2 × 2 × 2": (2, 2, 2), "U-Net, 1 × 2 × 2": (1, 2, 2)}


class Copies(TorchDispatchMode):
    """Counts copies from the host to the device, by where they are."""

    def __init__(self):
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if function in (aten._to_copy.default, aten.copy_.default) and made.is_cuda and not args[-1].is_cuda:
            self.found[where()] += 1
        return made


def one(name: str) -> None:
    """A second step on the fake device; once a process."""
    shape = MESHES[name]
    with pretended(interior(shape), math.prod(shape)) as watch:
        mesh = mesh_of(shape)
        if name.startswith("U-Net"):
            slides = Slides(1, SIZE, mesh)
            task = Segmentation(SegmenterSettings(**SETTINGS), slides, slides, mesh, None)
            steps = [lambda: task.backward([0], 0)] * 2
        else:
            trained, own = trainable(lambda: resnet18(2), mesh), mesh.rectangle((SIZE, SIZE)).shape
            pixels = torch.zeros(1, 3, *own, device=CUDA).contiguous(memory_format=torch.channels_last)
            steps = [lambda: step(*trained, SpatialTensor(pixels, (SIZE, SIZE), mesh), mesh)] * 2
        steps[0]()
        watch.reset()
        with Copies() as copies:
            steps[1]()
    print(f"{name}: the host waits {dict(watch.syncs)}; copies from the host {dict(copies.found)}")


def traced() -> None:
    model, mesh = decompose(resnet18(2, width=8), Mesh()), Mesh()

    def gradients(pixels: torch.Tensor):
        loss = F.cross_entropy(model(SpatialTensor(pixels, (96, 96), mesh)), torch.tensor([0]))
        return torch.autograd.grad(loss, list(model.parameters()))

    graph = make_fx(gradients, tracing_mode="fake", _allow_non_fake_inputs=True)(torch.rand(1, 3, 96, 96)).graph
    print(f"make_fx: a step of one rank is one graph of {len(graph.nodes)} operations")
    try:
        torch.compile(model, backend="eager")(shard(torch.rand(1, 3, 96, 96), mesh))
        print("torch.compile: the model runs, uncompiled")
    except Exception as error:
        print(f"torch.compile: {type(error).__name__}: {' '.join(str(error).split())[:230]}")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    if len(sys.argv) > 1:
        one(sys.argv[1])
    else:
        for name in MESHES:
            subprocess.run([sys.executable, __file__, name], check=True)
        traced()
