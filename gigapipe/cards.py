"""A machine's GPUs among jobs that run side by side: each takes as many as it needs, and sees no others.

A job holds a lock of each of its GPUs, in a folder of this host and user, so that several runs of the workflow share
them as well. The system lets go of it when the last process of the job ends, however it ends.
"""

import fcntl
import os
import tempfile
import time
from pathlib import Path

from gigapipe.errors import InputError

VISIBLE = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
"""The variables by which a process knows its GPUs; AMD's HIP reads both, and goes by the first."""

JOBS = ("SLURM_JOB_ID", "LSB_JOBID", "PBS_JOBID", "FLUX_JOB_ID")
"""Schedulers' variables: in different jobs of theirs one number may be different GPUs."""

SIGNS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Device files of NVIDIA's driver, AMD's and that of Windows' Linux: without one, torch need not be asked."""

PAUSE = 0.5
"""Seconds until a job that found too few GPUs free looks again."""


def visible() -> str:
    """The variable that counts for this process."""
    return next((name for name in VISIBLE if name in os.environ), VISIBLE[-1])


def cards() -> list[str]:
    """The names of this process's GPUs: those that somebody gave it, or the numbers of all that torch sees."""
    told = os.environ.get(visible())
    if told is not None:
        return [name for name in told.split(",") if name and name != "-1"]
    if not any(map(os.path.exists, SIGNS)):
        return []
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def take(number: int, names: list[str]) -> list[str]:
    """`number` of the GPUs that no other job has, which stay this process's and its children's; waits for them."""
    job = next((f"-{os.environ[name]}" for name in JOBS if name in os.environ), "")
    folder = Path(tempfile.gettempdir()) / f"gigapipe-gpus-{os.getuid()}{job}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise InputError(f"GPUs: {folder} belongs to another user; remove it, or set TMPDIR to a folder of yours")
    while True:
        held: dict[str, int] = {}
        for name in names:
            if len(held) < number and (lock := _lock(folder / name.replace("/", "_"))) is not None:
                held[name] = lock
        if len(held) == number:
            for lock in held.values():
                os.set_inheritable(lock, True)
            return list(held)
        for lock in held.values():  # or two jobs could wait for each other's
            os.close(lock)
        time.sleep(PAUSE)


def _lock(path: Path) -> int | None:
    """A lock of a file; None if another process has it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock
