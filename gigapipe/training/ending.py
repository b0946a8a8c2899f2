"""The end of a job in which a rank has failed: what happened, where, and which ranks do not answer."""

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from typing import NoReturn

from gigapipe import exit_status
from gigapipe.atomic import atomic_file
from gigapipe.attempts import Attempts
from gigapipe.disks import in_one_line
from gigapipe.errors import InputError
from gigapipe.one_writer import Busy, release_all
from gigapipe.training.watch import Watch

ANSWER = 10.0
"""Seconds that ranks which have waited in vain have to tell each other that they are still there."""

ABORT = 5.0
"""Seconds after which a rank ends even if its launcher, told to end all, has not ended it: it may be out of reach."""

OTHERS = 4.0
"""Seconds that a rank leaves to those which began to wait a little later: who ends first ends the launcher of all."""

LEADERS = 4
"""How many ranks, the first ones, call the others; more than one, for one may be the one that does not answer."""

_HERE = 7501  # a message's tag


def end_all(
    world, error: BaseException, hosts: list[str], stage: str, attempts: Attempts | None, watch: Watch | None
) -> NoReturn:
    """Say what happened to this rank of the MPI communicator `world` in `stage`, and end all of them.

    Of ranks that have waited in vain, the first that is still there says which are not; `hosts` are all ranks' hosts.
    What a rank says also goes into a file of the folder of `attempts`: a network that is gone carries no output.
    """
    lost = isinstance(error, TimeoutError | ConnectionError)
    status = exit_status.of(error)
    if watch:
        if isinstance(error, ConnectionError):
            watch.await_end()
        watch.leave()
    me = f"rank {world.rank} of {world.size} on {socket.gethostname()}"
    if isinstance(error, InputError):
        text, first = f"gigapipe: {error}", world.rank == 0
    elif isinstance(error, OSError) and not lost:
        text, first = f"gigapipe: {in_one_line(error)} ({me}, in {stage})", True
    else:
        text, first = f"{me} failed in {stage}:\n{''.join(traceback.format_exception(error))}", True
    if isinstance(error, Busy):
        attempts = None  # it is another's
    _write_record(text, attempts, world.rank)
    if attempts:
        attempts.note(error)
    if lost:
        rank, silent = world.rank, _asked(world)

        def with_silent() -> str:
            return text + f"{me}: last in {stage}; no answer from {on_hosts(sorted(silent), hosts)}" * bool(hosts)

        # Where a network is gone MPI itself may stand still in this: what is known by then is written all the same.
        late = threading.Timer(ANSWER + 1, lambda: _write_record(with_silent(), attempts, rank))
        late.daemon = True
        late.start()
        _roll_call(world, silent)
        late.cancel()
        first = not set(range(rank)) - silent
        if silent and hosts:
            text = with_silent()
            _write_record(text, attempts, rank)
            time.sleep(OTHERS)
    if not first:  # what is wrong for all is said once: the others leave the first a moment to end the job
        time.sleep(4)
    print(text, file=sys.stderr, flush=True)
    time.sleep(1)  # an aborted launcher drops what it has not yet passed on
    release_all()
    if watch:
        watch.end_others(status)
    end = threading.Timer(ABORT, os._exit, [status])
    end.daemon = True
    end.start()
    with contextlib.suppress(Exception):
        world.Abort(status)
    os._exit(status)  # Abort may return before the launcher has ended this process


def _write_record(text: str, attempts: Attempts | None, rank: int) -> None:
    with contextlib.suppress(OSError):
        if attempts:
            with atomic_file(attempts.folder / f"rank-{rank:04}.txt") as partial:
                partial.write_text(text + "\n", encoding="utf-8")


def _asked(world) -> set[int]:
    """The ranks that this one asks whether they are there: all, or of many the first."""
    asked = range(world.size) if world.rank < LEADERS else range(LEADERS)
    return {rank for rank in asked if rank != world.rank}


def _roll_call(world, silent: set[int]) -> None:
    """Take out of `silent`, those that this rank asks, who answers within `ANSWER` seconds; all that fail call it."""
    from mpi4py import MPI

    leaders = [rank for rank in range(min(LEADERS, world.size)) if rank != world.rank]
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


def on_hosts(ranks: Iterable[int], hosts: list[str]) -> str:
    """Ranks by host, as `ranks 4, 5 on node2`."""
    by_host: dict[str, list[int]] = {}
    for rank in ranks:
        by_host.setdefault(hosts[rank], []).append(rank)
    return ", ".join(
        f"rank{'s' * (len(there) > 1)} {', '.join(map(str, there))} on {host}" for host, there in by_host.items()
    )
