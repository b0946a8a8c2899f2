"""Shared memory that the killed ranks of an earlier run have left, and MPICH would take for its own.

MPICH's ranks of one host meet in a segment whose name is made of the run's name at its launcher, and remove it in
MPI_Finalize. Under Slurm that name is job and step: if ranks are killed and the job is requeued, it starts under the
same name, on a host that holds the segment with the dead ranks' counters in it. No rank waits for the others then, and
MPI cannot start ("failed to unpack address, invalid bandwidth 0.00"), as often as it is tried.
"""

import contextlib
import fcntl
import os
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")


def remove_left_segments() -> None:
    """Remove what has this run's name, and no process holds. Each rank calls it before it initialises MPI.

    A rank may have made the run's own segment before another comes here: that one is held. Two ranks that find the same
    old one come one after the other, and the later does not take the new one for it.
    """
    if not (run := os.environ.get("PMI_JOBID")):
        return
    for kind in ("shm", "vci"):
        for segment in SHARED_MEMORY.glob(f"mpich_{kind}_{_fnv1a(run):x}_*"):
            with contextlib.suppress(OSError):  # it is another user's, or has just gone
                _remove_unless_held(segment)


def _remove_unless_held(segment: Path) -> None:
    with segment.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.samestat(os.fstat(file.fileno()), segment.stat()) and not _held(segment):
            segment.unlink()


def _held(path: Path) -> bool:
    """Whether a process that this one may look at has opened `path` for writing, or maps it.

    In that order: who makes a segment has it open until it is mapped. Who waits for the lock only reads.
    """
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            for opened in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(opened) == str(path) and opened.lstat().st_mode & 0o200:
                        return True
            if any(line.rstrip().endswith(f" {path}") for line in (process / "maps").open(encoding="utf-8")):
                return True
    return False


def _fnv1a(text: str) -> int:
    """The hash of 32 bits by which MPICH names segments (http://www.isthe.com/chongo/tech/comp/fnv/)."""
    value = 2166136261
    for byte in text.encode():
        value = (value ^ byte) * 16777619 & 0xFFFFFFFF
    return value
