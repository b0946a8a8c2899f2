"""Class activation: exact, at its place on the slide, the same on any ranks, and of the slides worth a look."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from cohorts import SMALL_NETWORK, made_once, make_slides
from launching import gigapipe
from ome_zarr_models import open_ome_zarr
from PIL import Image

from gigapipe.errors import InputError
from gigapipe.evaluation.folds import read_folds
from gigapipe.evaluation.maps import chosen_slides, draw_map, extremes, overlay
from gigapipe.evaluation.predictions import probabilities
from gigapipe.models import resnet18
from gigapipe.pyramids import Pyramid
from gigapipe.pyramids.build import build_pyramid
from gigapipe.pyramids.canvas import corner
from gigapipe.pyramids.folders import OVERVIEW
from gigapipe.pyramids.maps import ActivationMap, read_map
from gigapipe.slides.phantom import write_slide
from gigapipe.spatial import Mesh, Plan, decompose, gather, shard, stream
from gigapipe.spatial.recording import Recorded
from gigapipe.training.activation import OF_RESNET, Activation

CANVAS = 150  # not a multiple of anything


def make_trained(folder: Path) -> None:
    """Some slides' pyramids, a network trained on them for an epoch, and what it predicts."""
    make_slides(folder, [4.0], seed=3, patients=6)
    gigapipe("folds", folder / "slides.tsv", folder, "--folds", 3, "--by", "patient")
    common = ["--folds", folder / "folds.tsv", "--pyramids", folder / "pyramids"]
    learning = ["--fold", 0, "--mpp", 4, "--canvas", CANVAS, "--epochs", 1, "--batch", 2, *SMALL_NETWORK]
    gigapipe("train", *common, *learning, "--output", folder / "model.pt")
    gigapipe("predict", *common, "--model", folder / "model.pt", "--output", folder / "predictions.tsv")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return made_once(tmp_path_factory, "maps", make_trained)


def map_slides(folder, output, *more, **options):
    files = ["--models", folder / "model.pt", "--predictions", folder / "predictions.tsv"]
    return gigapipe("map", *files, "--pyramids", folder / "pyramids", "--output", output, *more, **options)


def test_the_mean_and_the_bias_are_the_logit_whole_and_streamed():
    torch.manual_seed(0)
    mesh = Mesh()
    model = decompose(resnet18(3), mesh).eval()
    for buffer in model.buffers():  # the statistics of some training
        if buffer.is_floating_point():
            torch.nn.init.uniform_(buffer, 0.5, 2)
    image = torch.rand(1, 3, 237, 191)
    with torch.no_grad():
        logits = model(shard(image, mesh))
        streamed = Activation(model)(stream(shard(image, mesh), Plan(tile=128)))
        assert isinstance(streamed, Recorded)
        for found in (Activation(model)(shard(image, mesh)), streamed.computed()):
            found = gather(found)
            assert found.shape == (1, 3, 8, 6)
            difference = (found.mean((2, 3)) + model.fc.bias - logits).abs().max() / logits.abs().max()
            assert difference <= 1e-5


def test_places_are_centred_on_every_thirty_second_pixel():
    model = resnet18(2, "none")
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.01)  # so that nothing that is looked at is lost
    model.maxpool = torch.nn.AvgPool2d(3, 2, padding=1)
    image = torch.ones(1, 3, 32, 1024, requires_grad=True)
    Activation(model)(image)[0, 1, 0, 16].backward()
    seen = image.grad[0].abs().sum((0, 1)).nonzero().flatten()
    assert seen.min() > 0 and seen.max() < 1023
    assert (seen.min() + seen.max()) / 2 == 16 * OF_RESNET.stride


def test_maps_agree_with_predictions_and_on_any_mesh(trained, tmp_path):
    map_slides(trained, tmp_path / "one", "--slides", "all")
    map_slides(trained, tmp_path / "four", "--slides", "all", "--mesh", 1, 2, 2, ranks=4)
    scores = pd.read_csv(trained / "predictions.tsv", sep="\t").query("part == 'test'").set_index("slide")["score"]
    assert len(scores) and set(pd.read_csv(tmp_path / "one/maps.tsv", sep="\t")["slide"]) == set(scores.index)
    for slide, score in scores.items():
        one, four = (read_map(tmp_path / mesh / slide) for mesh in ("one", "four"))
        assert one.classes == ["acinar", "solid"] and one.values.shape == (2, 5, 5)
        assert 1 / (1 + np.exp(-one.evidence("solid").mean())) == pytest.approx(score, abs=1e-5)
        assert np.abs(one.values - four.values).max() <= 1e-5
        assert (one.evidence("solid") == -one.evidence("acinar")).all()


