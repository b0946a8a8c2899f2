"""Regions of several classes: label images, learning them on whole slides, and what is found of phantoms."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
import zarr
from cohorts import REGIONS, weights
from launching import gigapipe
from ome_zarr_models import open_ome_zarr
from PIL import Image
from projects import fresh_copy, snakemake

from gigapipe.evaluation.overlap import as_markdown, compared, overlaps
from gigapipe.pyramids.masks import class_colour, read_mask
from gigapipe.slides import phantom

CLASSES = list(phantom.REGIONS)
NAMES = [word for name in CLASSES for word in ("--class", name)]
SLIDES = phantom.cohort(**REGIONS)
MPP = 4


def inputs(folder: Path) -> list:
    return ["--folds", folder / "folds.tsv", "--pyramids", folder / "pyramids", "--masks", folder / "masks"]


def train(folder: Path, output: Path, *more, **options):
    learning = ["--mpp", MPP, "--batch", 1, "--learning-rate", 0.02, "--output", output]
    return gigapipe("train-segmentation", *inputs(folder), *NAMES, *learning, *more, **options)


def test_phantoms_have_regions_of_the_shares_that_they_were_made_with(tmp_path):
    slide, plain = SLIDES[0], phantom.cohort(**REGIONS | {"regions": False})[0]
    labels, rng = phantom.region_labels(slide), np.random.default_rng(slide.seed)
    tissue = phantom._tissue(rng, *rng.integers(960, 1120, 2)) > 0.5
    assert abs((labels == 1).sum() / tissue.sum() - slide.tumour_share) < 1e-4
    assert abs((labels == 2).sum() / tissue.sum() - phantom.NECROSIS_SHARE) < 1e-4
    picture, without = (phantom.render(one).astype(int) for one in (slide, plain))
    assert (picture[~tissue] == without[~tissue]).mean() > 0.99
    assert picture[labels == 1].mean() < without[labels == 1].mean() - 10
    gigapipe("phantom", tmp_path, "--seed", 2, "--patients", 12, "--regions", "--only", f"{slide.slide}.png")
    assert (np.asarray(Image.open(tmp_path / f"{slide.slide}.png")) == labels).all()
    gigapipe("phantom", tmp_path, "--seed", 2, "--patients", 12, "--regions", "--only", "slides.tsv")
    sheet = pd.read_csv(tmp_path / "slides.tsv", sep="\t")
    assert sheet["tumour_share"].tolist() == [slide.tumour_share for slide in SLIDES]
    assert sheet["tumour_share"].between(0.1, 0.6).all() and Path(sheet["mask"][0]).name == f"{slide.slide}.png"


def test_a_label_image_tells_the_names_and_colours_of_its_classes(regions):
    slide = SLIDES[0]
    folder = regions / "masks" / slide.slide
    labels = open_ome_zarr(zarr.open_group(folder / "image.zarr/labels/regions", mode="r"))
    about = labels.attributes.ome.image_label
    assert [(one.label_value, one.rgba) for one in about.colors] == [(1, (213, 94, 0, 255)), (2, (0, 114, 178, 255))]
    told = zarr.open_group(folder / "image.zarr", mode="r")["labels/regions"].attrs["ome"]["image-label"]
    assert told["properties"] == [{"label-value": 1, "class": "tumour"}, {"label-value": 2, "class": "necrosis"}]
    found, true = read_mask(folder, CLASSES)[:], phantom.region_labels(slide)
    shares = [(mask == value).mean() for mask in (found, true) for value in (1, 2)]
    assert shares[:2] == pytest.approx(shares[2:], rel=0.05)
    with pytest.raises(Exception, match="has the classes tumour, necrosis, not necrosis, tumour; make it again"):
        read_mask(folder, CLASSES[::-1])
    done = gigapipe("mask", regions / "pyramids" / slide.slide, "x", "--mpp", MPP, "--labels", check=False)
    assert done.returncode == 1 and "--labels needs an annotation" in done.stdout


def test_dice_of_classes_counts_slides_that_have_them_or_in_which_they_were_found(tmp_path):
    mask, found = np.zeros((2, 10, 10), np.uint8)
    mask[:5], found[2:5], found[9, 9] = 1, 1, 3
    figures = compared(found, mask, ["a", "b", "c"]).set_index("class")["dice"]
    assert figures["a"] == pytest.approx(2 * 30 / 80) and np.isnan(figures["b"]) and figures["c"] == 0
    for number, dice in enumerate(([0.75, np.nan], [0.25, 0.5])):
        rows = {"slide": f"00{number}", "patient": "p", "site": "s", "fold": number, "mpp": 2.0}
        pd.DataFrame({**rows, "class": ["b|", "a"], "dice": dice}).to_csv(tmp_path / f"{number}.tsv", sep="\t")
    table = overlaps([tmp_path / "1.tsv", tmp_path / "0.tsv"])
    assert table["class"].tolist() == ["b|", "b|", "a", "a"] and table["slide"].tolist() == ["000", "001"] * 2
    cost = '{"settings": {"mpp": 2.0}, "seconds_per_step": 0.5, "peak_memory_per_rank_mb": 700}'
    (tmp_path / "training.json").write_text(cost)
    lines = as_markdown(table, [tmp_path / "training.json"], margin=0.02).splitlines()
    assert lines[4] == r"| 2 | b\| | 2 | 0.5000 ± 0.2500 | 0.2500 (001) | 0.50 | 700 |"
    assert "can be recommended" in lines[0] and "gigapipe segment" in lines[0]  # of 0.1, as they have no dice_of_all
    assert lines[5] == "| 2 | a | 1 | 0.5000 ± 0.0000 | 0.5000 (001) | 0.50 | 700 |"


def test_a_phantom_s_regions_are_found_where_they_are(regions, tmp_path):
    train(regions, tmp_path / "model.pt", "--fold", 0, "--epochs", 40)
    done = gigapipe("segment", *inputs(regions), "--model", tmp_path / "model.pt", "--output", tmp_path / "found")
    table = pd.read_csv(tmp_path / "found/dice.tsv", sep="\t")
    print(done.stdout, table.groupby("class")["dice"].describe(), sep="\n")
    dice = table.groupby("class")["dice"].mean()
    assert dice["tumour"] > 0.85 and dice["necrosis"] > 0.65
    shares = {slide.slide: slide.tumour_share for slide in SLIDES}
    differences = []
    for name in table["slide"].unique():
        found, true = (read_mask(path / name, CLASSES)[:] for path in (tmp_path / "found", regions / "masks"))
        differences.append(((found == 1).sum() / (true == 1).sum() - 1) * shares[name])
        picture = np.asarray(Image.open(tmp_path / f"found/{name}.png"))
        half = picture[: len(true), -true.shape[1] :]
        for value in (1, 2):
            whole = (true == value) & (found == value)
            assert abs(half[whole].mean(0) - class_colour(value)).max() < 140
    print(differences)
    error = np.std(differences, ddof=1) / np.sqrt(len(differences))
    assert abs(np.mean(differences)) < max(0.03, 4 * error)


@pytest.mark.slow
def test_regions_are_learnt_alike_on_two_ranks_that_stream(regions, tmp_path):
    more = ("--fold", 1, "--epochs", 2)
    train(regions, tmp_path / "one/model.pt", *more)
    log = train(regions, tmp_path / "two/model.pt", *more, "--mesh", 1, 2, 1, "--memory", "2GiB", ranks=2).stdout
    assert "validation_dice" in log
    one, two = (weights(tmp_path / name / "model.pt") for name in ("one", "two"))
    assert one["head.weight"].shape[0] == 3
    for name in one:
        assert (one[name] - two[name]).norm() <= 1e-3 * one[name].norm(), name


@pytest.mark.slow
def test_the_workflow_makes_label_images_of_the_classes_that_the_config_names(tmp_path, monkeypatch):
    project = fresh_copy(tmp_path)
    monkeypatch.setenv("GIGAPIPE_ACCOUNT", "abc123")
    both = ["--configfile", "config/segmentation.yaml", "own.yaml"]
    (project / "own.yaml").write_text(yaml.safe_dump({"phantom": {"patients": 6}, "folds": {"number": 3}}))
    _, output = snakemake(project, "-n", "--printshellcmds", "--profile", "slurm", *both)
    assert "3 segmentations: " in output and "3 trainings: " in output
    slides = len(phantom.cohort(patients=6))
    assert output.count("--labels --class=tumour --class=necrosis") == slides
    assert output.count("gigapipe train-segmentation") == 3 and output.count("gigapipe segment ") == 3
    assert "--only PH-000-A.png" in output and "results/segmentation/4um/fold-0/regions" in output
    (project / "own.yaml").write_text("mask_classes: []")
    status, output = snakemake(project, "-n", *both, check=False)
    assert status and "config: mask_classes: task segmentation needs the names of the classes" in output
