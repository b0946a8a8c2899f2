"""From a slide to its pyramid: every resolution from level 0 by exact area mean, with Dask."""

import functools
import hashlib
from pathlib import Path

import dask
import dask.array as da
import numpy as np
from tqdm.dask import TqdmCallback

from gigapipe.aside import folder_aside
from gigapipe.errors import InputError
from gigapipe.progress import Progress
from gigapipe.pyramids import store
from gigapipe.pyramids.area import area_mean, output_size, source_range
from gigapipe.slides.reader import Slide
from gigapipe.slides.tissue import find_tissue

SOURCE_EDGE = 2048  # level-0 pixels a side that one thread holds at a time


def build_pyramid(slide_path: Path, folder: Path, resolutions: list[float], threads: int = 2, chunk: int = 512) -> None:
    """Write the slide at each of `resolutions` (µm per pixel) into a new store in `folder`.

    Level 0 is the source of every resolution, at the ratio that the slide's own µm per pixel gives. The store is
    written aside and renamed when whole; what was in `folder` before is replaced only then.

    Raises InputError, naming the slide, if it cannot be read or is coarser than one of `resolutions`.
    """
    slide_path, folder, resolutions = Path(slide_path), Path(folder), sorted(resolutions)
    with Slide(slide_path) as slide:
        own = max(slide.mpp)
        if resolutions[0] < own * (1 - 1e-6):
            raise InputError(
                f"slide {slide_path}: has {own:g} µm per pixel, coarser than the {resolutions[0]:g} asked for; "
                "take that resolution out of the config, or the slide out of the sample sheet"
            )
        ratios = [tuple(mpp / m for m in slide.mpp) for mpp in resolutions]
        shapes = [tuple(output_size(n, r) for n, r in zip(slide.shape, ratio, strict=True)) for ratio in ratios]
        tissue = find_tissue(slide)
        attributes = {
            "source": {
                "name": slide_path.name,
                "bytes": slide_path.stat().st_size,
                "md5": _md5(slide_path),
                "mpp": list(slide.mpp),
                "vendor": slide.vendor,
            },
            "tissue": {"box_um": tissue.box_um, "fraction": tissue.fraction},
        }
        with folder_aside(folder) as partial:
            arrays = store.create(partial, resolutions, shapes, chunk, slide.mpp, attributes)
            store.add_label(partial, "tissue", tissue.outline, tissue.outline_mpp, slide.mpp)
            _fill(slide_path, arrays, ratios, threads)


def _fill(slide_path: Path, arrays: list, ratios: list[tuple[float, float]], threads: int) -> None:
    # One Dask task makes one chunk, so that no two ever write to the same file.
    sources = [
        da.map_blocks(
            _chunk,
            chunks=da.core.normalize_chunks(array.chunks, array.shape),
            dtype=array.dtype,
            meta=np.empty((0, 0, 0), "uint8"),
            path=slide_path,
            ratio=ratio,
        )
        for array, ratio in zip(arrays, ratios, strict=True)
    ]
    progress = TqdmCallback(tqdm_class=Progress, what=slide_path.stem, unit="tasks")
    try:
        with progress, dask.config.set(scheduler="threads", num_workers=threads):
            da.store(sources, arrays, lock=False)
    finally:
        _slide.cache_clear()


@functools.lru_cache(maxsize=1)
def _slide(path: Path) -> Slide:
    """The open slide, once a process: handles do not survive a fork and are not pickled to a worker."""
    return Slide(path)


def _chunk(path: Path, ratio: tuple[float, float], block_info=None) -> np.ndarray:
    """One chunk (channel, row, column) of the output, made in pieces whose source is at most `SOURCE_EDGE` a side."""
    slide = _slide(path)
    (_, _), *ranges = block_info[None]["array-location"]
    out = np.empty((3, *(stop - start for start, stop in ranges)), np.uint8)
    edges = [max(1, int(SOURCE_EDGE / r)) for r in ratio]
    for top in range(*ranges[0], edges[0]):
        for left in range(*ranges[1], edges[1]):
            piece = [(a, min(a + e, stop)) for a, e, (_, stop) in zip((top, left), edges, ranges, strict=True)]
            (r0, r1), (c0, c1) = (source_range(*p, r, n) for p, r, n in zip(piece, ratio, slide.shape, strict=True))
            mean = area_mean(slide.read(r0, c0, r1 - r0, c1 - c0), *piece, ratio, slide.shape)
            (a, b), (c, d) = ((p[0] - start, p[1] - start) for p, (start, _) in zip(piece, ranges, strict=True))
            out[:, a:b, c:d] = mean.transpose(2, 0, 1)
    return out


def _md5(path: Path) -> str:
    """The checksum that slide archives publish; it tells versions apart, nothing rests on it for security."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
