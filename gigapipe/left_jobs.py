"""Jobs of a run of the workflow that was killed: they would live on, and write what the next run is to make.

Snakemake makes again whatever a job was at when it was killed itself. So such jobs stop, as if a scheduler had told
them to: a training writes its state, and goes on in the next run.
"""

import contextlib
import logging
import os
import select
import signal
import socket
import threading
import time
from pathlib import Path

logger = logging.getLogger(__name__)

RUN = "GIGAPIPE_RUN"
"""The variable by which all that a run starts is known."""

STOPPING = 600.0
"""Seconds that they have to stop in: a training ends its step, and writes its state."""


def begin() -> None:
    """Let what this process starts be known for its own."""
    os.environ[RUN] = _name(socket.gethostname(), os.getpid())


def end_with_run() -> None:
    """Let SIGTERM come to this process when the run of this host that has started it, if one has, ends before it."""
    process, _, host = os.environ.get(RUN, "").partition("@")
    if host != socket.gethostname() or not hasattr(os, "pidfd_open"):
        return
    try:
        run = os.pidfd_open(int(process))
        command = Path(f"/proc/{process}/cmdline").read_bytes()
    except (OSError, ValueError):  # out of sight, as from a container
        return
    if b"snakemake" not in command:  # another that has its number there
        return
    threading.Thread(target=_await, args=(run,), daemon=True).start()


def _await(run: int) -> None:
    ended = select.poll()
    ended.register(run, select.POLLIN)
    ended.poll()
    os.kill(os.getpid(), signal.SIGTERM)


def stop(run: dict, patience: float = STOPPING) -> list[int]:
    """Tell the jobs that live on this host of a run that was killed to stop, and wait for that.

    `run` is what its lock said of it. Returns the processes that are still there after `patience` seconds.
    """
    name = _name(run["host"], run["process"])
    if found := _started_by(name):
        verbs = [process for process, command in found.items() if _is_verb(command)]
        logger.info(
            f"the run of process {run['process']} was killed, and jobs of it are at work (processes "
            f"{', '.join(str(process) for process in verbs or found)}): they are told to stop"
        )
        for process in verbs:  # those that started them end with them
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
    end = time.monotonic() + patience
    while found and time.monotonic() < end:
        time.sleep(0.2)
        found = _started_by(name)
    return list(found)


def _name(host: str, process: int) -> str:
    return f"{process}@{host}"


def _started_by(name: str) -> dict[int, list[str]]:
    """The processes of a run, but this one, and their commands."""
    import psutil

    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # another's, or one that has just ended
            if process.pid != os.getpid() and process.environ().get(RUN) == name:
                found[process.pid] = process.cmdline()
    return found


def _is_verb(command: list[str]) -> bool:
    return any(Path(word).name == "gigapipe" for word in command[:2])
