"""Writing files so that a reader finds the old one or the new one whole, and never a part."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gigapipe.disks import UNSUPPORTED, named, tell_once
from gigapipe.errors import InputError, Unavailable
from gigapipe.one_writer import only_writer


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A name beside `path` to write to; it is renamed to `path` when the block ends well, and removed when not.

    The folder is made if it is missing. The name holds this process's number, so that two writers of one file
    cannot mix, and ends in `.partial`. An OSError of the block names `path` if it names no file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with named(path):
            yield partial
            with open(partial, "rb") as file:
                _to_disk(file)
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):  # what it was is said already
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def resumable_file(path: str | Path, keep: bool) -> Iterator[Path]:
    """The same, but a run that is cut short leaves what it has, if it is to `keep` it, and the next finds it.

    Raises Busy if another process is writing it; see `only_writer`.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    with named(path), only_writer(path), open(partial, "ab") as file:  # and so it is there
        if not keep:
            file.truncate(0)
        try:
            yield partial
            _to_disk(file)
            os.replace(partial, path)
        finally:
            with contextlib.suppress(OSError):
                if not (keep and partial.stat().st_size):
                    partial.unlink()


def _to_disk(file: IO) -> None:
    """Wait until the disk has the file, or a power cut may leave its new name on an empty one."""
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        tell_once(
            f"{Path(file.name).parent}: this file system cannot confirm that a file is on the disk ({error.strerror}); "
            "after a power failure check the files that were written last",
            about=("fsync", os.fstat(file.fileno()).st_dev),
        )


@contextlib.contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """The same for a folder, which replaces what was there; its name must begin with no dot.

    Raises Busy if another process is writing it; see `only_writer`.
    """
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    with only_writer(folder):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with named(folder):
                yield partial
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def resumable_folder(folder: str | Path, identity: str) -> Iterator[Path]:
    """The same, but a run that is cut short leaves what it has: the next with the same `identity` finds it and goes on.

    What ends with InputError would end so again, unless it is Unavailable: it leaves nothing.
    """
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    mark = partial / ".identity"
    with only_writer(folder):
        if not (mark.exists() and mark.read_text(encoding="utf-8") == identity):
            shutil.rmtree(partial, ignore_errors=True)
            with atomic_file(mark) as new:
                new.write_text(identity, encoding="utf-8")
        for torn in partial.rglob("*.partial"):  # what was being written when that run was killed: ours, and zarr's
            torn.unlink(missing_ok=True)  # a worker of that run may live yet, and end with it
        try:
            with named(folder):
                yield partial
        except InputError as error:
            if not (isinstance(error, Unavailable) and error.of_use):
                shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        mark.unlink()
        partial.rename(folder)
