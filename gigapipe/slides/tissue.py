"""Where the tissue is: stained pixels are coloured, glass and dust are grey, and what is greener than red is ink."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

CHROMA = 20  # difference of a pixel's largest and smallest channel, in grey levels; the same for all slides
GREEN_OF_INK = 15  # by which green exceeds red in blue and green ink; of H&E both stains absorb more green
SMOOTHING, GAP, SPECK, MARGIN = 2.0, 200.0, 50.0, 16.0  # µm


def _chroma(rgb: np.ndarray) -> np.ndarray:
    """The difference of a pixel's largest and smallest channel, (rows, columns), uint8; none where there is ink.

    Black ink has none of its own; red ink is not told from eosin.
    """
    red, green, blue = (np.ascontiguousarray(rgb[..., channel]) for channel in range(3))
    chroma = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    chroma[green.astype(np.int16) - red > GREEN_OF_INK] = 0
    return chroma


def tissue_outline(rgb: np.ndarray, mpp: float) -> np.ndarray:
    """Mask (rows, columns), bool, of tissue and its narrow gaps, in uint8 RGB (rows, columns, 3) at `mpp` µm per pixel.

    Tissue is what has more chroma than glass, on the mean over some `SMOOTHING` µm, and what lies in between where that
    is narrower than `GAP` µm; specks smaller than `SPECK` µm across are none. The threshold is the same for all slides:
    what is tissue can be told from its surroundings.
    """
    chroma = ndimage.gaussian_filter(_chroma(rgb).astype(np.float32), SMOOTHING / mpp)
    reach = GAP / 2 / mpp
    mask = np.pad(chroma > CHROMA, int(reach) + 2)
    if mask.any():
        near = ndimage.distance_transform_edt(~mask) <= reach
        mask = ndimage.distance_transform_edt(near) > reach
    mask = mask[int(reach) + 2 : -int(reach) - 2, int(reach) + 2 : -int(reach) - 2]
    pieces, _ = ndimage.label(mask)
    small = np.bincount(pieces.ravel()) < (SPECK / mpp) ** 2
    small[0] = False  # glass
    return mask & ~small[pieces]


@dataclass(frozen=True)
class Tissue:
    """Where a slide has tissue."""

    box_um: list[float]
    """Its bounding box: top, left, bottom, right, in µm from the slide's corner; of all the slide if it has none."""
    fraction: float
    """Its share of the slide's area."""
    outline: np.ndarray
    """The tissue's outline on the whole slide (rows, columns), bool, and `MARGIN` µm or a pixel around it."""
    outline_mpp: list[float]
    """µm per row and column of that picture."""


def find_tissue(picture: np.ndarray, shape: tuple[int, int], slide_mpp: tuple[float, float]) -> Tissue:
    """Where a slide has tissue, by a picture (row, column, 3), uint8 RGB, of the whole of it.

    The slide has `shape` (rows, columns), with `slide_mpp` µm each.
    """
    extent = np.array([n * mpp for n, mpp in zip(shape, slide_mpp, strict=True)])
    mpp = [float(length / n) for length, n in zip(extent, picture.shape, strict=False)]
    mask = tissue_outline(picture, max(mpp))
    if not mask.any():
        return Tissue([0.0, 0.0, *map(float, extent)], 0.0, mask, mpp)
    outline = ndimage.distance_transform_edt(~mask, sampling=mpp) <= max(MARGIN, 1.5 * max(mpp))
    ends = [np.flatnonzero(mask.any(axis=axis))[[0, -1]] + [0, 1] for axis in (1, 0)]
    (top, bottom), (left, right) = (end / n * length for end, n, length in zip(ends, mask.shape, extent, strict=True))
    return Tissue([float(v) for v in (top, left, bottom, right)], float(mask.mean()), outline, mpp)