def test_predictions_and_maps_belong_to_a_network_and_no_other(trained, tmp_path):
    identity = json.loads((trained / "training.json").read_text())["identity"]
    scored = pd.read_csv(trained / "predictions.tsv", sep="\t", dtype=str)
    files = {path.name: Pyramid(path).source["md5"] for path in (trained / "pyramids").iterdir()}
    assert set(scored["identity"]) == {identity["network"]} and list(scored["md5"]) == [
        files[s] for s in scored["slide"]
    ]
    assert (
        identity["training"] | identity["validation"] | dict(zip(scored["slide"], scored["md5"], strict=True)) == files
    )
    map_slides(trained, tmp_path / "maps", "--slides", scored["slide"].iloc[0])
    maps = pd.read_csv(tmp_path / "maps/maps.tsv", sep="\t", dtype=str)
    assert list(maps["identity"]) == [identity["network"]]
    # Of other folds, or of another training, they are refused, with a name.
    folds = read_folds(trained / "folds.tsv")
    folds.assign(fold=(folds["fold"] + 1) % 3).to_csv(tmp_path / "folds.tsv", sep="\t", index=False)
    common = ["--pyramids", trained / "pyramids", "--model", trained / "model.pt", "--output", tmp_path / "out.tsv"]
    done = gigapipe("predict", "--folds", tmp_path / "folds.tsv", *common, check=False)
    assert done.returncode == 1 and re.search(
        r"was trained on slide \S+, which is a test slide in these folds", done.stdout
    )
    scored.assign(identity="another").to_csv(tmp_path / "others.tsv", sep="\t", index=False)
    done = map_slides(trained, tmp_path / "no", "--predictions", tmp_path / "others.tsv", check=False)
    assert done.returncode == 1 and "the predictions are from another model" in done.stdout
    # What 0.1 made has no identity, and is used with a word.
    old = tmp_path / "old"
    old.mkdir()
    shutil.copy(trained / "model.pt", old)
    done = gigapipe("predict", "--folds", trained / "folds.tsv", *common[:2], "--model", old / "model.pt", *common[4:])
    assert "old/model.pt: 1 of 1 do not record their slides and folds" in done.stdout
    assert "identity" not in pd.read_csv(tmp_path / "out.tsv", sep="\t")


def test_a_map_lies_over_its_pyramid(trained, tmp_path):
    map_slides(trained, tmp_path / "maps", "--slides", "all")
    for slide in pd.read_csv(tmp_path / "maps/maps.tsv", sep="\t")["slide"]:
        stores = [trained / "pyramids" / slide / "image.zarr", tmp_path / "maps" / slide / "image.zarr"]
        (scale, start), (place, first) = (
            [np.array(t[key]) for t, key in zip(transformations, ("scale", "translation"), strict=True)]
            for store in stores
            for transformations in [
                zarr.open_group(store, mode="r").attrs["ome"]["multiscales"][0]["datasets"][0][
                    "coordinateTransformations"
                ]
            ]
        )
        begin = np.array([0, *corner(Pyramid(trained / "pyramids" / slide), 4.0, CANVAS)])
        for i in (0, 4):  # of the canvas's pixel 32 i the same centre, in µm
            assert first + place * [0, i, i] == pytest.approx(start + scale * (begin + [0, 32 * i, 32 * i]))
        assert open_ome_zarr(zarr.open_group(stores[1], mode="r")).attributes.ome.multiscales
        assert np.asarray(Image.open(tmp_path / "maps" / f"{slide}.png")).shape[2] >= 3


def test_a_places_colour_lies_on_the_pixels_that_it_is_of(tmp_path):
    """A dark square is where the place of a map is; the map begins beside the slide and ends on it."""
    slide = np.full((1500, 1101, 3), 244, np.uint8)
    slide[300:428, 200:328] = 150, 60, 140  # of 0.5 µm: from 150 to 214 down, from 100 to 164 across
    write_slide(tmp_path / "slide.svs", slide)
    build_pyramid(tmp_path / "slide.svs", tmp_path / "pyramid", [2.0])
    pyramid = Pyramid(tmp_path / "pyramid")
    picture = np.asarray(Image.open(pyramid.folder / OVERVIEW))
    assert picture.shape == (1024, 752, 3)
    found = ActivationMap(np.zeros((2, 5, 5)), ["a", "b"], [0.0, 1.0], 2.0, 32, 160, (86.0, -28.0), first=15.5)
    assert found.first_um == found.corner_um == (86, -28)  # so that the place (1, 2) begins at (150, 100)
    colours = np.ones((5, 5, 3)) * [0.0, 0.0, 1.0]
    colours[1, 2] = [1.0, 0.0, 0.0]
    drawn = overlay(picture, found, colours, pyramid).astype(int)
    red, blue = drawn[:, :, 0] > drawn[:, :, 2] + 50, drawn[:, :, 2] > drawn[:, :, 0] + 50
    dark = picture[:, :, 1] < (244 + 60) / 2
    assert (red != dark).sum() <= 4 and dark.sum() > 7000  # corners, of which less than half is dark
    # What is coloured is the canvas as far as it is on the slide, and no more.
    um = 1500 / 1024 * 0.5
    rows, columns = (np.flatnonzero((red | blue).any(axis)) for axis in (1, 0))
    (first, last), right = (rows[[0, -1]] + 0.5) * um, (columns[-1] + 0.5) * um
    assert 0 <= first - 86 < um and 0 < 86 + 320 - last <= um
    assert columns[0] == 0 and 0 < -28 + 320 - right <= um
    grey = drawn[~(red | blue)]
    assert (grey == grey[:, :1]).all()
    # The last place of a network whose feature map ends before the canvas reaches to its border.
    shorter = overlay(picture, replace(found, values=np.zeros((2, 4, 4))), colours[:4, :4], pyramid).astype(int)
    assert ((np.ptp(shorter, axis=2) > 50) == (red | blue)).all()
    draw_map(tmp_path / "map.png", found, pyramid, "b")
    assert max(Image.open(tmp_path / "map.png").size) > 1200


