"""How slides look, in a few numbers, and whether one looks like those that a network was trained on."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gigapipe.pyramids.folders import OVERVIEW
from gigapipe.pyramids.store import Pyramid, at_pixels

KEY = "appearance"
"""Under which training.json notes what is usual among the training slides."""
LEAST = 5
"""Slides, at least, whose variation tells what is usual."""
DEVIATIONS = 4
"""Standard deviations from the mean stain that are usual."""
FAINTEST = 0.02
"""Optical density: differences that are too small to matter, however alike the training slides are."""
FAINTEST_HUE = 0.1
"""Natural logarithm of a ratio of optical densities: differences that are too small to matter, likewise."""

DENSITIES = -np.log10((np.arange(256) + 1.0) / 256)
"""The optical density of each grey level."""


class Appearance(NamedTuple):
    """Of one slide."""

    density: list[float]
    """Mean optical density of the tissue in red, green and blue; of white it is 0."""
    tissue: float
    """Area of the tissue, mm²."""
    mpp: float
    """Of the scan, µm per pixel."""

    @property
    def hue(self) -> list[float]:
        """The stain's colour, however strong it is: natural logarithms of red and of blue optical density to green."""
        red, green, blue = (max(one, FAINTEST) for one in self.density)
        return [round(math.log(red / green), 4), round(math.log(blue / green), 4)]

    @classmethod
    def of(cls, pyramid: Pyramid) -> "Appearance | None":
        """None without tissue, and of an older store without an overview picture."""
        density = pyramid.tissue["density"] if "density" in pyramid.tissue else _of_picture(pyramid)
        if density is None:
            return None
        (rows, columns), (down, across) = pyramid.source["shape"], pyramid.source["mpp"]
        area = pyramid.tissue["fraction"] * rows * down * columns * across / 1e6
        return cls(density, round(area, 4), max(down, across))


def _of_picture(pyramid: Pyramid) -> list[float] | None:
    """The density of the tissue in a store of which it was not noted when it was made."""
    path = pyramid.folder / OVERVIEW
    if not path.exists():
        return None
    with Image.open(path) as picture:
        return density_of(np.asarray(picture.convert("RGB")), pyramid.outline)


def density_of(picture: np.ndarray, outline: np.ndarray) -> list[float] | None:
    """Mean optical density in red, green and blue of what lies within an outline of the tissue (row, column), bool.

    The picture (row, column, 3), uint8, and the outline are of the whole slide. None if there is no tissue.
    """
    shape = picture.shape[:2]
    inside = at_pixels(outline, (0, shape[0]), (0, shape[1]), shape)
    if not inside.any():
        return None
    counts = np.array([np.bincount(channel[inside], minlength=256) for channel in np.moveaxis(picture, 2, 0)])
    return [round(float(value), 4) for value in counts @ DENSITIES / inside.sum()]


def of_all(pyramids: Sequence[Pyramid]) -> dict[str, Any] | None:
    """What is usual among training slides, as it is noted in training.json; None if too few have an appearance."""
    found = [one for pyramid in pyramids if (one := Appearance.of(pyramid))]
    if len(found) < LEAST:
        return None
    return {
        "slides": len(found),
        **_usual("density", [one.density for one in found]),
        **_usual("hue", [one.hue for one in found]),
        "least_tissue_mm2": min(one.tissue for one in found),
        "coarsest_mpp": max(one.mpp for one in found),
    }


def _usual(name: str, values: list[list[float]]) -> dict[str, list[float]]:
    """Mean and standard deviation of `values` (slides, numbers), under `name` and `name`_deviation."""
    mean, deviation = np.mean(values, axis=0), np.std(values, axis=0, ddof=1)
    return {name: np.round(mean, 4).tolist(), f"{name}_deviation": np.round(deviation, 4).tolist()}


def unlike(slide: Appearance, usual: dict[str, Any]) -> str:
    """In what a slide is unlike training slides; empty if in nothing that is looked at."""
    said = []
    densities = f"optical density {_listed(slide.density)}, usually {_listed(usual['density'])}"
    if _differs("density", slide.density, usual, FAINTEST):
        said.append(f"stain ({densities})")
    elif _differs("hue", slide.hue, usual, FAINTEST_HUE):
        own, others = (_listed([math.exp(one) for one in hue]) for hue in (slide.hue, usual["hue"]))
        said.append(f"hue of the stain (red and blue to green {own}, usually {others}; {densities})")
    if slide.tissue < usual["least_tissue_mm2"] / 2:
        said.append(f"little tissue ({slide.tissue:.3g} mm², the least was {usual['least_tissue_mm2']:.3g})")
    if slide.mpp > 1.1 * usual["coarsest_mpp"]:
        said.append(f"coarser scan ({slide.mpp:g} µm per pixel, the coarsest was {usual['coarsest_mpp']:g})")
    return "; ".join(said)


def _differs(name: str, own: list[float], usual: dict[str, Any], least: float) -> bool:
    """Whether one of the values is far from what is usual; trainings of older releases have no hue noted."""
    if name not in usual:
        return False
    wider = math.sqrt(1 + 1 / usual["slides"])
    limits = [max(DEVIATIONS * wider * one, least) for one in usual[f"{name}_deviation"]]
    return any(abs(one - mean) > limit for one, mean, limit in zip(own, usual[name], limits, strict=True))


def _listed(density: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in density)
