"""Where the tissue is: stained pixels are coloured, glass is grey."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

# Difference between a pixel's largest and smallest channel, in grey levels. Glass stays below the first even with
# JPEG noise; the palest stain is above the second. Otsu's threshold is looked for in between.
CHROMA_OF_GLASS, CHROMA_OF_STAIN = 12, 40
CHROMA_OF_TISSUE = 20  # of an outline; the same for all slides
SMOOTHING, GAP, SPECK, MARGIN = 2.0, 200.0, 50.0, 16.0  # µm


def tissue_mask(rgb: np.ndarray) -> np.ndarray:
    """Mask (rows, columns), bool, of the stained pixels of uint8 RGB (rows, columns, 3), freed of specks.

    A pixel is tissue if its chroma exceeds Otsu's threshold (doi:10.1109/TSMC.1979.4310076) of the whole picture,
    kept within bounds so that a picture without tissue has none.
    """
    chroma = np.ptp(rgb, axis=2)
    counts = np.bincount(chroma.ravel(), minlength=256).astype(float)
    below = counts.cumsum()
    weighted = (counts * np.arange(256)).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (weighted[-1] * below - weighted * below[-1]) ** 2 / (below * (below[-1] - below))
    threshold = np.clip(np.nanargmax(np.where(np.isfinite(between), between, -1)), CHROMA_OF_GLASS, CHROMA_OF_STAIN)
    return ndimage.binary_opening(chroma > threshold, structure=np.ones((3, 3)))


def tissue_outline(rgb: np.ndarray, mpp: float) -> np.ndarray:
    """Mask (rows, columns), bool, of tissue and its narrow gaps; `rgb` is as above, at `mpp` µm per pixel.

    Tissue is what has more chroma than glass, on the mean over some `SMOOTHING` µm, and what lies in between where that
    is narrower than `GAP` µm; specks smaller than `SPECK` µm across are none. The threshold is the same for all slides:
    what is tissue can be told from its surroundings.
    """
    chroma = ndimage.gaussian_filter(np.ptp(rgb, axis=2).astype(np.float32), SMOOTHING / mpp)
    reach = GAP / 2 / mpp
    mask = np.pad(chroma > CHROMA_OF_TISSUE, int(reach) + 2)
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
    """Where a slide has tissue, by a picture (row, column, 3) of the whole of it.

    The slide has `shape` (rows, columns), with `slide_mpp` µm each.
    """
    mask = tissue_mask(picture)
    extent = np.array([n * mpp for n, mpp in zip(shape, slide_mpp, strict=True)])
    mpp = [float(length / n) for length, n in zip(extent, mask.shape, strict=True)]
    distance = ndimage.distance_transform_edt(~tissue_outline(picture, max(mpp)), sampling=mpp)
    outline = distance <= max(MARGIN, 1.5 * max(mpp))
    if not mask.any():
        return Tissue([0.0, 0.0, *map(float, extent)], 0.0, outline, mpp)
    ends = [np.flatnonzero(mask.any(axis=axis))[[0, -1]] + [0, 1] for axis in (1, 0)]
    (top, bottom), (left, right) = (end / n * length for end, n, length in zip(ends, mask.shape, extent, strict=True))
    return Tissue([float(v) for v in (top, left, bottom, right)], float(mask.mean()), outline, mpp)


def at_pixels(mask: np.ndarray, rows: tuple[int, int], columns: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """A coarse mask of an image, at some of the pixels of that image of `shape`: (rows, columns), by the nearest."""
    places = [
        ((np.arange(*part) + 0.5) * n // full).astype(int)
        for part, n, full in zip((rows, columns), mask.shape, shape, strict=True)
    ]
    return mask[np.ix_(*places)]
