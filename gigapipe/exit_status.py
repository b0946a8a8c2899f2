"""What the exit status of a verb says to whoever started it: whether, and when, the same command may do better.

A scheduler's retries cannot tell; `attempts.py` and the workflow do. docs/clusters.md has the table.
"""

import errno

from gigapipe.errors import InputError, Unavailable

NEVER = 1
"""The same command would end so again: input, settings, a loss that is no number, memory below what the plan needs."""

USAGE = 2
"""Never, too: no such option. It is argparse's."""

AGAIN = 69
"""Something was not there that may be the next time, or on another node: disk, network, rank, GPU (EX_UNAVAILABLE)."""

DEFECT = 70
"""gigapipe is at fault, as far as it can tell (EX_SOFTWARE)."""

UNFINISHED = 75
"""It stopped in time, and the same command goes on from there (EX_TEMPFAIL)."""

TOLD = {NEVER, USAGE, DEFECT, UNFINISHED}
"""With these a verb has said all that there is to say."""

PATHS = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
"""Errors of a path itself, which no other disk and no other time will mend."""


def of(error: BaseException) -> int:
    """The status with which an error ends a verb."""
    if isinstance(error, Unavailable):
        return AGAIN
    if isinstance(error, InputError | ModuleNotFoundError):
        return NEVER
    if isinstance(error, OSError):
        return NEVER if error.errno in PATHS else AGAIN
    return AGAIN if is_memory(error) else DEFECT


def is_memory(error: BaseException) -> bool:
    """Whether a process, or its GPU, had no memory left. torch says it of a host in words alone."""
    name = type(error).__name__
    return isinstance(error, MemoryError) or name == "OutOfMemoryError" or "can't allocate memory" in str(error)
