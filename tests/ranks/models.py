"""Whole networks on a mesh. Each case returns the error of its figures, by name."""

import contextlib
import copy
import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from monai.networks.nets import BasicUNet, ResNet, UNet
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from gigapipe.models import resnet18
from gigapipe.models.efficientnet import EfficientNetLite0
from gigapipe.spatial import Mesh, SpatialTensor, average_gradients, decompose, gather, late_gradients, shard
from gigapipe.spatial import late as late_sums
from gigapipe.spatial.check import compare
from gigapipe.spatial.transports import Alone
from gigapipe.training.loop import step
from gigapipe.training.loss_scale import LossScale
from gigapipe.training.optimizer import AdamW


def monai_resnet():
    return ResNet("basic", [1, 1, 1, 1], [8, 16, 32, 64], spatial_dims=2, n_input_channels=3, num_classes=3)


def monai_unet(norm="batch"):
    return UNet(2, 3, 2, channels=(8, 16, 32), strides=(2, 2), num_res_units=2, norm=norm, act="prelu")


def monai_basic_unet():
    # Two levels of pooling are two halvings and a bit: it pads what does not divide, by replication.
    return BasicUNet(2, 3, 2, features=(8, 8, 16, 16, 32, 8), upsample="nontrainable")


def unet_of_the_docs():
    return runpy.run_path(str(Path(__file__).parents[2] / "docs/examples/own_unet.py"))["UNet"](3)


MODELS = {
    "MONAI ResNet": (monai_resnet, (97, 66)),
    "MONAI UNet": (monai_unet, (64, 48)),
    "MONAI UNet, instance norm": (lambda: monai_unet("instance"), (64, 48)),
    "MONAI BasicUNet": (monai_basic_unet, (70, 51)),
    "EfficientNet-Lite0": (lambda: EfficientNetLite0("batch"), (97, 66)),
    "U-Net of the docs": (unet_of_the_docs, (37, 50)),
}


def foreign(mesh, name: str) -> float:
    """A network of others against itself undivided: the largest error of outputs, gradients and statistics."""
    make, size = MODELS[name]
    torch.manual_seed(0)
    return compare(make(), torch.rand(2, 3, *size, dtype=torch.float64), mesh)[0].error


def difference(ours, theirs) -> float:
    """The largest difference, relative to each tensor's largest value, or to a thousandth of the largest of all."""
    ours, theirs = [x.detach().double() for x in ours], [x.detach().double() for x in theirs]
    floor = 1e-3 * max(x.abs().max() for x in theirs)
    scaled = [(a - b).abs().max() / torch.maximum(b.abs().max(), floor) for a, b in zip(ours, theirs, strict=True)]
    return torch.stack(scaled).max().item()


