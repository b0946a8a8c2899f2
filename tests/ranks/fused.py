"""Layers as on a GPU, on real ranks without one: BatchNorm by its kernels, convolution and pooling of copied shards.
With an argument, the folder in which Triton is, small operations are its kernels, run by its interpreter.

Definitions stand in for the kernels, and refuse what they do.

CPUs have none of them. What CUDA's demand is in the docstring of `_fused_backward`.
"""

import itertools
import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"
sys.path += sys.argv[1:]

import torch
from mpi4py import MPI
from torch import nn
from torch.nn.utils import parametrize

from gigapipe.spatial import Mesh, decompose, kernels, shard
from gigapipe.spatial.check import compare
from gigapipe.spatial.operators import normalisation, regathered
from gigapipe.spatial.transports.mpi import MpiTransport

calls = []


def check(x, *statistics, weight=None, images=()):
    """As CUDA's kernels check, or read without checking."""
    precision = torch.promote_types(x.dtype, torch.float32)
    assert x.numel(), "an empty image"
    for v in statistics:
        assert v.dtype == precision and v.is_contiguous() and v.shape == (x.shape[1],), (v.dtype, v.shape)
    assert weight is None or (weight.dtype == precision and weight.is_contiguous()), weight.dtype
    for image in images:
        assert image.dtype == x.dtype and image.shape == x.shape
        assert normalisation.layout(image) == normalisation.layout(x), "the layout would be lost"


def channels(v):
    return v.view(1, -1, 1, 1)


def elemt(x, weight, bias, mean, invstd, eps):
    calls.append("elemt")
    check(x, mean, invstd, weight=weight)
    y = (x.to(mean.dtype) - channels(mean)) * channels(invstd)
    y = y if weight is None else y * channels(weight) + channels(bias)
    return torch.empty_like(x).copy_(y)


def backward_reduce(grad, x, mean, invstd, weight, for_x, for_weight, for_bias):
    calls.append("reduce")
    check(x, mean, invstd, weight=weight, images=[grad])
    assert weight is not None or not (for_weight or for_bias), "options() of an undefined weight"
    grad = grad.to(mean.dtype)
    dy, dy_xmu = grad.sum((0, 2, 3)), (grad * (x.to(mean.dtype) - channels(mean))).sum((0, 2, 3))
    return (
        dy,
        dy_xmu,
        (dy_xmu * invstd if for_weight else dy.new_empty(0)),
        (dy.clone() if for_bias else dy.new_empty(0)),
    )


def backward_elemt(grad, x, mean, invstd, weight, sum_dy, sum_dy_xmu, count):
    calls.append("backward")
    check(x, mean, invstd, sum_dy, sum_dy_xmu, weight=weight, images=[grad])
    assert count.dtype == torch.int32 and count.device == x.device
    total = count.sum().to(mean.dtype)
    from_mean, from_product = sum_dy / total, invstd**2 * sum_dy_xmu / total
    found = grad.to(mean.dtype) - channels(from_mean) - (x.to(mean.dtype) - channels(mean)) * channels(from_product)
    return torch.empty_like(x).copy_(found * channels(invstd if weight is None else invstd * weight))


torchs = torch.library.Library("aten", "IMPL", "CPU")
torchs.impl("batch_norm_elemt", elemt)
torchs.impl("batch_norm_backward_reduce", backward_reduce)
torchs.impl("batch_norm_backward_elemt", backward_elemt)
normalisation.FUSED, regathered.WITHOUT_COPY = {"cpu"}, set()
if sys.argv[1:]:
    kernels.DEVICES.add("cpu")
    copied = kernels.copy

    def copy(pairs, add=False, apart=True):
        """An interpreter runs one program after another: it would not show that two write to one place."""
        if not add:
            for number in (0, 1):
                for into, _ in pairs:
                    into.add_(1) if number else into.zero_()
            assert all((into == 1).all() for into, _ in pairs), "two parts go to one place"
        copied(pairs, add, apart)

    kernels.copy = copy

torch.set_num_threads(1)
transport = MpiTransport(MPI.COMM_WORLD)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def network(affine: bool = True, derived: bool = False) -> nn.Module:
    """With weights of a norm that are `derived`, of which each rank has the gradients of its shard."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1),
        nn.BatchNorm2d(6, affine=affine),
        nn.ReLU(),
        nn.MaxPool2d(2, 1, 1),
        nn.Conv2d(6, 4, 3, 2, 1),
        nn.BatchNorm2d(4, affine=affine, track_running_stats=affine),
        nn.ReLU(),  # or the mean behind would be that of normalised values, and all gradients zero
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    if derived:
        parametrize.register_parametrization(layers[1], "weight", Doubled())
    return layers


LAYOUTS, SIZES = [torch.contiguous_format, torch.channels_last], [(23, 18), (3, 4)]
cases = itertools.product([(1, 2, 1), (2, 1, 1)], LAYOUTS, [True, False], [False], SIZES)
if kernels.DEVICES:  # an interpreter is slow
    meshes = [(1, 2, 1), (1, 1, 2), (2, 1, 1)]
    cases = [(mesh, LAYOUTS[1], True, mesh == meshes[1], SIZES[0]) for mesh in meshes]
    cases.append((meshes[0], LAYOUTS[0], True, False, SIZES[1]))
for shape, layout, affine, derived, size in cases:
    mesh = Mesh(*shape, transport=transport)
    torch.manual_seed(1)
    images = torch.rand(2, 3, *size, dtype=torch.float64).contiguous(memory_format=layout)
    worst = compare(network(affine, derived).to(memory_format=layout), images, mesh)[
        0
    ]  # a rank owns nothing of the smallest
    if mesh.rank == 0:
        print(json.dumps({"case": f"{shape} {layout} {affine} {size}", "error": worst.error, "calls": len(calls)}))

# bfloat16 with float32 weights, as autocast has it, and with its own.
for weights in (torch.float32, torch.bfloat16):
    model = decompose(network().to(weights, memory_format=torch.channels_last), Mesh(1, 2, 1, transport=transport))
    image = shard(
        torch.rand(2, 3, 24, 16).to(weights).contiguous(memory_format=torch.channels_last), Mesh(1, 2, 1, transport)
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32):
        model(image).float().square().sum().backward()
    if MPI.COMM_WORLD.rank == 0:
        finite = all(p.grad.isfinite().all().item() and p.grad.dtype == weights for p in model.parameters())
        print(
            json.dumps({"case": f"bfloat16, weights {weights}", "error": 0.0 if finite else 1.0, "calls": len(calls)})
        )