def held_out(scores: dict, labels: str) -> pd.DataFrame:
    rows = [{"slide": s, "label": label, "score": v} for (s, v), label in zip(scores.items(), labels, strict=True)]
    return pd.DataFrame(rows)


def test_extremes_are_the_highest_the_lowest_and_what_is_most_wrong():
    scores = {"a": 0.99, "b": 0.98, "c": 0.6, "d": 0.4, "e": 0.2, "f": 0.01, "g": 0.05}
    found = extremes(held_out(scores, "nppnpnp"), 1, ["n", "p"])
    assert found == {"a": "most wrong", "b": "highest", "f": "lowest"}
    assert extremes(held_out(scores, "nppnpnp"), 2, ["n", "p"])["g"] == "most wrong"
    assert "most wrong" not in extremes(held_out(scores, "pppnnnn"), 3, ["n", "p"]).values()
    both = pd.concat([held_out(scores, "nppnpnp"), held_out(scores | {"a": 0.0}, "nppnpnp")])  # of two networks
    assert extremes(both, 1, ["n", "p"])["g"] == "most wrong"


def test_evidence_for_one_of_three_is_against_the_mean_of_the_others():
    values = np.arange(12.0).reshape(3, 2, 2)
    found = ActivationMap(values, ["a", "b", "c"], [1.0, 0.0, 0.0], 1.0, 32, 64, (0, 0)).evidence("a")
    assert found == pytest.approx(values[0] + 1 - (values[1] + values[2]) / 2)


def test_what_cannot_be_mapped_is_refused_in_a_line(trained, tmp_path):
    with pytest.raises(InputError, match="slide nobody: it is no network's test slide"):
        chosen_slides([trained / "predictions.tsv"], 1, ["nobody"])
    scored = pd.read_csv(trained / "predictions.tsv", sep="\t")
    table = scored.assign(label=np.where(scored["part"] == "test", "solid", "acinar"))  # so that one class is held out
    table.to_csv(tmp_path / "one.tsv", sep="\t", index=False)
    chosen = chosen_slides([tmp_path / "one.tsv"], 1)
    assert (chosen["probability of acinar"] + chosen["probability of solid"]).to_numpy() == pytest.approx(1)
    table.assign(label="solid").to_csv(tmp_path / "one.tsv", sep="\t", index=False)
    with pytest.raises(InputError, match="predictions contain only slides of solid"):
        chosen_slides([tmp_path / "one.tsv"], 1)
    with pytest.raises(InputError, match="there is no map"):
        read_map(tmp_path)
    more = ["--models", trained / "model.pt", trained / "model.pt"]
    done = map_slides(trained, tmp_path / "x", *more, check=False)
    assert done.returncode == 1 and done.stdout.startswith("gigapipe: 2 models and 1 predictions")
    assert not (tmp_path / "x").exists()


def test_of_three_classes_the_most_wrong_is_who_gives_its_own_the_least():
    table = pd.DataFrame(
        {"slide": list("wxyz"), "label": list("abcc"), "score_c": [0.1, 0.6, 0.9, 0.2], "score_a": [0.8, 0.3, 0, 0.7]}
    )
    classes = ["a", "b", "c"]
    table["score_b"] = 1 - table["score_a"] - table["score_c"]
    assert list(probabilities(table, classes)) == classes
    assert extremes(table, 1, classes) == {
        "y": "highest",
        "w": "lowest",
        "x": "most wrong",
    }  # b has 0.1 of x, c has 0.2 of z