def train(model, image, target, steps, precision=None):
    """The same steps for both; gradients come averaged from the decomposed model."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = F.cross_entropy(model(image).float() if precision else model(image), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.detach()


def twenty_steps(mesh):
    torch.manual_seed(0)
    undivided = monai_unet().double()
    ours = decompose(copy.deepcopy(undivided), mesh)
    start = copy.deepcopy(list(ours.parameters()))
    images = torch.rand(2, 3, 64, 48, dtype=torch.float64)
    targets = torch.randint(0, 2, (2, 64, 48))
    train(undivided, images, targets, 20)
    train(ours, shard(images, mesh), targets, 20)
    moved = difference(ours.parameters(), start)
    return {"moved": moved, "error": difference(ours.state_dict().values(), undivided.state_dict().values())}


def mixed_precision(mesh, lower: str):
    """16 bits on the mesh are as far from float64 as 16 bits undivided are."""
    torch.manual_seed(0)
    exact = resnet18(2, width=16)
    plain, ours = copy.deepcopy(exact), decompose(copy.deepcopy(exact), mesh)
    exact = exact.double()
    images, labels = torch.rand(2, 3, 96, 80), torch.tensor([0, 1])
    F.cross_entropy(exact(images.double()), labels).backward()
    for model, image in ((plain, images), (ours, shard(images, mesh))):
        with torch.autocast("cpu", getattr(torch, lower)):
            loss = F.cross_entropy(model(image).float(), labels)
        loss.backward()

    def distance(model):
        pairs = list(zip(model.parameters(), exact.parameters(), strict=True))
        square = sum((p.grad.double() - e.grad).square().sum() for p, e in pairs)
        return (square / sum(e.grad.square().sum() for _, e in pairs)).sqrt().item()

    return {"ours": distance(ours), "plain": distance(plain)}


def overflowing(mesh):
    """Steps in float16, in the second of which a gradient of rank 1 is infinite; and the same steps undivided."""

    def steps(mesh, own: slice) -> dict:
        torch.manual_seed(0)
        model = decompose(resnet18(2, "group", width=8), mesh)
        images, labels = torch.rand(2, 3, 64, 48), torch.tensor([0, 1])
        optimizer = AdamW(model.parameters(), lr=1e-3, fused=True)
        scale = LossScale({"factor": 1024.0, "steps_since_change": 0, "steps_skipped": 0})

        def backward(indices, epoch, factor):
            with torch.autocast("cpu", torch.float16):
                loss = F.cross_entropy(model(shard(images[own], mesh)).float(), labels[own])
            (loss * factor).backward()
            if epoch == 1 and mesh.size > 1 and mesh.rank == 1:
                next(model.parameters()).grad[0] = math.inf
            return loss.item()

        settings = SimpleNamespace(seed=0, precision="float16")
        task = SimpleNamespace(mesh=mesh, model=model, backward=backward, settings=settings)
        found = {"factors": [scale.factor], "moved": [], "losses": []}
        for epoch in range(3):
            before = torch.cat([p.detach().flatten() for p in model.parameters()])
            loss = torch.tensor(step(task, optimizer, 1e-3, [[0]], epoch, scale))
            found["losses"].append(mesh.everyone.sum_(loss).item() / mesh.size)
            after = torch.cat([p.detach().flatten() for p in model.parameters()])
            found["moved"].append(not torch.equal(before, after))
            found["factors"].append(scale.factor)
        return found | {"weights": after.tolist()}

    ours, undivided = (
        steps(mesh, slice(mesh.data_index, mesh.data_index + 1)),
        steps(Mesh(transport=Alone()), slice(0, 2)),
    )
    return ours | {"undivided": abs(ours["losses"][0] / undivided["losses"][0] - 1)}


class Again(torch.nn.Module):
    """A block after dropout, whose activations are kept or computed again."""

    def __init__(self, block, again: bool):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Dropout(0.3), block)
        self.again = again

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False) if self.again else self.inner(x)


def activation_checkpointing(mesh):
    """Blocks computed again in the backward pass give the same gradients, where ranks own nothing of them too."""
    grads = []
    for again in (False, True):
        torch.manual_seed(0)
        model = resnet18(2).double()
        for layer in (model.layer1, model.layer3, model.layer4):
            layer[1] = Again(layer[1], again)
        images = torch.rand(2, 3, 96, 30, dtype=torch.float64)
        decompose(model, mesh)(shard(images, mesh)).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    return {"error": difference(*grads)}


def over_device_mesh(mesh):
    """A mesh from torch's DeviceMesh, and DistributedDataParallel over it instead of our own averaging."""
    mesh = Mesh.of(init_device_mesh("cpu", (2, 1, 3), mesh_dim_names=("data", "rows", "columns")))
    torch.manual_seed(0)
    undivided = monai_resnet().double()
    ours = DistributedDataParallel(copy.deepcopy(undivided), broadcast_buffers=False)
    images, labels = torch.rand(4, 3, 66, 64, dtype=torch.float64), torch.arange(4) % 3
    mine = slice(2 * mesh.data_index, 2 * mesh.data_index + 2)
    F.cross_entropy(undivided(images), labels).backward()
    F.cross_entropy(ours(shard(images[mine], mesh)), labels[mine]).backward()
    grads = [[p.grad.clone() for p in model.parameters()] for model in (ours, undivided)]
    average_gradients(ours.parameters(), mesh)  # of what is averaged already: nothing changes
    twice = [p.grad for p in ours.parameters()]
    return {"error": difference(*grads), "averaged twice": difference(twice, grads[1])}


