"""What a mesh of `auto` becomes: the fewest ranks that hold a step, or one that streams it."""

import argparse
import functools
import re

import pytest

from gigapipe.cli.distributed import mesh_of
from gigapipe.configuration import Configuration
from gigapipe.errors import InputError
from gigapipe.models import RESNETS
from gigapipe.planning.automatic_mesh import Place, choose, cluster, one_machine
from gigapipe.planning.machines import MACHINES
from gigapipe.planning.scaling import Job, cost_of

CONFIG = Configuration.of({"resolutions": [{"mpp": 8}], "training": {"network": "resnet10", "width": 8, "batch": 2}})
(RESOLUTION,) = CONFIG.resolutions


def taken(rows: int, columns: int) -> float:
    return cost_of(
        Job(functools.partial(RESNETS["resnet10"], 2, "batch", "average", 8), (256, 256)), (1, rows, columns), 2
    ).memory


@pytest.mark.parametrize(
    "holds, share, ranks, why",
    [
        ((1, 1), 1.0, 1, "one rank: a step takes"),
        ((1, 2), 1.0, 2, "2 ranks per image: a step takes"),
        ((2, 2), 1.0, 4, "4 ranks per image"),
        ((2, 2), 0.9, None, "one rank, streamed: up to 4 ranks do not hold a step"),
    ],
)
def test_the_fewest_ranks_that_hold_a_step_are_taken(holds, share, ranks, why):
    memory = share * taken(*holds)
    choice = choose(RESOLUTION, 256, CONFIG, Place("a card", 4, memory, True))
    assert (choice.ranks, choice.memory) == ((ranks, None) if ranks else (1, int(memory))) and why in choice.why


def test_frozen_layers_take_what_a_prediction_takes():
    """Nothing of them is kept for a backward pass, and slides are computed one at a time."""
    place = Place("a card", 1, 1e9, False)

    def said(**training) -> float:
        config = Configuration.of({"training": {"network": "resnet10", "batch": 2, "weights": "w.pth", **training}})
        return float(re.search(r"takes (\S+) GB", choose(RESOLUTION, 512, config, place).why)[1])

    assert said(train="probe") == said(train="head") < said(train="last") / 2 < said(train="all") / 3


def test_what_nobody_knows_is_streamed_if_need_be_or_left_alone():
    assert choose(RESOLUTION, None, CONFIG, Place("a card", 4, 2e9, True))[:2] == (1, 2_000_000_000)
    assert choose(RESOLUTION, 256, CONFIG, cluster(None, 4))[:2] == (1, None)
    summit = cluster("summit", 6)
    assert (summit.ranks, summit.memory, summit.on_gpu) == (6, MACHINES["summit"].usable_memory, True)
    here = one_machine("cpu", 2)
    assert here.ranks == 1 and not here.on_gpu and 1e8 < here.memory < 1e13


def test_ranks_that_a_launcher_has_started_share_each_image(monkeypatch):
    def shape(*words: str) -> tuple[int, int, int]:
        return mesh_of(argparse.Namespace(mesh=list(words)))

    assert shape("1", "2", "3") == (1, 2, 3) and shape("auto") == (1, 1, 1)
    monkeypatch.setenv("PMI_SIZE", "6")
    assert shape("auto") == (1, 2, 3)
    for words in (("1", "2"), ("1", "2", "0"), ("auto", "1", "1")):
        with pytest.raises(InputError, match=f"mesh: found {' '.join(words)}; give DATA ROWS COLUMNS"):
            shape(*words)
