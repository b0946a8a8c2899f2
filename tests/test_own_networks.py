"""Networks that users bring: found by their names, called up, known by their code, trained, applied and mapped."""

import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from cohorts import same, training, weights
from launching import gigapipe
from torch import nn

from gigapipe import named
from gigapipe.cli import main
from gigapipe.configuration import Configuration
from gigapipe.configuration.configuration import Resolution
from gigapipe.errors import InputError
from gigapipe.models import resnet18
from gigapipe.models.networks import Headed, classifier, segmenter, take_by_name
from gigapipe.planning.automatic_mesh import Place, choose
from gigapipe.pyramids import Pyramid
from gigapipe.pyramids.maps import read_map
from gigapipe.pyramids.masks import make_mask
from gigapipe.spatial import Mesh, Plan, decompose, shard, stream
from gigapipe.spatial.places import Places, last_image, places
from gigapipe.training.activation import OF_RESNET, Graded, by_gradients
from gigapipe.training.weight_files import load_foreign

OF_A_USER = """
from torch import nn

from blocks import block

def scores(classes, width=8):
    body = [block(3, width), nn.Dropout2d(0.1), block(width, 2 * width), block(2 * width, 4 * width)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes))

def features(width=8):
    return nn.Sequential(block(3, width), block(width, 2 * width))

def patches():
    return nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.GELU())

def pixels(classes, width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, classes, 1))

def several():
    return nn.ModuleList([nn.Flatten()])

def broken(depth):
    return nn.Sequential(nn.Conv2d(4, 8, 3))

def none():
    return 7

open("was run", "w").close()
"""
BLOCKS = """
from torch import nn

def block(inputs, channels):
    return nn.Sequential(nn.Conv2d(inputs, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(True))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a user's network, where the program is started."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    write(tmp_path)
    named.code_of.cache_clear()
    for module in ("mine", "blocks", "nets", "nets.unet", "nets.parts"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    yield tmp_path
    for module in ("mine", "blocks", "nets", "nets.unet", "nets.parts"):
        sys.modules.pop(module, None)


def write(folder: Path) -> None:
    (folder / "mine.py").write_text(OF_A_USER)
    (folder / "blocks.py").write_text(BLOCKS)


def code(name: str) -> str:
    named.code_of.cache_clear()
    return named.code_of(name)


def test_code_is_known_with_what_it_imports_and_is_not_run(here):
    before = {name: code(name) for name in ("mine.py:scores", "mine:scores", "monai.networks.nets:UNet")}
    assert before["mine.py:scores"] == before["mine:scores"] and before["monai.networks.nets:UNet"].startswith("monai ")
    (here / "unrelated.py").write_text("import mine\n")
    assert code("mine:scores") == before["mine:scores"]
    (here / "blocks.py").write_text(BLOCKS.replace("3, 2, 1", "5, 2, 2"))  # as many bytes
    assert code("mine:scores") != before["mine:scores"]
    (here / "blocks.py").write_text(BLOCKS + "import monai.transforms\n")
    changed = code("mine:scores")
    assert changed != before["mine:scores"] and changed.startswith("monai ")  # whose release counts, too
    (here / "nets").mkdir()
    (here / "nets/__init__.py").touch()
    (here / "nets/unet.py").write_text("from . import parts\n")
    (here / "nets/parts.py").write_text("from torch import nn\n")
    (here.parent / "elsewhere").mkdir(exist_ok=True)
    package = code("nets.unet:make")
    (here / "nets/parts.py").write_text("from torch import nn as n\n")
    assert code("nets.unet:make") not in (package, changed)
    assert code(f"{here}/nets.unet:make") == code("nets.unet:make")
    assert not (here / "was run").exists() and "mine" not in sys.modules


def test_a_name_leads_to_the_file_beside_the_config_then_to_what_is_here_then_to_what_is_installed(here):
    (here / "config").mkdir()
    write(here / "config")
    assert named.beside("mine.py:scores", [here / "config"]) == "config/mine.py:scores"
    assert named.beside("mine:scores", [here / "none", here]) == "mine:scores"
    assert named.absolute("config/mine.py:none") == f"{here}/config/mine.py:none"
    assert named.absolute("torch.nn:Flatten") == "torch.nn:Flatten"
    assert named.beside("torch.nn:Flatten", [here / "config"]) == "torch.nn:Flatten"
    assert named.beside(f"{here}/mine.py:scores", [here / "config"]) == f"{here}/mine.py:scores"
    assert named.load("torch.nn:Flatten") is nn.Flatten and not (here / "was run").exists()
    path = list(sys.path)
    assert named.load("config/mine.py:none")() == 7
    assert sys.path == [*path, str(here / "config")]


@pytest.mark.parametrize(
    "name, message",
    [
        ("nowhere:net", "nowhere:net: there is no module nowhere in .*, and none is installed; give file.py:function"),
        ("nowhere.py:net", "nowhere.py:net: there is no nowhere.py in .*; give file.py:function"),
        ("mine:nothing", "mine:nothing: mine.py has no function nothing; give"),
        ("resnet18", "resnet18: is no function of a file or module; give file.py:function"),
        ("torch.none:net", "there is no module torch.none"),
        ("wrong.py:net", "wrong.py:net: SyntaxError.* of wrong.py: .*; correct it"),
        ("raising.py:net", "raising.py:net: ZeroDivisionError in line 2 of raising.py: division by zero; correct it"),
        ("json.py:net", "json.py:net: there is another module with the name json.*; rename json.py"),
    ],
)
def test_what_cannot_be_called_up_is_said_in_a_line(here, name, message):
    (here / "wrong.py").write_text("def net(:\n")
    (here / "raising.py").write_text("import os\n1 / 0\n")
    (here / "json.py").write_text("def net():\n    pass\n")
    with pytest.raises(InputError, match=message) as error:
        named.load(name)
    assert "\n" not in str(error.value)


def made(name: str, classes: int = 2, side: int = 64, pool: str = "average", **options) -> nn.Module:
    return classifier(f"mine.py:{name}", options, classes, side, "batch", pool, 64)


def test_scores_are_taken_as_they_are_and_a_feature_map_gets_pool_and_head(here):
    own, headed = made("scores", 3), made("features", 3, pool="attention", width=5)
    assert not isinstance(own, Headed) and own(torch.rand(2, 3, 70, 50)).shape == (2, 3)
    assert own.training and all(module.training for module in own.modules())  # as it was before it was tried
    assert isinstance(headed, Headed) and headed.fc.weight.shape == (3, 10)
    assert headed(torch.rand(2, 3, 70, 50)).shape == (2, 3)
    for channels in (1, 3):
        pixels = segmenter("mine.py:pixels", {}, channels, (40, 30))
        assert pixels(torch.rand(1, 3, 40, 30)).shape == (1, channels, 40, 30)
    given = classifier("mine.py:scores", {"classes": 2, "width": 4}, 2, 64, "batch", "average", 64)
    assert given[-1].weight.shape == (2, 16)


def flat(**options) -> nn.Module:
    return classifier("torch.nn:Flatten", options, 2, 64, "batch", "average", 64)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: made("scores", classes=2, width=0.5), "network mine.py:scores: ValueError in .*; correct it, or"),
        (lambda: made("scores", depth=3), "got an unexpected keyword argument 'depth'; correct it, or network_options"),
        (lambda: made("none"), "makes a int, not a torch.nn.Module"),
        (lambda: made("broken", depth=1), "on an image of 1 × 3 × 64 × 64: RuntimeError"),
        (lambda: made("several"), "on an image of .*NotImplementedError"),
        (lambda: made("scores", pool="max"), "returns class scores, and so has its own pooling; remove pool: max"),
        (lambda: flat(), "makes 12288 scores, but 2 are needed"),
        (lambda: flat(start_dim=0), r"makes \(12288\) for"),
        (lambda: segmenter("mine.py:features", {}, 1, (64, 64)), r"makes \(1, 16, 16, 16\) of one image of 64 × 64"),
    ],
)
def test_what_is_no_network_is_said_in_a_line(here, make, message):
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_weights_are_taken_by_name_and_shape_and_the_rest_is_told(here):
    theirs, ours = made("scores", 5), made("scores", 2)
    saved = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"state_dict": saved | {"module.aux": torch.ones(2)}, "epoch": 3}, here / "weights.pth")
    head = ours[-1].weight.clone()
    said = take_by_name(ours, load_foreign(here / "weights.pth"), "weights w")
    tensors = len(ours.state_dict())
    assert said == (
        f"weights w: {tensors - 2} of the network's {tensors} weights are loaded; 2 with another shape, not loaded "
        "(6.weight, 6.bias); 1 only in the file (aux)"
    )
    assert torch.equal(ours[2][0].weight, theirs[2][0].weight) and torch.equal(ours[-1].weight, head)
    assert take_by_name(made("features", 2), made("features").features.state_dict(), "w").startswith("w: 12 of the")
    with pytest.raises(InputError, match="w: none of its 1 weights has name and shape of one of the network's"):
        take_by_name(ours, {"conv.weight": torch.ones(2)}, "w")


def test_places_lie_where_their_windows_do(here):
    resnet = resnet18(2).eval()
    assert last_image(resnet, (1, 3, 64, 64)) == "layer4"
    body = nn.Sequential(*list(resnet.children())[:-2])
    for side in (64, 150, 20):
        assert places(body, (1, 3, side, side)) == OF_RESNET
    assert places(made("patches").features.eval(), (1, 3, 64, 64)) == Places(4, 1.5)
    assert places(nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Upsample(scale_factor=2)), (1, 3, 64, 64)).stride == 2
    assert last_image(made("scores").eval(), (1, 3, 64, 64)) == "3"
    assert last_image(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), (1, 3, 4, 4)) is None


def test_the_gradient_of_a_linear_head_is_its_weights_whole_and_streamed(here):
    torch.manual_seed(0)
    mesh, image = Mesh(), torch.rand(1, 3, 70, 50)
    model = decompose(made("scores", 3), mesh).eval().requires_grad_(False)
    features = model[:4](image)
    expected = F.conv2d(features, model[-1].weight[:, :, None, None])[0]
    for given in (shard(image, mesh), stream(shard(image, mesh), Plan(tile=16))):
        found = by_gradients(*Graded(model, "3")(given))
        np.testing.assert_allclose(found.values, expected, atol=1e-6)
        np.testing.assert_allclose(found.bias, model[-1].bias, atol=1e-6)


@pytest.mark.parametrize("task, name", [("classes", "scores"), ("classes", "features"), ("tissue", "pixels")])
def test_a_mesh_is_chosen_by_what_the_network_takes(here, task, name):
    training = {"network": f"mine.py:{name}", "network_options": {"width": 7}}
    config = Configuration.of({"task": task, "training": training})
    place = Place("here", 2, 1e9, on_gpu=False)
    assert choose(Resolution(mpp=8), 96, config, place).why.startswith("one rank: a step takes 0.0")
    assert main(["plan", f"mine.py:{name}", "64x64", *(["--network-options", "classes=3"] * (name != "features"))]) == 0


NETWORK = ("--network", "mine.py:scores", "--network-options", "width=6")


def trained(cohort: Path, output: Path, *more, **options) -> str:
    network = options.pop("network", NETWORK)
    return gigapipe(*training(cohort, output, network=network, more=more, **options), check=False).stdout


@pytest.fixture
def applied(here, small_cohort):
    """A model of the user's network that was trained for an epoch, and what a verb says that applies it."""
    assert "Traceback" not in trained(small_cohort, here / "own/model.pt", epochs=1)
    common = ["--pyramids", small_cohort / "pyramids"]

    def apply(verb: str, output: str, *more, **launched) -> str:
        of_verb = {
            "predict": ["--folds", small_cohort / "folds.tsv", "--model", here / "own/model.pt"],
            "map": ["--models", here / "own/model.pt", "--predictions", here / "predictions.tsv"],
        }
        arguments = [verb, *common, *of_verb[verb], "--output", here / output, *more]
        return gigapipe(*arguments, check=False, **launched).stdout

    return apply


@pytest.mark.slow
def test_a_model_runs_no_code_that_is_not_named(here, applied, caplog):
    (here / "was run").unlink()
    sys.modules.pop("mine")
    said = applied("predict", "predictions.tsv")
    assert "its network is your own code, which is executed only if you name it; if you trust it, add --network" in said
    assert """mine.py:scores --network-options '{"width": 6}\'""" in said
    assert "give these options" in applied("predict", "predictions.tsv", "--network", "mine.py:scores")
    assert not (here / "was run").exists() and not (here / "predictions.tsv").exists()
    assert "code" not in applied("predict", "predictions.tsv", *NETWORK) + caplog.text
    before = (here / "predictions.tsv").read_text()
    (here / "blocks.py").write_text(BLOCKS + "# changed\n")
    named.code_of.cache_clear()
    applied("predict", "predictions.tsv", *NETWORK)
    assert "the code of mine.py:scores has changed since training" in caplog.text
    assert (here / "predictions.tsv").read_text() == before


@pytest.mark.slow
def test_maps_of_a_head_of_its_own_add_up_to_the_score_on_any_ranks(here, applied):
    applied("predict", "predictions.tsv", *NETWORK)
    for folder, more, launched in (("maps", (), {}), ("ranks", ("--mesh", 1, 2, 1), {"ranks": 2, "cwd": here})):
        said = applied("map", folder, "--slides", "all", *NETWORK, *more, **launched)
        assert "Traceback" not in said and (here / folder).is_dir(), said
    scores = pd.read_csv(here / "maps/maps.tsv", sep="\t").set_index("slide")["score"]
    for slide, score in scores.items():
        one, two = (read_map(here / folder / slide) for folder in ("maps", "ranks"))
        assert one.stride == 8 and one.first == 0 and one.values.shape == (2, 7, 7)
        assert 1 / (1 + np.exp(-one.evidence("solid").mean())) == pytest.approx(score, abs=1e-5)
        np.testing.assert_allclose(two.values, one.values, atol=1e-4)


