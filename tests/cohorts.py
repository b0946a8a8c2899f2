"""What tests make once and share: phantoms, their pyramids and folds; and how a small network is trained on them."""

import fcntl
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from launching import gigapipe

from gigapipe.pyramids.build import build_pyramid
from gigapipe.slides.phantom import REGIONS as CLASSES
from gigapipe.slides.phantom import Phantom, cohort, region_labels, render, sheet_row, write_labels, write_slide


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of this run, which `make` fills for whichever of its processes asks first.

    Nobody writes into it after that.
    """
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # each process has a folder in the run's own
    folder, whole = base / name, base / f"{name}.made"
    with open(base / f"{name}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            whole.touch()
    return folder


def make_slides(folder: Path, mpps: Sequence[float], **options) -> list[Phantom]:
    """Write a cohort of phantoms, its sample sheet slides.tsv, and the folder pyramids with a pyramid of each."""
    phantoms = cohort(**options, folder=str(folder))
    for phantom in phantoms:
        write_slide(Path(phantom.source), render(phantom))
        build_pyramid(Path(phantom.source), folder / "pyramids" / phantom.slide, mpps)
    pd.DataFrame(map(sheet_row, phantoms)).to_csv(folder / "slides.tsv", sep="\t", index=False)
    return phantoms


def make_small_cohort(folder: Path) -> None:
    """Twelve patients' pyramids at 8 µm/px, and their folds."""
    make_slides(folder, [8.0], seed=5, patients=12)
    gigapipe("folds", folder / "slides.tsv", folder, "--folds", 3, "--by", "patient")


REGIONS = {"seed": 2, "patients": 12, "regions": True}


def make_regions(folder: Path) -> None:
    """Phantoms `REGIONS`: pyramids at 4 and 8 µm/px, label images at 4, and folds by the share of tumour."""
    names = [word for name in CLASSES for word in ("--class", name)]
    for slide in make_slides(folder, [4.0, 8.0], **REGIONS):
        write_labels(Path(slide.mask), region_labels(slide))
        pyramid, mask = folder / "pyramids" / slide.slide, folder / "masks" / slide.slide
        gigapipe("mask", pyramid, mask, "--mpp", 4, "--drawn", slide.mask, "--labels", *names)
    common = [folder / "slides.tsv", folder, "--folds", 3, "--by", "patient"]
    gigapipe("folds", *common, "--target", "tumour_share")


SMALL_NETWORK = ("--network", "resnet10", "--width", 8)


def training(
    cohort: Path, output: Path, mesh=(1, 1, 1), epochs=2, canvas=52, precision="float32", network=SMALL_NETWORK, more=()
) -> list[str]:
    """The arguments of `gigapipe train` for fold 0 of a cohort at 8 µm/px, in batches of 2."""
    arguments = [
        "train", "--folds", cohort / "folds.tsv", "--pyramids", cohort / "pyramids", "--fold", 0, "--mpp", 8,
        "--canvas", canvas, "--mesh", *mesh, "--epochs", epochs, "--batch", 2, "--learning-rate", 1e-4,
        "--precision", precision, "--output", output, *network, *more,
    ]  # fmt: skip
    return list(map(str, arguments))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
