"""Loss scaling for float16: torch's own decisions, made by all ranks together, and gone on with after a stop."""

import math

import pytest
import torch
from cohorts import same, weights
from test_training import in_process, record

from gigapipe.errors import InputError
from gigapipe.spatial import Mesh
from gigapipe.training import loss_scale
from gigapipe.training.loop import train
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


def test_a_training_in_float16_skips_what_overflows_and_goes_on_to_the_same_weights(
    small_cohort, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("gigapipe.training.loop.CHECKPOINT_EVERY", 0.0)
    monkeypatch.setattr(loss_scale, "BEGINNING", 2.0**20)  # the logits' gradients are beyond float16
    more = {"precision": "float16", "epochs": 3, "learning_rate": 1e-3}
    with caplog.at_level("INFO"):
        train(in_process(small_cohort, **more), tmp_path / "a/model.pt")
    scale = record(tmp_path / "a")["loss_scale"]
    assert scale["steps_skipped"] >= 2 and scale["factor"] == 2.0 ** (20 - scale["steps_skipped"]), scale
    assert "of epoch 1: a gradient is beyond float16: skipped; losses are scaled by 524288 now" in caplog.text
    with pytest.raises(KeyboardInterrupt):
        train(in_process(small_cohort, stop_at=2, **more), tmp_path / "b/model.pt")
    train(in_process(small_cohort, **more), tmp_path / "b/model.pt")
    assert same(weights(tmp_path / "b/model.pt"), weights(tmp_path / "a/model.pt"))
    assert record(tmp_path / "b")["loss_scale"] == scale
    train(in_process(small_cohort, **more | {"precision": "float32"}), tmp_path / "c/model.pt")
    assert record(tmp_path / "c")["loss_scale"] is None
    assert record(tmp_path / "a")["history"][0]["training_loss"] == pytest.approx(
        record(tmp_path / "c")["history"][0]["training_loss"], rel=0.05
    )
