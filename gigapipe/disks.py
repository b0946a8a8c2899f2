"""Disks that fail: which faults pass and are waited for, and what a line says of those that stay."""

import contextlib
import errno
import logging
import os
import socket
import time
import traceback
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import TypeVar

logger = logging.getLogger(__name__)

WAITS = (1.0, 5.0, 25.0)
"""Seconds before a read that failed is tried again: a file system that many nodes share has its moments."""

_NAMES = ["EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "EREMOTEIO", "ENOTCONN", "ESHUTDOWN", "EHOSTDOWN", "EHOSTUNREACH"]
PASSING = {getattr(errno, name) for name in _NAMES if hasattr(errno, name)}  # of Linux; others lack some
"""What a disk, or the network that it is on, may do without a moment later."""

UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.ENOLCK, errno.EPERM, 524}
"""How file systems, and containers, say that they know no `flock` or no `fsync`; Linux calls 524 ENOTSUPP."""

REMEDIES = {
    "free some space on its disk, or write to another disk": (errno.ENOSPC, errno.EDQUOT),
    "give a path that is writable": (errno.EROFS,),
    "ask its owner for permission, or give another path": (errno.EACCES, errno.EPERM),
    "give a shorter name": (errno.ENAMETOOLONG,),
    "correct the path": (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EEXIST, errno.ENOTEMPTY),
    "its file system, or `ulimit -f`, does not allow files of this size": (errno.EFBIG,),
    "allow more open files (`ulimit -n`)": (errno.EMFILE, errno.ENFILE),
    "the program that reads this output has ended": (errno.EPIPE,),
}

NUMPY_FULL = ("Not enough free space", " requested and ")
"""What numpy says of a full disk, without a number."""

PLACES = 8
"""Where in a file it is looked whether its disk can be read."""

T = TypeVar("T")


def passes(error: OSError) -> bool:
    return error.errno in PASSING


def raise_passing(error: Exception) -> None:
    """Raise an error again that is the disk's and not the file's: of that alone it may be said that it is of no use."""
    if isinstance(error, OSError) and passes(error):
        raise error


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """An OSError of the block is of `path` if it names no file: a full disk does not say what it had no room for."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def read_again(read: Callable[[], T], path: Path) -> T:
    """What `read()` gives, which is tried again after `WAITS` if the disk of `path` has a fault that may pass.

    Raises the OSError, naming the file, that stays, or that is of another kind.
    """
    with named(path):
        for wait in WAITS:
            try:
                return read()
            except OSError as error:
                if not passes(error):
                    raise
                host, reason = socket.gethostname(), error.strerror or error
                logger.warning(f"{path}: cannot be read on {host} ({reason}); next attempt in {wait:g} s")
                time.sleep(wait)
        return read()


def look_for_fault(path: Path) -> None:
    """Read a little of a file here and there, from the disk itself: OSError if the disk is what fails.

    For libraries that say of a file that it is damaged whatever the reason.
    """
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        for place in range(PLACES):
            offset = size * place // PLACES
            if hasattr(os, "posix_fadvise"):  # or memory might answer for the disk
                os.posix_fadvise(file.fileno(), offset, 4096, os.POSIX_FADV_DONTNEED)
            os.pread(file.fileno(), 4096, offset)


def remedy(error: OSError) -> str:
    """What to do about it."""
    number = errno.ENOSPC if any(words in str(error) for words in NUMPY_FULL) else error.errno
    found = next((text for text, numbers in REMEDIES.items() if number in numbers), None)
    if found is None and error.filename is None and isinstance(error, ConnectionError | TimeoutError):
        return "check the network, and run it again"
    return found or "check its disk, and run it again"


def in_one_line(error: OSError) -> str:
    """The file, what is wrong with it, and what to do."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes | Path)]
    reason = " ".join(str(error.strerror or error).split()) or type(error).__name__
    return f"{' → '.join(names) or _place(error)}: {reason}; {remedy(error)}"


def _place(error: OSError) -> str:
    """Where in gigapipe it came up: what is known of an error that names no file."""
    here = Path(__file__).parent
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    ours = [f"{file.relative_to(here)}, line {line}" for file, line in frames if file.is_relative_to(here)]
    return ours[-1] if ours else "gigapipe"


def tell_once(text: str, about: Hashable = None) -> None:
    """Warn once in this process, of the same `about`, which is the text itself if it is not given."""
    if (about or text) not in _TOLD:
        _TOLD.add(about or text)
        logger.warning(text)


_TOLD: set[Hashable] = set()
