"""Streaming: tile by tile is the undivided computation, whatever the tiles, the segments and the ranks."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from spatial_models import OPERATORS
from torch import nn

from gigapipe.models import resnet18
from gigapipe.spatial import Mesh, NotDecomposed, Plan, decompose, plan_streaming, shard, stream

TOLERANCE = 1e-10


def errors(model: nn.Module, image: torch.Tensor, plan: Plan, loss=None) -> dict[str, float]:
    """How far loss, gradients and buffers are from the undivided ones, over the largest value of each."""
    loss = loss or (lambda y: y.square().mean())
    undivided, ours = copy.deepcopy(model), decompose(copy.deepcopy(model), Mesh())
    whole, held = image.clone().requires_grad_(), shard(image.clone(), Mesh())
    held.local.requires_grad_()
    expected, found = loss(undivided(whole)), loss(ours(stream(held, plan)))
    expected.backward()
    found.backward()
    pairs = {"loss": (found, expected), "input": (held.local.grad, whole.grad)}
    theirs = dict(undivided.named_parameters())
    pairs |= {name: (p.grad, theirs[name].grad) for name, p in ours.named_parameters()}
    buffers = dict(undivided.named_buffers())
    pairs |= {name: (b.double(), buffers[name].double()) for name, b in ours.named_buffers()}
    # What should be zero (a bias before a norm) is measured against the others.
    floor = 1e-3 * max(e.abs().max().item() for _, e in pairs.values())
    return {name: ((f - e).abs().max() / max(e.abs().max(), floor)).item() for name, (f, e) in pairs.items()}


def network(depth: int = 18) -> nn.Module:
    """A ResNet in float64 whose BatchNorms are frozen, with statistics that do something."""
    torch.manual_seed(0)
    model = resnet18(2).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model


@pytest.mark.parametrize(
    "plan",
    [
        Plan(tile=64),
        Plan(tile=1000),
        Plan(tile=50, kept=frozenset({4, 18})),
        Plan(tile=77, kept=frozenset({11}), whole_from=35),
        Plan(whole_from=0),
    ],
    ids=["one segment", "one tile", "three segments", "whole from layer 3", "whole"],
)
def test_resnet18_of_an_odd_size_is_exact(plan):
    image = torch.randn(1, 3, 237, 191, dtype=torch.float64)
    found = errors(network(), image, plan)
    assert max(found.values()) <= TOLERANCE, found
