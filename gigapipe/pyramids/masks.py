"""Masks: where a slide has tissue, or regions of several classes, at one resolution of its pyramid.

Each is a label image of its own store: of tissue 1, of regions the number of their class; 0 is the rest.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import zarr

from gigapipe.atomic import atomic_folder
from gigapipe.errors import InputError
from gigapipe.pyramids import store
from gigapipe.pyramids.reading import read_pixels
from gigapipe.pyramids.store import Pyramid
from gigapipe.slides.regions import read_labels, read_regions

TISSUE, REGIONS = "tissue", "regions"
"""Names of label images, of one class and of several."""

CLASS_COLOURS = (
    (213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (240, 228, 66),
)  # fmt: skip
"""That the colour-blind tell apart, and that no stain has (Okabe and Ito 2008, "Color universal design")."""


def make_mask(
    pyramid: Pyramid, mpp: float, folder: Path, drawn: Path | None = None, classes: tuple[str, ...] = ()
) -> float:
    """Write where the slide of `pyramid` has tissue, at `mpp` µm per pixel, into a new store in `folder`; its share.

    `drawn` is a picture or annotations, as `gigapipe.slides.regions` reads them, of which only some `classes` may
    count. Without it, `gigapipe.slides.tissue.tissue_outline` says where. The slide is held whole in memory at `mpp`.
    """
    array = pyramid.array(mpp)
    if drawn is None:
        from gigapipe.slides.tissue import tissue_outline  # slow to import, and trainings only read masks

        _, rows, columns = array.shape
        mask = tissue_outline(read_pixels(array, (0, rows), (0, columns)).transpose(1, 2, 0), mpp)
    else:
        rows, columns = pyramid.source["shape"]
        mask = read_regions(drawn, (rows, columns), (array.shape[1], array.shape[2]), classes)
    write_mask(folder, mask, pyramid, mpp)
    return float(mask.mean())


def make_labels(
    pyramid: Pyramid, mpp: float, folder: Path, drawn: Path, classes: Sequence[str]
) -> tuple[dict[str, float], list[str]]:
    """Write which of `classes` is where on the slide of `pyramid`, at `mpp` µm per pixel, into a new store in `folder`.

    `drawn` is a picture or annotations, as `gigapipe.slides.regions` reads them. The share that each class has of the
    slide, and the names of other classes that were drawn.
    """
    _, height, width = pyramid.array(mpp).shape
    rows, columns = pyramid.source["shape"]
    labels, others = read_labels(drawn, (rows, columns), (height, width), classes)
    write_mask(folder, labels, pyramid, mpp, classes)
    shares = np.bincount(labels.ravel(), minlength=len(classes) + 1) / labels.size
    return dict(zip(classes, shares[1:].tolist(), strict=True)), others


def write_mask(folder: Path, mask: np.ndarray, pyramid: Pyramid, mpp: float, classes: Sequence[str] = ()) -> None:
    """Store a mask (row, column) of a slide, at a resolution of its `pyramid`; the folder above `folder` is made.

    With `classes` its values are their numbers, from 1.
    """
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    name, about = (REGIONS, about_classes(classes)) if classes else (TISSUE, store.ONE_CLASS)
    with atomic_folder(folder) as partial:
        store.add_label(partial, name, mask, pyramid.scale(mpp), tuple(pyramid.source["mpp"]), about=about)


def read_mask(folder: Path, classes: Sequence[str] = ()) -> zarr.Array:
    """A stored mask (row, column), uint8: 0 or 1, or the number of one of `classes`.

    InputError if there is none in `folder`, or it has other classes.
    """
    try:
        mask = store.read_label(folder, REGIONS if classes else TISSUE)
        found = [one["class"] for one in store.about_label(folder, REGIONS)["properties"]] if classes else []
    except (FileNotFoundError, KeyError):
        raise InputError(
            f"mask {folder}: there is no mask; make it with `gigapipe mask{' --labels' * bool(classes)}`"
        ) from None
    if found != list(classes):
        raise InputError(
            f"mask {folder}: has the classes {', '.join(found)}, not {', '.join(classes)}; make it again with "
            "`gigapipe mask --labels`"
        )
    return mask


def about_classes(classes: Sequence[str]) -> dict:
    """What OME-Zarr's `image-label` says of classes: the name and the colour of each value, from 1."""
    values = dict(enumerate(classes, start=1))
    return {
        "colors": [{"label-value": value, "rgba": [*class_colour(value), 255]} for value in values],
        "properties": [{"label-value": value, "class": name} for value, name in values.items()],
    }


def class_colour(value: int) -> tuple[int, int, int]:
    """In RGB, of the class of this value, from 1."""
    return CLASS_COLOURS[(value - 1) % len(CLASS_COLOURS)]
