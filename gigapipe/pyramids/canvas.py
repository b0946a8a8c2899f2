"""The canvas: the fixed-size square of a slide that the network sees, tissue centred, white outside. Never stored."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from gigapipe.errors import InputError
from gigapipe.pyramids.pixel_cache import PixelCache
from gigapipe.pyramids.reading import read_pixels
from gigapipe.pyramids.store import Pyramid
from gigapipe.slides.verdicts import NONE

WHITE = 255

WHOLE = 0.95
"""Share of the slides whose tissue a canvas that is chosen holds whole: one large slide costs all the others time."""


def corner(pyramid: Pyramid, mpp: float, size: int) -> tuple[int, int]:
    """Row and column, in the slide at `mpp`, of the first pixel of a canvas of `size` px a side; may be negative."""
    top, left, bottom, right = pyramid.tissue["box_um"]
    down, across = pyramid.scale(mpp)
    return round((top + bottom) / 2 / down - size / 2), round((left + right) / 2 / across - size / 2)


def read_canvas(
    pyramid: Pyramid,
    mpp: float,
    size: int,
    rows: tuple[int, int] | None = None,
    columns: tuple[int, int] | None = None,
    masked: bool = False,
    shift: tuple[int, int] = (0, 0),
    stage: Path | None = None,
    cache: PixelCache | None = None,
) -> np.ndarray:
    """Pixels (channel, row, column), uint8, of the canvas's `rows` × `columns` (half-open; by default all of it).

    Only the chunks that this rectangle touches are read, as `read_pixels` does. `masked`: glass, which is never quite
    white, becomes white. `shift`: rows and columns by which the canvas is moved over the slide.
    """
    array = pyramid.array(mpp)
    inside, outside, shape = [], [], []
    for start, by, (first, last), length in zip(
        corner(pyramid, mpp, size), shift, (rows or (0, size), columns or (0, size)), array.shape[1:], strict=True
    ):
        start += by
        begin, end = (min(max(start + edge, 0), length) for edge in (first, last))
        inside.append(slice(begin, end))
        outside.append(slice(begin - start - first, end - start - first))
        shape.append(last - first)
    canvas = np.full((3, *shape), WHITE, np.uint8)
    if all(s.stop > s.start for s in inside):
        down, across = ((part.start, part.stop) for part in inside)
        canvas[:, *outside] = read_pixels(array, down, across, stage, cache)
        if masked:
            canvas[:, *outside][:, ~pyramid.outline_at(mpp, *inside)] = WHITE
    return canvas


def lost_tissue(pyramid: Pyramid, mpp: float, size: int) -> float:
    """Share of the tissue's bounding box that lies outside a canvas of `size` px a side at `mpp`."""
    top, left, bottom, right = pyramid.tissue["box_um"]
    lengths = zip((bottom - top, right - left), pyramid.scale(mpp), strict=True)
    kept = [min(1.0, size * scale / length) for length, scale in lengths]
    return 1 - kept[0] * kept[1]


def suitable_canvases(pyramids: Sequence[Pyramid], mpps: Sequence[float]) -> pd.DataFrame:
    """For each resolution a `canvas` (pixels a side) that holds the tissue's box of at least `WHOLE` of the slides.

    It is rounded up to four steps between a power of two and the next, so that a slide more or less seldom changes it.
    A slide that is kept without tissue counts whole.
    Columns `mpp`, `canvas`, and `whole`, the number of `slides` whose box lies within. Raises InputError if no slide
    has tissue.
    """
    tissues = [pyramid.tissue for pyramid in pyramids]
    boxes = [tissue["box_um"] for tissue in tissues if tissue["fraction"] > 0 or tissue["verdict"] == NONE]
    if not boxes:
        raise InputError("canvas: auto: no tissue was found in any slide; give the canvas in pixels")
    sides = np.sort([max(bottom - top, right - left) for top, left, bottom, right in boxes])
    needed = sides[int(np.ceil(WHOLE * len(sides))) - 1]
    rows = []
    for mpp in mpps:
        canvas = coarsely(needed / mpp)
        rows.append({"mpp": mpp, "canvas": canvas, "whole": int((sides <= canvas * mpp).sum()), "slides": len(sides)})
    return pd.DataFrame(rows)


def coarsely(side: float) -> int:
    """The next whole number of at least 4 that is 4, 5, 6, 7 or 8 times a power of two."""
    step = 1
    while 8 * step < side:
        step *= 2
    return max(4, int(np.ceil(side / step))) * step