@pytest.mark.slow
def test_changed_code_or_options_do_not_go_on_with_a_half_trained_state(here, small_cohort, caplog):
    def stopped(folder: str, *more, **options) -> str:
        caplog.clear()
        said = trained(small_cohort, here / folder / "model.pt", "--time-limit", "1s", *more, **options)
        return said + caplog.text

    caplog.set_level(logging.INFO)
    assert "stopped after" in stopped("half")
    shutil.copytree(here / "half", here / "whole")
    assert "resumed after" in stopped("half")
    assert "belongs to other settings or slides" in stopped("half", network=(*NETWORK, "--network-options", "width=5"))
    # What it draws itself does not depend on where it was stopped.
    trained(small_cohort, here / "at once/model.pt")
    trained(small_cohort, here / "whole/model.pt")
    assert same(weights(here / "whole/model.pt"), weights(here / "at once/model.pt"))
    record = json.loads((here / "whole/training.json").read_text())["settings"]
    assert record["network_code"] == code("mine.py:scores") and record["network_options"] == {"width": 6}
    assert "stopped after" in stopped("changed")
    (here / "blocks.py").write_text(BLOCKS + "# changed\n")
    named.code_of.cache_clear()
    assert "belongs to other settings or slides" in stopped("changed")


@pytest.mark.slow
def test_tissue_is_learnt_by_a_network_of_ones_own(here, small_cohort):
    for pyramid in (small_cohort / "pyramids").iterdir():
        make_mask(Pyramid(pyramid), 8.0, here / "masks" / pyramid.name)
    common = ["--folds", small_cohort / "folds.tsv", "--pyramids", small_cohort / "pyramids", "--masks", here / "masks"]
    own = ["--network", "mine.py:pixels", "--network-options", '{"width": 3}']
    learning = ["--fold", 0, "--mpp", 8, "--epochs", 4, "--batch", 2, "--learning-rate", 0.1]
    gigapipe("train-tissue", *common, *learning, *own, "--output", here / "model.pt")
    found = ["segment", *common, "--model", here / "model.pt", "--output", here / "found"]
    assert "executed only if you name it" in gigapipe(*found, check=False).stdout and not (here / "found").exists()
    gigapipe(*found, *own)
    assert pd.read_csv(here / "found/dice.tsv", sep="\t")["dice"].mean() > 0.5
