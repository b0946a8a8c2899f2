"""The state of a training as checkpoints hold it, which runs of other versions read."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gigapipe.spatial import Mesh
from gigapipe.spatial.speed import Host
from gigapipe.training.checkpoints import Checkpoints
from gigapipe.training.optimizer import AdamW, groups, in_groups_of
from gigapipe.training.segmentation import SegmenterSettings
from gigapipe.training.state import Resumable, State

STEPS = 4
SETTINGS = SegmenterSettings(
    mpp=1.0, fold=0, epochs=3, batch=1, learning_rate=1e-3, weight_decay=0.0, seed=0, patience=1
)
REACHED = {
    "epoch": 1, "step": 2, "losses": [0.5, 0.4], "history": [{"epoch": 1, "training_loss": 0.7}], "since": 1,
    "falls": 0, "best": {"loss": 0.6, "epoch": 1, "model": {"weight": torch.ones(1, 1)}}, "ended": False,
}  # fmt: skip
COST = {
    "mesh": [1, 1, 1], "memory": None, "seconds": [1.0, 2.0], "spent": [(0.0, 1.0), (0.0, 2.0)], "peak_memory_mb": 100.0
}  # fmt: skip

SINCE_0_2 = {
    "took": [],
    "epoch_seconds": 0.0,
    "average": {},
    "loss_scale": {},
    "energy_counted": ["processors"],
    "disk": False,
    "host_memory": None,
}
"""What checkpoints of 0.1 lack, at its beginning."""


def resumable(folder, memory: int | None = None, disk: str | None = None, host: Host | None = None) -> Resumable:
    model = nn.Linear(1, 1, bias=False)
    task = SimpleNamespace(
        settings=SETTINGS,
        mesh=Mesh(),
        model=model,
        streaming=SimpleNamespace(limit=memory, disk=disk, host=host),
        identity=lambda: ["slide"],
    )
    return Resumable(task, AdamW(model.parameters(), lr=1e-3), Checkpoints(folder), STEPS)


def write(folder, reached: dict) -> None:
    """A checkpoint key by key."""
    made = resumable(folder)
    parts = {"identity": made.identity, "model": {"weight": torch.full((1, 1), 3.0)}}
    parts |= {"optimizer": made.optimizer.state_dict()}
    made.checkpoints.save(reached["epoch"] * STEPS + reached["step"], COST | reached | parts)


def test_what_a_checkpoint_holds(tmp_path):
    write(tmp_path, REACHED)
    made = resumable(tmp_path)
    state = made.resume()
    assert vars(state) == COST | REACHED | SINCE_0_2
    assert made.task.model.weight.eq(3).all()
    state.step = 3
    made.save(state)
    saved = made.checkpoints.load(7)
    assert set(saved) == {*COST, *REACHED, *SINCE_0_2, "identity", "model", "optimizer"}
    assert {key: saved[key] for key in COST | REACHED} == COST | REACHED | {"step": 3}


@pytest.mark.parametrize(
    "more, kept",
    [({}, False), ({"ended": True}, True), ({"epoch": 3, "step": 0}, True), ({"epoch": 2, "step": 4}, True)],
)
def test_on_other_terms_the_cost_is_measured_anew_unless_all_steps_are_made(tmp_path, more, kept):
    write(tmp_path, REACHED | more)
    state = resumable(tmp_path, memory=10**9).resume()
    anew = {"mesh": [1, 1, 1], "memory": 10**9, "seconds": [], "spent": [], "peak_memory_mb": 0.0}
    anew["energy_counted"] = []
    assert vars(state) == REACHED | more | SINCE_0_2 | (COST if kept else anew)


def test_a_disk_is_another_cost(tmp_path):
    write(tmp_path, REACHED)
    state = resumable(tmp_path, disk="/scratch").resume()
    assert (state.disk, state.seconds, state.memory, state.step) == (True, [], None, 2)


def test_so_is_memory_of_the_host(tmp_path):
    write(tmp_path, REACHED)
    state = resumable(tmp_path, host=Host(1e-10, 2**30)).resume()
    assert (state.host_memory, state.seconds, state.step) == (2**30, [], 2)


def test_other_settings_start_afresh(tmp_path, caplog):
    write(tmp_path / "checkpoints", REACHED)
    made = resumable(tmp_path / "checkpoints")
    made.identity = "another"
    assert made.resume() == State([1, 1, 1], None)
    assert "starting from the beginning" in caplog.text and not made.checkpoints.folder.exists()
    assert Checkpoints(tmp_path / "checkpoints-1").load(6) is not None  # nothing that was learnt is lost


@pytest.mark.parametrize("first_layer_rate", [1.0, 0.1])
def test_moments_of_older_releases_belong_to_the_same_weights(first_layer_rate):
    """They had one group of all parameters, or one a layer; norms and biases have groups of their own now."""
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    layers = [{"params": list(layer.parameters())} for layer in model]
    older = AdamW(model.parameters() if first_layer_rate == 1 else layers, lr=0.1)
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    older.step()
    newer = AdamW(groups(model, first_layer_rate), lr=0.1)
    newer.load_state_dict(in_groups_of(newer, older.state_dict(), model))
    for parameter in model.parameters():
        for moment, value in older.state[parameter].items():
            assert torch.equal(newer.state[parameter][moment], value)
    assert {group["weight_decay"] for group in newer.param_groups} == {0.01, 0.0}
    again = newer.state_dict()
    assert in_groups_of(newer, again, model) is again
