"""Loss scaling for float16: torch's own decisions, made by all ranks together, and gone on with after a stop."""

import math

import pytest
import torch

from gigapipe.errors import InputError
from gigapipe.spatial import Mesh
from gigapipe.training import loss_scale
from gigapipe.training.loss_scale import LossScale, loss_and_overflow


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
        loss, overflow = loss_and_overflow(0.5, scaled, Mesh())
        ours = LossScale(dict(ours.held))  # as a checkpoint goes on
        made = ours.unscale(scaled, overflow)
        assert loss == 0.5 and ours.factor == theirs.get_scale(), step
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
