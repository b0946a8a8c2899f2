"""Writing files so that a reader finds the old one or the new one whole, and never a part."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from gigapipe.errors import InputError


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A name beside `path` to write to; it is renamed to `path` when the block ends well, and removed when not.

    The folder is made if it is missing. The name holds this process's number, so that two writers of one file
    cannot mix, and ends in `.partial`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())  # or a power cut may leave the new name on an empty file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def resumable_file(path: str | Path, keep: bool) -> Iterator[Path]:
    """The same, but a run that is cut short leaves what it has, if it is to `keep` it, and the next finds it.

    Raises InputError if another process is writing it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "ab") as file:  # and so it is there
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go when this process ends, however it ends
        except BlockingIOError:
            raise InputError(f"{path}: another process is fetching it; wait for that one") from None
        if not keep:
            file.truncate(0)
        try:
            yield partial
            os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            if partial.exists() and not (keep and partial.stat().st_size):
                partial.unlink()


@contextlib.contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """The same for a folder, which replaces what was there; its parent must exist, and its name begin with no dot."""
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def resumable_folder(folder: str | Path, identity: str) -> Iterator[Path]:
    """The same, but a run that is cut short leaves what it has: the next with the same `identity` finds it and goes on.

    What ends with InputError would end so again: it leaves nothing.
    """
    folder = Path(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    mark = partial / ".identity"
    if not (mark.exists() and mark.read_text(encoding="utf-8") == identity):
        shutil.rmtree(partial, ignore_errors=True)
        with atomic_file(mark) as new:
            new.write_text(identity, encoding="utf-8")
    for torn in partial.rglob("*.partial"):  # what was being written when that run was killed: ours, and zarr's
        torn.unlink(missing_ok=True)  # a worker of that run may live yet, and end with it
    try:
        yield partial
    except InputError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    mark.unlink()
    partial.rename(folder)
