"""Whether a store is what it was when it was made, and what its slide shows."""

import numpy as np

from gigapipe.errors import InputError
from gigapipe.progress import Progress
from gigapipe.pyramids.build import output_of
from gigapipe.pyramids.codecs import rounded
from gigapipe.pyramids.files import check, is_stamped, seal, stamp
from gigapipe.pyramids.settings import Settings
from gigapipe.pyramids.store import Pyramid, arrays
from gigapipe.slides.reader import Slide

RECTANGLES, EDGE = 8, 256  # of each resolution that are compared with the slide; pixels a side


def verify_chunks(pyramid: Pyramid) -> int:
    """Read all of a store; how many bytes of pixels it holds.

    Raises InputError if a chunk is missing, damaged, or another's.
    """
    _ = pyramid.outline  # which is checked as it is read
    total = 0
    for mpp in pyramid.resolutions:
        array = pyramid.array(mpp)
        if lost := pyramid.lost_files(mpp):
            raise InputError(
                f"pyramid {pyramid.folder}: of {mpp:g} µm/px {lost} files are missing; make it again with "
                "`gigapipe pyramid`"
            )
        try:
            check(array)
        except ValueError as error:
            raise InputError(
                f"pyramid {pyramid.folder}: at {mpp:g} µm/px {error}; make it again with `gigapipe pyramid`"
            ) from None
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


def adopt(pyramid: Pyramid) -> int:
    """Give the arrays of a store that have no checksums those of what they hold now; how many."""
    writable = [array for array in arrays(pyramid.folder) if not is_stamped(array)]
    for array in writable:
        stamp(array)
    seal(pyramid.folder)
    return len(writable)


def verify_pixels(pyramid: Pyramid, slide: Slide, seed: int = 0) -> int:
    """Make some rectangles of a store again from its slide; how many. InputError if a pixel is another.

    What was made of a finer resolution, the slide being gone, may differ by the error that the store says. Where that
    has no bound, nothing is compared.
    """
    if (slide.path.stat().st_size, list(slide.shape)) != (pyramid.source["bytes"], pyramid.source["shape"]):
        raise InputError(f"pyramid {pyramid.folder}: was not made from the present file {slide.path}; make it again")
    settings = Settings(**pyramid.settings)
    rng = np.random.default_rng(seed)
    compared = [
        mpp for mpp in pyramid.resolutions if pyramid.made_from.get(mpp, {}).get("largest_error", 0) is not None
    ]
    for mpp in compared:
        array = pyramid.array(mpp)
        for _ in range(RECTANGLES):
            starts = [int(rng.integers(0, max(1, n - EDGE + 1))) for n in array.shape[1:]]
            rows, columns = ((s, min(s + EDGE, n)) for s, n in zip(starts, array.shape[1:], strict=True))
            expected = output_of(slide, mpp, rows, columns, settings)
            if settings.clean_background:
                expected[:, ~pyramid.outline_at(mpp, slice(*rows), slice(*columns))] = 255
            stored = np.asarray(array[:, slice(*rows), slice(*columns)])
            if not _is_as_it_was_stored(stored, expected, pyramid, mpp):
                raise InputError(
                    f"pyramid {pyramid.folder}: at {mpp:g} µm/px, rows {rows[0]}–{rows[1]}, columns "
                    f"{columns[0]}–{columns[1]}, it differs from slide {slide.path}; make it again"
                )
    return RECTANGLES * len(compared)


def _is_as_it_was_stored(stored: np.ndarray, expected: np.ndarray, pyramid: Pyramid, mpp: float) -> bool:
    """Whether pixels (channel, row, column) are those of the slide, but for what their codec lost."""
    codec, of_store = pyramid.codec, pyramid.made_from.get(mpp)
    if of_store:
        own = codec["largest_error"][pyramid.resolutions.index(mpp)]
        return bool((abs(stored.astype(np.int16) - expected) <= own + of_store["largest_error"]).all())
    if codec["name"] != "jpeg":
        return bool((stored == rounded(expected, codec["name"])).all())
    # Another version of libjpeg may decode some pixels otherwise.
    most = codec["largest_error"][pyramid.resolutions.index(mpp)] + 1
    return bool((abs(stored.astype(np.int16) - expected) <= most).all())
