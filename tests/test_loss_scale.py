"""Loss scaling for float16: torch's own decisions, made by all ranks together, and gone on with after a stop."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gigapipe.errors import InputError
from gigapipe.spatial import Mesh, Plan, decompose, shard, stream
from gigapipe.training import loss_scale
from gigapipe.training.loss_scale import LossScale, overflow


def test_it_grows_and_falls_as_torch_s_does(monkeypatch):
    monkeypatch.setattr(loss_scale, "GROWS_AFTER", 3)
    theirs = torch.amp.GradScaler("cpu", growth_interval=3)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    ours = LossScale({})
    for step in range(12):
        gradient = torch.tensor([1.0, math.inf if step in (1, 6) else math.nan if step == 7 else 2.0])
        weight.grad = theirs.scale(gradient)
        before = weight.detach().clone()
        theirs.step(optimizer)
        theirs.update()
        scaled = [gradient * ours.factor]
        ours = LossScale(dict(ours.held))  # as a checkpoint goes on
        made = ours.unscale(scaled, overflow(scaled, Mesh()))
        assert ours.factor == theirs.get_scale(), step
        assert made == (not weight.detach().equal(before)), step
        assert not made or scaled[0].equal(gradient)
    assert ours.held["steps_skipped"] == 3


def test_what_no_factor_helps_is_refused():
    scale = LossScale({})
    with pytest.raises(InputError, match="not finite, though the loss is scaled by 1.52588e-05; lower the learning"):
        for _ in range(40):
            scale.unscale([], True)


def test_a_step_that_overflows_is_skipped_on_all_ranks(ranks):
    """By the gradient of one rank alone."""
    found = ranks("models.overflowing", mesh=(2, 1, 2))
    for row in found:
        assert row["factors"] == [1024, 1024, 512, 512], row
        assert row["moved"] == [True, False, True] and row["losses"][-1] < row["losses"][0], row
        assert row["weights"] == found[0]["weights"] and row["undivided"] < 0.01, row


def test_a_streamed_image_has_its_gradients_in_float16():
    """As near to those in float64 as a held image's are. Half of it is white, for which one pixel stands."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    network.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)])
    pixels = torch.rand(1, 3, 96, 96)
    pixels[..., 40:] = 1.0

    def gradients(image, dtype=torch.float16, scale=2.0**12) -> torch.Tensor:
        model = decompose(copy.deepcopy(network), Mesh()).to(image.dtype)
        with torch.autocast("cpu", dtype, enabled=dtype == torch.float16):
            logits = model(image)
        (F.cross_entropy(logits.float(), torch.tensor([1])) * scale).backward()
        return torch.cat([p.grad.double().flatten() for p in model.parameters()]) / scale

    exact = gradients(shard(pixels.double(), Mesh()), torch.float64)
    held, streamed = (
        (gradients(image) - exact).norm() / exact.norm()
        for image in (shard(pixels, Mesh()), stream(shard(pixels, Mesh()), Plan(tile=32)))
    )
    assert streamed < 4 * held < 0.01, (streamed, held)
