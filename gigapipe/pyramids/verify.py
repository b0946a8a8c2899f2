"""Whether a store is what it was when it was made, and what its slide shows."""

import numpy as np

from gigapipe.errors import InputError
from gigapipe.progress import Progress
from gigapipe.pyramids.build import Settings, output_of
from gigapipe.pyramids.store import Pyramid
from gigapipe.slides.reader import Slide

RECTANGLES, EDGE = 8, 256  # of each resolution that are compared with the slide; pixels a side


def verify_chunks(pyramid: Pyramid) -> int:
    """Read all of a store; how many bytes of pixels it holds. Of OME-Zarr 0.5, each chunk carries a checksum.

    Raises InputError if a chunk is missing or damaged.
    """
    total = 0
    for mpp in pyramid.resolutions:
        array = pyramid.array(mpp)
        if lost := pyramid.lost_files(mpp):
            raise InputError(
                f"pyramid {pyramid.folder}: of {mpp:g} µm/px {lost} files are missing; make it again with "
                "`gigapipe pyramid`"
            )
        edge = (array.shards or array.chunks)[1]
        for row in Progress(range(0, array.shape[1], edge), what=f"{mpp:g} µm/px", unit="rows of chunks", delay=5):
            try:
                total += np.asarray(array[:, row : row + edge]).nbytes
            except Exception as error:  # zarrs and numcodecs have errors of their own
                raise InputError(
                    f"pyramid {pyramid.folder}: damaged at {mpp:g} µm/px near row {row} "
                    f"({' '.join(str(error).split())}); make it again with `gigapipe pyramid`"
                ) from None
    return total


def verify_pixels(pyramid: Pyramid, slide: Slide, seed: int = 0) -> int:
    """Make some rectangles of a store again from its slide; how many. InputError if a pixel is another."""
    if (slide.path.stat().st_size, list(slide.shape)) != (pyramid.source["bytes"], pyramid.source["shape"]):
        raise InputError(
            f"pyramid {pyramid.folder}: was made from another file than {slide.path} is now; make it again"
        )
    settings = Settings(**pyramid.settings)
    rng = np.random.default_rng(seed)
    for mpp in pyramid.resolutions:
        array = pyramid.array(mpp)
        for _ in range(RECTANGLES):
            starts = [int(rng.integers(0, max(1, n - EDGE + 1))) for n in array.shape[1:]]
            rows, columns = ((s, min(s + EDGE, n)) for s, n in zip(starts, array.shape[1:], strict=True))
            expected = output_of(slide, mpp, rows, columns, settings)
            if settings.clean_background:
                expected[:, ~pyramid.outline_at(mpp, slice(*rows), slice(*columns))] = 255
            if not (np.asarray(array[:, slice(*rows), slice(*columns)]) == expected).all():
                raise InputError(
                    f"pyramid {pyramid.folder}: at {mpp:g} µm/px, rows {rows[0]}–{rows[1]}, columns "
                    f"{columns[0]}–{columns[1]}, it is not what slide {slide.path} shows; make it again"
                )
    return RECTANGLES * len(pyramid.resolutions)
