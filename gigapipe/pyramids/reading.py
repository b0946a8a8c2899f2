"""Reading pyramids as long trainings need it: tried again, named where it fails, kept on the node's own disk."""

import functools
import hashlib
import logging
import shutil
import socket
import threading
import time
from pathlib import Path

import numpy as np
import zarr

from gigapipe.atomic import atomic_file
from gigapipe.disks import WAITS, tell_once
from gigapipe.errors import InputError, Unavailable
from gigapipe.pyramids.files import check, files_of_rectangle, folder_of
from gigapipe.pyramids.pixel_cache import PixelCache
from gigapipe.pyramids.store import open_array

logger = logging.getLogger(__name__)

SLOW = 60.0
"""Seconds from which on a read is told of."""

RESERVE = 0.05
"""Share of a node's own disk that stays free."""


_COPYING = threading.Lock()
"""Held by the thread that copies a chunk: others may want the same."""


def read_pixels(
    array: zarr.Array,
    rows: tuple[int, int],
    columns: tuple[int, int],
    stage: Path | None = None,
    cache: PixelCache | None = None,
) -> np.ndarray:
    """Pixels (channel, row, column), uint8, of `rows` × `columns` (half-open) of an array of a pyramid.

    Only the chunks that this rectangle touches are read. With a folder to `stage` in, on the node's own disk, they are
    copied there first, and read there from then on, by all of the node's ranks; what it has no room for is read where
    it lies. With a `cache`, chunks that it has are not read, and no file is checked twice. Raises InputError, naming
    the array, its chunk and the host, if what is there is not what was written, and Unavailable if the read fails again
    after `WAITS`. Several threads may call it at once.
    """
    if cache is None:
        return _read(array, stage, None, rows, columns)
    load = functools.partial(_read, array, stage, cache.checked)
    return cache.read(folder_of(array), array.shape, array.chunks, load, rows, columns)


def _read(
    array: zarr.Array, stage: Path | None, checked: set[Path] | None, rows: tuple[int, int], columns: tuple[int, int]
) -> np.ndarray:
    """As `read_pixels` without a cache; files that were `checked` are not checked again."""
    host, begun = socket.gethostname(), time.monotonic()
    for wait in (*WAITS, None):
        try:
            source = staged(array, rows, columns, stage) if stage else array
            check(source, rows, columns, checked)
            pixels = np.asarray(source[:, slice(*rows), slice(*columns)])
            break
        except (OSError, ValueError, RuntimeError) as error:  # zarrs and zarr's own codecs raise one each
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            where = f"{folder_of(array)}: rows {rows[0]}–{rows[1]}, columns {columns[0]}–{columns[1]}"
            if wait is None:
                # A disk may do better another time, and damage stays.
                raise (Unavailable if isinstance(error, OSError) else InputError)(
                    f"{where}: cannot be read on {host} ({reason}); check its disk, and the pyramid with `gigapipe "
                    "verify`"
                ) from None
            logger.warning(f"{where}: cannot be read on {host} ({reason}); next attempt in {wait:g} s")
            time.sleep(wait)
            stage = None  # the fault may be the copy's
    if (took := time.monotonic() - begun) > SLOW:
        logger.warning(f"{folder_of(array)}: reading took {took:.0f} s on {host}")
    return pixels


def staged(array: zarr.Array, rows: tuple[int, int], columns: tuple[int, int], stage: Path) -> zarr.Array:
    """The array as far as it lies in `stage`, where now lie the chunks that the rectangle touches.

    The array itself where they cannot be written there.
    """
    folder, host = folder_of(array), socket.gethostname()
    try:
        copy = _copy(folder, stage)
        for file in files_of_rectangle(array, rows, columns):
            near = folder_of(copy) / file.relative_to(folder)
            with _COPYING:
                if near.exists() or not file.exists():  # what is white has no file
                    continue
                disk = shutil.disk_usage(stage)
                if disk.free - file.stat().st_size < RESERVE * disk.total:
                    tell_once(f"{stage}: the disk of {host} is full; the rest is not cached")
                    return array
                with atomic_file(near) as partial:
                    shutil.copyfile(file, partial)
    except OSError as error:
        tell_once(
            f"{stage}: cannot be used on {host} ({error.strerror or error}); what it does not contain is not cached"
        )
        return array
    return copy


@functools.lru_cache(maxsize=4096)
def _copy(folder: Path, stage: Path) -> zarr.Array:
    """An array like the one in `folder`, still without chunks; of one that has been made anew, another."""
    metadata = [folder / name for name in ("zarr.json", ".zarray", ".zattrs") if (folder / name).exists()]
    made = [(path.stat().st_mtime_ns, path.read_bytes()) for path in metadata]
    copy = stage / hashlib.sha256(repr((str(folder.resolve()), made)).encode()).hexdigest()[:16]
    for path in metadata:
        with atomic_file(copy / path.name) as partial:
            shutil.copyfile(path, partial)
    return open_array(copy)
