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
"""The variable by which all that a run starts is known: its process, its host, and the results that it makes."""

STOPPING = 600.0
"""Seconds that jobs have to stop in: a training ends its step, and writes its state."""


def begin(results: Path) -> None:
    """Let what this process starts be known for jobs of the run that makes `results`."""
    os.environ[RUN] = f"{os.getpid()}{_of(results)}"


def end_with_run() -> None:
    """Let SIGTERM come to this process when the run of this host that has started it, if one has, ends before it."""
    process, _, place = os.environ.get(RUN, "").partition("@")
    if place.partition(":")[0] != socket.gethostname() or not hasattr(os, "pidfd_open"):
        return
    try:
        run = os.pidfd_open(int(process))
        command = Path(f"/proc/{process}/cmdline").read_bytes()
    except (OSError, ValueError):  # out of sight, as from a container
        return
    if b"snakemake" in command:  # and no other that has its number there
        threading.Thread(target=_await, args=(run,), daemon=True).start()


def _await(run: int) -> None:
    ended = select.poll()
    ended.register(run, select.POLLIN)
    ended.poll()
    os.kill(os.getpid(), signal.SIGTERM)


def stop(results: Path, patience: float = STOPPING) -> list[int]:
    """Tell the jobs on this host of runs that made `results`, and were killed, to stop, and wait for that.

    To be called by who alone may make them. Returns the processes that are still there after `patience` seconds.
    """
    if found := _started_for(results):
        verbs = [process for process, command in found.items() if _is_verb(command)]
        numbers = ", ".join(map(str, verbs or found))
        logger.info(f"{results}: stopping the jobs of a killed run that are still running: processes {numbers}")
        for process in verbs:  # those that started them end with them
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
                os.kill(process, signal.SIGCONT)  # one that is suspended would not notice
    end = time.monotonic() + patience
    while found and time.monotonic() < end:
        time.sleep(0.2)
        found = _started_for(results)
    return list(found)


def _of(results: Path) -> str:
    return f"@{socket.gethostname()}:{results.absolute()}"


def _started_for(results: Path) -> dict[int, list[str]]:
    """The processes that runs have started here to make `results`, and their commands."""
    import psutil

    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # another's, or one that has just ended
            if process.pid != os.getpid() and process.environ().get(RUN, "").endswith(_of(results)):
                found[process.pid] = process.cmdline()
    return found


def _is_verb(command: list[str]) -> bool:
    return any(Path(word).name == "gigapipe" for word in command[:2])
