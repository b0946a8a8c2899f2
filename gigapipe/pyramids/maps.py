"""Maps: numbers that a network gives each place of a slide, as an image of its own that lies over the pyramid."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gigapipe.atomic import atomic_folder
from gigapipe.errors import InputError
from gigapipe.pyramids import store
from gigapipe.pyramids.canvas import corner
from gigapipe.pyramids.store import Pyramid

FIRST = "first"  # which maps of 0.1 have not, whose first place is centred on the first pixel
NAMES = ("classes", "bias", "mpp", "stride", "canvas", "corner_um")  # what is kept beside the values


@dataclass(frozen=True)
class ActivationMap:
    """What each place says for each of `classes`: `values` (class, row, column), float32, without the head's `bias`.

    Places are squares of `stride` pixels, of `mpp` µm, of a canvas of `canvas` px a side; place i is centred on pixel
    `first` + i × `stride`. `corner_um` is the outer corner of that canvas, in µm down and right of the slide's.
    """

    values: np.ndarray
    classes: list[str]
    bias: list[float]
    mpp: float
    stride: float
    canvas: int
    corner_um: tuple[float, float]
    first: float = 0

    @property
    def place_um(self) -> float:
        """A side of a place."""
        return self.mpp * self.stride

    @property
    def first_um(self) -> tuple[float, float]:
        """The outer corner of the first place: from the centre of the pixel that it is centred on half a place back."""
        down, right = self.corner_um
        back = self.first * self.mpp + (self.mpp - self.place_um) / 2
        return down + back, right + back

    def evidence(self, label: str) -> np.ndarray:
        """For `label` against the mean of the others (row, column), bias included: log-odds where there are two.

        Of a number, which has no others, how far it is above the mean, in its unit.
        """
        values = self.values + np.array(self.bias)[:, None, None]
        if len(values) == 1:
            return values[0]
        this = self.classes.index(label)
        return values[this] - np.delete(values, this, axis=0).mean(axis=0)


def on_slide(
    values: np.ndarray,
    classes: list[str],
    bias: list[float],
    pyramid: Pyramid,
    mpp: float,
    canvas: int,
    stride: float,
    first: float,
) -> ActivationMap:
    """The map of a canvas of `canvas` px a side at `mpp`, where that lies on the slide of `pyramid`."""
    row, column = corner(pyramid, mpp, canvas)
    down, across = pyramid.scale(mpp)
    return ActivationMap(values, classes, bias, max(down, across), stride, canvas, (row * down, column * across), first)


def mean_of(maps: Sequence[ActivationMap]) -> ActivationMap:
    """What several networks say on the mean of the same places of one slide."""
    bias = np.mean([one.bias for one in maps], axis=0).tolist()
    return replace(maps[0], values=np.mean([one.values for one in maps], axis=0), bias=bias)


def write_map(folder: Path, found: ActivationMap, slide: str, slide_mpp: tuple[float, float]) -> None:
    """Store a map; the folder above `folder` is made if it is missing."""
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    attributes = {name: getattr(found, name) for name in (*NAMES, FIRST)}
    place = found.place_um, found.first_um
    with atomic_folder(folder) as partial:
        store.create_map(partial, slide, found.values, found.classes, *place, slide_mpp, attributes)


def read_map(folder: Path) -> ActivationMap:
    """A stored map. InputError if there is none in `folder`, or it is not what was written."""
    try:
        values, attributes = store.read_map(Path(folder))
        return ActivationMap(values, **{name: attributes[name] for name in NAMES}, first=attributes.get(FIRST, 0))
    except (FileNotFoundError, KeyError):
        raise InputError(f"map {folder}: there is no map; make it with `gigapipe map`") from None
    except ValueError as error:
        raise InputError(f"map {folder}: {error}; make it again with `gigapipe map`") from None