def unfrozen(mesh):
    """What is frozen when the model is decomposed, and trained later, gets its gradients too."""
    torch.manual_seed(0)
    undivided = monai_resnet().double()
    ours = decompose(copy.deepcopy(undivided).requires_grad_(False), mesh).requires_grad_()
    images = torch.rand(2, 3, 66, 64, dtype=torch.float64)
    undivided(images).square().mean().backward()
    ours(shard(images, mesh)).square().mean().backward()
    return {"error": difference(*([p.grad for p in m.parameters()] for m in (ours, undivided)))}


def accumulation(mesh):
    """Two backward passes before a step, and back to a plain state_dict."""
    torch.manual_seed(0)
    undivided = monai_resnet().double()
    names = list(undivided.state_dict())
    ours = decompose(copy.deepcopy(undivided), mesh)
    for _ in range(2):
        images = torch.rand(2, 3, 66, 64, dtype=torch.float64)
        undivided(images).square().mean().backward()
        ours(shard(images, mesh)).square().mean().backward()
    grads = [[p.grad for p in model.parameters()] for model in (ours, undivided)]
    assert list(ours.state_dict()) == names
    undivided.load_state_dict(ours.state_dict())
    images = torch.rand(1, 3, 21, 34, dtype=torch.float64)
    image = shard(images, mesh)
    assert isinstance(image, SpatialTensor) and torch.equal(gather(image), images)
    evaluation = difference([ours.eval()(image)], [undivided.eval()(images)])
    return {"error": difference(*grads), "evaluation": evaluation}


class Tied(torch.nn.Module):
    """A convolution that is used twice, and whose weight pooled features meet, too."""

    def __init__(self):
        super().__init__()
        more = [torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(4)]
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), *more)
        self.again, self.head = torch.nn.Conv2d(8, 8, 1), torch.nn.Linear(8, 3)

    def forward(self, x):
        pooled = self.again(self.again(self.stem(x)).relu()).mean((2, 3))
        return self.head(F.linear(pooled, self.again.weight[..., 0, 0]))


def late(mesh):
    """Two passes whose gradients are put off, and summed once: the same as at once, in fewer sums, by several buckets.

    A hook sees its gradient complete all the same.
    """
    torch.manual_seed(0)
    model = decompose(Tied().double(), mesh)
    batches = [(torch.rand(2, 3, 21, 18, dtype=torch.float64), torch.randint(3, (2,))) for _ in range(2 * mesh.data)]
    seen: list[torch.Tensor] = []
    model.again.bias.register_hook(seen.append)
    everyone, before = mesh.everyone, late_sums.BUCKET
    summed, grads, sums = [], [], []
    for passes in (None, 2, 1, 3):  # at once; as many as are announced, fewer, and more
        model.zero_grad()
        everyone.sum_, everyone.begin_sum = counting(everyone, "sum_", summed), counting(everyone, "begin_sum", summed)
        late_sums.BUCKET = 10_000  # bytes: two of the large weights
        with contextlib.nullcontext() if passes is None else late_sums.step_of_passes(mesh, passes):
            for number in range(2):
                images, labels = batches[2 * mesh.data_index + number]
                loss = F.cross_entropy(model(shard(images, mesh)), labels) + model.stem[0].weight.square().sum()
                with contextlib.nullcontext() if passes is None else late_gradients(mesh):
                    loss.backward()
        del everyone.sum_, everyone.begin_sum
        late_sums.BUCKET = before
        grads.append([p.grad for p in model.parameters()])
        sums.append(len(summed))
        summed.clear()
    hooked = torch.stack(seen).view(len(grads), -1)
    return {
        "error": max(difference(g, grads[0]) for g in grads[1:]),
        "hooked": difference(list(hooked[1:]), [hooked[0]] * 3),
        "sums": sums,
        "closed": late_sums._OPEN == late_sums._ABANDONED == [],
    }


def counting(transport, name: str, called: list):
    real = getattr(transport, name)

    def counted(x):
        called.append(name)
        return real(x)

    return counted
