"""The end of a job in which a rank has failed: what happened, where, and which ranks do not answer."""

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from gigapipe.atomic import atomic_file
from gigapipe.errors import InputError

ANSWER = 10.0
"""Seconds that ranks which have waited in vain have to tell each other that they are still there."""

ABORT = 5.0
"""Seconds after which a rank ends even if its launcher, told to end all, has not ended it: it may be out of reach."""

OTHERS = 4.0
"""Seconds that a rank leaves to those which began to wait a little later: who ends first ends the launcher of all."""

LEADERS = 4
"""How many ranks, the first ones, call the others; more than one, for one may be the one that does not answer."""

_HERE = 7501  # a message's tag


def end_all(world, error: BaseException, hosts: list[str], stage: str, failure_records: Path | None) -> NoReturn:
    """Say what happened to this rank of the MPI communicator `world` in `stage`, and end all of them with status 1.

    Of ranks that have waited in vain, the first that is still there says which are not; `hosts` are all ranks' hosts.
    What a rank says also goes into a file of the folder `failure_records`: a network that is gone carries no output.
    """
    me = f"rank {world.rank} of {world.size} on {socket.gethostname()}"
    if isinstance(error, InputError):
        text, first = f"gigapipe: {error}", world.rank == 0
    else:
        text, first = f"{me} failed in {stage}:\n{''.join(traceback.format_exception(error))}", True
    _write_record(text, failure_records, world.rank)
    if isinstance(error, TimeoutError | ConnectionError):
        silent = _roll_call(world)
        first = not set(range(world.rank)) - set(silent)
        if silent and hosts:
            text += f"{me}: last in {stage}; no answer from {on_hosts(silent, hosts)}"
            _write_record(text, failure_records, world.rank)
            time.sleep(OTHERS)
    if not first:  # what is wrong for all is said once: the others leave the first a moment to end the job
        time.sleep(4)
    print(text, file=sys.stderr, flush=True)
    time.sleep(1)  # an aborted launcher drops what it has not yet passed on
    end = threading.Timer(ABORT, os._exit, [1])
    end.daemon = True
    end.start()
    with contextlib.suppress(Exception):
        world.Abort(1)
    os._exit(1)  # Abort may return before the launcher has ended this process


def _write_record(text: str, failure_records: Path | None, rank: int) -> None:
    with contextlib.suppress(OSError):
        if failure_records:
            with atomic_file(failure_records / f"rank-{rank:04}.txt") as partial:
                partial.write_text(text + "\n")


def _roll_call(world) -> list[int]:
    """The ranks, of those that this one asks, from which nothing comes for `ANSWER` seconds; all that fail call it."""
    from mpi4py import MPI

    leaders = [rank for rank in range(min(LEADERS, world.size)) if rank != world.rank]
    asked = range(world.size) if world.rank < LEADERS else range(LEADERS)
    silent = {rank for rank in asked if rank != world.rank}
    with contextlib.suppress(MPI.Exception):
        sent = [
            world.Isend(bytearray(1), rank, _HERE) for rank in {*leaders, *(silent if world.rank < LEADERS else ())}
        ]
        answers = {rank: world.Irecv(bytearray(1), rank, _HERE) for rank in silent}
        end = time.monotonic() + ANSWER
        while silent and time.monotonic() < end:
            silent -= {rank for rank in silent if answers[rank].Test()}
            time.sleep(0.02)
        MPI.Request.Testall(sent)
    return sorted(silent)


def on_hosts(ranks: Iterable[int], hosts: list[str]) -> str:
    """Ranks by host, as `ranks 4, 5 on node2`."""
    by_host: dict[str, list[int]] = {}
    for rank in ranks:
        by_host.setdefault(hosts[rank], []).append(rank)
    return ", ".join(
        f"rank{'s' * (len(there) > 1)} {', '.join(map(str, there))} on {host}" for host, there in by_host.items()
    )
