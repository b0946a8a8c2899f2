"""Where the tissue is: stained pixels are coloured, glass is grey."""

import numpy as np
from scipy import ndimage

from gigapipe.slides.reader import Slide

# Difference between a pixel's largest and smallest channel, in grey levels. Glass stays below the first even with
# JPEG noise; the palest stain is above the second. Otsu's threshold is looked for in between.
CHROMA_OF_GLASS, CHROMA_OF_STAIN = 12, 40


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


def find_tissue(slide: Slide) -> dict:
    """The tissue's bounding box, in µm from the slide's corner, and its share of the slide's area.

    Returns `{"box_um": [top, left, bottom, right], "fraction": share}`; a slide without tissue has the box of the
    whole slide and the share 0.
    """
    mask = tissue_mask(slide.thumbnail(longest=1024))
    extent = np.array([n * mpp for n, mpp in zip(slide.shape, slide.mpp, strict=True)])
    if not mask.any():
        return {"box_um": [0.0, 0.0, *map(float, extent)], "fraction": 0.0}
    ends = [np.flatnonzero(mask.any(axis=axis))[[0, -1]] + [0, 1] for axis in (1, 0)]
    (top, bottom), (left, right) = (end / n * length for end, n, length in zip(ends, mask.shape, extent, strict=True))
    return {"box_um": [float(v) for v in (top, left, bottom, right)], "fraction": float(mask.mean())}
