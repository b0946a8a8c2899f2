"""Masks: where a slide has tissue, at one resolution of its pyramid, as a label image of its own store."""

from pathlib import Path

import numpy as np
import zarr
from PIL import Image

from gigapipe.atomic import atomic_folder
from gigapipe.errors import InputError
from gigapipe.pyramids import store
from gigapipe.pyramids.store import Pyramid
from gigapipe.slides.tissue import tissue_outline

LABEL = "tissue"


def make_mask(pyramid: Pyramid, mpp: float, folder: Path, drawn: Path | None = None) -> None:
    """Write where the slide of `pyramid` has tissue, at `mpp` µm per pixel, into a new store in `folder`.

    `drawn` is a picture of the whole slide at any resolution, not zero where there is tissue: any that Pillow reads, or
    an array (rows, columns) in a .npy file. Without it `gigapipe.slides.tissue.tissue_outline` says where. The slide is
    held whole in memory at `mpp`.
    """
    array = pyramid.array(mpp)
    if drawn is None:
        mask = tissue_outline(np.asarray(array[:]).transpose(1, 2, 0), mpp)
    else:
        picture = _read(drawn)
        stretch = picture.shape[0] / picture.shape[1] * array.shape[2] / array.shape[1]
        if not 0.95 < stretch < 1.05:
            raise InputError(
                f"mask {drawn}: is {picture.shape[0]} × {picture.shape[1]}, another shape than the slide's "
                f"{array.shape[1]} × {array.shape[2]}; it must show the whole slide, unturned"
            )
        rows, columns = (
            ((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(array.shape[1:], picture.shape, strict=True)
        )
        mask = picture[np.ix_(rows, columns)]
    write_mask(folder, mask, mpp, tuple(pyramid.source["mpp"]))


def _read(path: Path) -> np.ndarray:
    try:
        if path.suffix == ".npy":
            picture = np.load(path)
        else:
            Image.MAX_IMAGE_PIXELS = None  # slides are larger than what Pillow takes for an attack
            image = Image.open(path)
            picture = np.asarray(image.convert("RGB") if image.mode in ("P", "PA", "LA", "RGBA") else image)
    except (OSError, ValueError) as error:
        raise InputError(f"mask {path}: cannot be read ({error}); correct `mask` in the sample sheet") from None
    if picture.ndim == 3:
        picture = picture.any(2)
    if picture.ndim != 2:
        raise InputError(f"mask {path}: has {picture.ndim} axes, not rows and columns")
    return picture != 0


def write_mask(folder: Path, mask: np.ndarray, mpp: float, slide_mpp: tuple[float, float]) -> None:
    """Store a mask (row, column) of a slide; the folder above `folder` is made if it is missing."""
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as partial:
        store.add_label(partial, LABEL, mask, (mpp, mpp), slide_mpp)


def read_mask(folder: Path) -> zarr.Array:
    """A stored mask (row, column), uint8, 0 or 1. InputError if there is none in `folder`."""
    try:
        return store.read_label(folder, LABEL)
    except (FileNotFoundError, KeyError):
        raise InputError(f"mask {folder}: no mask there; make it with `gigapipe mask`") from None
