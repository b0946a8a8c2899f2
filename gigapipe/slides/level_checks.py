"""Whether a coarse level of a slide's file shows what level 0 shows, before it stands for it.

Files were met whose levels are padded to whole tiles, so that they lie otherwise than their size says, or are another
picture: a label, another focus, another slide.
"""

import itertools

import numpy as np

from gigapipe.errors import InputError
from gigapipe.slides.reader import Slide
from gigapipe.slides.tiff import SPARSE, tile_bytes

ROUNDING = 1.0  # pixels by which scanners' levels are smaller or larger than a quotient
PLACES = 4  # where it is compared
EDGE, CELLS = 32, 8  # pixels a side of what is compared, and means along each
NEAR = 8  # times smaller than the level that it is compared with, if there is one
SPAN = 384  # pixels a side that are read of the finer level, at most
CONTRAST, OTHER = 5.0, 25.0  # grey levels: what can be compared, and by how much a picture is another
ALIKE = 0.5  # correlation of the means; that of a level and its finer one is 0.9 or more


def fault(slide: Slide, level: int) -> str | None:
    """Why a level is not used, or None. The answer is kept in `slide.faults`.

    A level is compared with the next finer one that is used, in a few places where it shows most.
    """
    if level and level not in slide.faults:
        checks = _shape_fault, _tiles_fault, _picture_fault
        slide.faults[level] = next((found for check in checks if (found := check(slide, level))), None)
    return slide.faults.get(level)


def _shape_fault(slide: Slide, level: int) -> str | None:
    (rows, columns), (own_rows, own_columns) = slide.file_shapes[0], slide.file_shapes[level]
    by = slide.level_downsamples[level]
    if all(abs(own - whole / by) <= ROUNDING for own, whole in ((own_rows, rows), (own_columns, columns))):
        return None
    return (
        f"its {own_rows} × {own_columns} pixels are {rows / own_rows:.4g} and {columns / own_columns:.4g} times fewer "
        f"than the {rows} × {columns} of level 0"
    )


def _tiles_fault(slide: Slide, level: int) -> str | None:
    found = tile_bytes(slide.path, slide.level_shapes[level])
    if found is None or slide.vendor in SPARSE or found[0].all():
        return None
    return f"{int((found[0] == 0).sum())} of its {found[0].size} tiles have no data"


def _picture_fault(slide: Slide, level: int) -> str | None:
    by = slide.level_downsamples
    whole = [i for i in range(level) if by[level] % by[i] == 0 and by[i] < by[level]]
    near = [i for i in whole if by[level] <= NEAR * by[i]]
    # One that is not near costs more to read, but one that is near may have a fault of its own.
    order = sorted(near, key=lambda i: by[i]) + sorted(set(whole) - set(near), key=lambda i: -by[i])
    finer = next((i for i in order if not fault(slide, i)), None)
    if finer is None:
        return None  # as large as level 0
    ratio = by[level] // by[finer]
    edge = max(CELLS, min(EDGE, SPAN // ratio // CELLS * CELLS))
    rows, columns = (min(edge, n // CELLS * CELLS) for n in slide.level_shapes[level])
    if not rows * columns:
        return None  # a few pixels
    shown = []
    for row, column in _places(slide, level, (rows, columns)):
        try:
            shown.append(((row, column), _means(slide.read(row, column, rows, columns, level))))
        except InputError:  # damaged; who reads it all will meet it
            continue
    shown.sort(key=lambda place: -place[1].std())
    others, compared = 0, 0
    for (row, column), own in shown[:PLACES]:
        try:
            true = _means(slide.read(row * ratio, column * ratio, rows * ratio, columns * ratio, finer))
        except InputError:
            continue
        alike = _alike(own, true)
        if alike is None:
            continue
        compared += 1
        others += not alike
        if 2 * (compared - others) > PLACES:
            return None  # whatever the last one is
    if compared and 2 * others >= compared:
        return f"in {others} of {compared} places it shows a different image than level {finer}, or is shifted"
    return None


def _places(slide: Slide, level: int, edges: tuple[int, int]) -> list[tuple[int, int]]:
    """Rows and columns of the level where it may be compared: in each quarter where the file has most bytes, or, where
    it does not tell or a few tiles are all, everywhere."""
    shape = slide.level_shapes[level]
    counts, tile = np.ones((3, 3)), (shape[0] / 3, shape[1] / 3)
    if (found := tile_bytes(slide.path, shape)) and min(found[0].shape) >= 3:
        counts, tile = found
    parts = [np.array_split(np.arange(n), min(n, 2 if counts.min() < counts.max() else 3)) for n in counts.shape]
    places = []
    for rows, columns in itertools.product(*parts):
        part = counts[np.ix_(rows, columns)]
        i, j = np.unravel_index(part.argmax(), part.shape)
        centre = (rows[i] + 0.5) * tile[0], (columns[j] + 0.5) * tile[1]
        row, column = (int(min(max(c - e / 2, 0), n - e)) for c, e, n in zip(centre, edges, shape, strict=True))
        places.append((row, column))
    return places


def _means(pixels: np.ndarray) -> np.ndarray:
    """Grey means (CELLS, CELLS) of pixels (rows, columns, 3)."""
    rows, columns = (n // CELLS for n in pixels.shape[:2])
    return pixels.mean(axis=2).reshape(CELLS, rows, CELLS, columns).mean(axis=(1, 3))


def _alike(own: np.ndarray, true: np.ndarray) -> bool | None:
    """Whether two pictures show the same; None where neither shows anything, as glass."""
    if abs(own.mean() - true.mean()) > OTHER:
        return False
    if max(own.std(), true.std()) < CONTRAST:
        return None
    if min(own.std(), true.std()) < 1e-6:
        return False
    return bool(np.corrcoef(own.ravel(), true.ravel())[0, 1] >= ALIKE)
