"""How large pyramids become, said before the first is made: judged by a sample of each slide."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gigapipe.errors import InputError
from gigapipe.plural import counted
from gigapipe.pyramids.settings import Settings, open_slide
from gigapipe.slides.crashes import ask
from gigapipe.slides.disk_space import RESERVE, amount
from gigapipe.slides.levels import Level, open_level
from gigapipe.slides.tiff import tile_bytes

logger = logging.getLogger(__name__)

EDGE, PLACES = 1024, 4  # px of level 0 a side of what is made at a place; and places of a slide
SAMPLED = 64  # slides of a cohort, at most; others are taken for the like of these, by their bytes
UNSURE = 1.5  # times more than it takes may be said


class Size(NamedTuple):
    """Bytes of a slide, and of its pyramid at each resolution, about; and the slide's own µm per pixel."""

    slide: int
    pyramid: list[int]
    mpp: float


def estimate(path: Path, resolutions: Sequence[float], settings: Settings) -> Size:
    """How large a slide's pyramid becomes. InputError if the slide cannot be read.

    Where the file tells the bytes of its tiles, places are taken from all that has few bytes to all that has many, each
    for as many bytes as another; elsewhere all over the slide, each for as many pixels.
    """
    # Slow to import, and those that announce have it asked in another process.
    from gigapipe.pyramids.area import AreaMean, Axis
    from gigapipe.pyramids.codecs import encoded_bytes

    with open_slide(Path(path), settings) as slide:
        ratios = [[max(1.0, mpp / own) for own in slide.mpp] for mpp in resolutions]
        level = open_level(slide)
        found = tile_bytes(slide.path, slide.shape)
        total = np.zeros(len(resolutions))
        places = _of_equal_bytes(*found) if found else _all_over(level)
        for (row, column), share in places:
            rows, columns = min(EDGE, slide.shape[0] - row), min(EDGE, slide.shape[1] - column)
            try:
                pixels = level.read(row, column, rows, columns)
            except InputError:  # damaged there; who makes the pyramid says so
                continue
            for i, ratio in enumerate(ratios):
                axes = [Axis.of(n, r) for n, r in zip(pixels.shape, ratio, strict=False)]
                mean = AreaMean(axes[0], axes[1], (0, axes[0].size), (0, axes[1].size))
                mean.feed(pixels, 0, 0)
                total[i] += share * encoded_bytes(mean.mean, settings.codec, settings.ome_zarr, settings.chunk)
        return Size(slide.path.stat().st_size, [int(bytes) for bytes in total], max(slide.mpp))


Places = list[tuple[tuple[int, int], float]]
"""Rows and columns of places, and how often each stands for itself."""


def _of_equal_bytes(counts: np.ndarray, tile: tuple[int, int]) -> Places:
    high, wide = (max(1, min(EDGE // side, n)) for side, n in zip(tile, counts.shape, strict=True))
    rows, columns = (max(1, n // step) for n, step in zip(counts.shape, (high, wide), strict=True))
    blocks = counts[: rows * high, : columns * wide].reshape(rows, high, columns, wide).sum(axis=(1, 3))
    order = np.argsort(blocks.ravel(), kind="stable")
    reached = np.cumsum(blocks.ravel()[order])
    chosen = [order[np.searchsorted(reached, reached[-1] * (k + 0.5) / PLACES)] for k in range(PLACES)]
    return [
        ((int(i) * high * tile[0], int(j) * wide * tile[1]), counts.sum() / PLACES / max(1, blocks[i, j]))
        for i, j in (divmod(at, columns) for at in chosen)
    ]


def _all_over(level: Level) -> Places:
    rows, columns = level.shape
    corners = [
        (max(0, int(rows * (i + 0.5) / 2) - EDGE // 2), max(0, int(columns * (j + 0.5) / 2) - EDGE // 2))
        for i, j in np.ndindex(2, 2)
    ]
    return [
        ((row, column), rows * columns / len(corners) / (min(EDGE, rows - row) * min(EDGE, columns - column)))
        for row, column in corners
    ]


def announce(
    slides: Mapping[Path, tuple[Settings, int]], resolutions: Sequence[float], folder: Path, beside: int = 0
) -> None:
    """Say how large the pyramids of `slides` become in `folder`, and what its disk has to give.

    Of each slide's file, which need not be here yet, its `Settings`, and its bytes if they are known, or else 0.
    `beside` are bytes that come on that disk, too. Raises InputError if the disk cannot hold nearly so much.
    """
    here = [path for path in slides if path.exists()]
    chosen = [here[i] for i in np.unique(np.linspace(0, len(here) - 1, SAMPLED).astype(int))] if here else []
    answers = list(ask(estimate, [(path, resolutions, slides[path][0]) for path in chosen]))
    found = {path: answer.value for path, answer in zip(chosen, answers, strict=True) if answer.value}
    if not found:
        return  # nothing that can be read is here
    sampled = sum(size.slide for size in found.values())
    each = np.sum([size.pyramid for size in found.values()], axis=0)
    others = sum(path.stat().st_size if path.exists() else slides[path][1] for path in slides if path not in found)
    unknown = sum(not path.exists() and not slides[path][1] for path in slides)
    each = each * (1 + others / sampled)
    parts = ", ".join(f"{amount(size)} at {mpp:g} µm/px" for mpp, size in zip(resolutions, each, strict=True))
    while not folder.exists():
        folder = folder.parent
    disk = shutil.disk_usage(folder)
    free = max(0, disk.free - RESERVE * disk.total)
    more = f" and {counted(unknown, 'slide')} of unknown size" if unknown else ""
    text = (
        f"{counted(len(slides), 'pyramid')} to write, from {amount(sampled + others)} of slides{more}: about "
        f"{amount(each.sum())} ({parts}), estimated from {counted(len(found), 'slide')}; free space on "
        f"the disk of {folder}: {amount(free)}"
    )
    needed = each.sum() + beside
    if needed > UNSURE * free:
        raise InputError(
            f"{text}, which is not enough: free some space, set `pathvars: results:` to another disk, remove the "
            "finest resolution, or set `pyramids: codec:` (docs/pyramids.md states what that saves)"
        )
    logger.info(f"{text}{', which may not be enough' if needed > free else ''}.")
