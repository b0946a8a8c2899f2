"""Ranks watch each other: where one dies without a word all end at once, and not when a scheduler gets to it.

A connection between two processes closes when one of them ends, however it ends. Each rank has one to the first rank of
its host, and those have one to rank 0: who sees one close ends, too, and so the others see it. The ports are open until
all have connected, which only those can who have been told a secret by MPI.
"""

import contextlib
import hmac
import logging
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from gigapipe import memory_kills
from gigapipe.errors import Unavailable
from gigapipe.exit_status import AGAIN
from gigapipe.one_writer import release_all

logger = logging.getLogger(__name__)

GRACE = 0.5
"""Seconds that a launcher has to end all by itself, and a line to reach it."""

CONNECTING = 20.0
"""Seconds that ranks have to connect."""

_SECRET = 32  # bytes
_LEAVES, _ENDS = b"l", b"e"  # what is said before a connection closes; after the second comes an exit status


class Watch:
    """Of the ranks of the MPI communicator `world`, whose `host` shares one machine. All make it together.

    `address` is where the ranks of other hosts find this one. `stage` says what this rank is in.
    """

    def __init__(self, world, host, address: Callable[[], str], stage: Callable[[], str]):
        self._me, self._stage = f"rank {world.rank} of {world.size} on {socket.gethostname()}", stage
        self._processes = world.allgather((socket.gethostname(), os.getpid(), host.rank, host.size))
        self._kills = memory_kills.counted()
        self._on_host, self._of_firsts = host.rank, 0
        here = _star(host, world.rank, lambda: "127.0.0.1")
        elsewhere: dict[socket.socket, int] = {}
        if host.size < world.size:
            first_of_host = world.Split(0 if host.rank == 0 else 1, world.rank)
            if host.rank == 0:
                elsewhere = _star(first_of_host, world.rank, address)
                self._of_firsts = first_of_host.rank
        self._ends, self._here = here | elsewhere, set(here)
        self._left: set[socket.socket] = set()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._listen, name="watch", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """This rank is going to end, and the others need not."""
        self._tell(_LEAVES)
        self._wake.close()
        self._thread.join(timeout=5)

    def end_others(self, status: int) -> None:
        """They end, too, with this exit status."""
        self._tell(_ENDS + bytes([status]))

    def close(self) -> None:
        for end in (*self._ends, self._wake, self._woken):
            end.close()

    def await_end(self) -> None:
        """Called by a rank that finds another out of reach: if that has died, this process ends in here."""
        self._thread.join(timeout=4 * GRACE)

    def _tell(self, what: bytes) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.send(what)

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for end in (*self._ends, self._woken):
                selector.register(end, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._woken:
                        return
                    assert isinstance(key.fileobj, socket.socket)
                    if self._hears_the_last_of(key.fileobj):
                        selector.unregister(key.fileobj)

    def _hears_the_last_of(self, end: socket.socket) -> bool:
        """Do as the other side says; whether it has left in peace, and has closed."""
        try:
            said = end.recv(16)
        except OSError:
            said = b""
        if _ENDS in said:
            self._end(*said.partition(_ENDS)[2][:1])
        if _LEAVES in said:
            self._left.add(end)
        if said:
            return False
        if end not in self._left:
            self._mourn(end)
        return True

    def _mourn(self, end: socket.socket) -> NoReturn:
        """End all for a rank that died; of those that see it one says so, once the launcher had its say."""
        rank = self._ends[end]
        host, process, on_host, of_host = self._processes[rank]
        time.sleep(GRACE)
        here = end in self._here
        if (here and (on_host > 0 or self._on_host == 1)) or (not here and of_host == 1 and self._of_firsts in (0, 1)):
            kills = memory_kills.since(self._kills) if here else None
            killed = f"was killed because memory ran out (oom_kill: {kills})"
            why = killed if kills else "has ended without a message; perhaps it was killed"
            line = f"{self._me}: last in {self._stage()}; rank {rank} (process {process} on {host}) {why}: all end\n"
            os.write(2, line.encode())  # the main thread may stand still with sys.stderr in its hands
        time.sleep(GRACE)
        self._end()

    def _end(self, status: int = AGAIN) -> NoReturn:
        self.end_others(status)
        release_all()
        os._exit(status)


def _star(ranks, own: int, address: Callable[[], str]) -> dict[socket.socket, int]:
    """Connections of an MPI communicator's first rank to all others, each with the rank at its other end in the world.

    `own` is this one's. Where they cannot be made a warning says so, for the first rank to be told.
    """
    if ranks.size == 1:
        return {}
    listener = told = None
    if ranks.rank == 0:
        try:
            listener = socket.create_server((address(), 0), backlog=ranks.size)
            told = (*listener.getsockname()[:2], secrets.token_bytes(_SECRET), own)
        except (OSError, Unavailable) as error:
            _warn(str(error))
    told = ranks.bcast(told)
    if told is None:
        return {}
    *where, secret, first = told
    try:
        if listener is None:
            return {_connect(tuple(where), secret, own): first}
        with listener:
            return _accept(listener, secret, ranks.size - 1)
    except OSError as error:
        _warn(str(error))
        return {}


def _connect(where: tuple, secret: bytes, own: int) -> socket.socket:
    end = socket.create_connection(where, timeout=CONNECTING)
    end.sendall(secret + own.to_bytes(4, "big"))
    end.settimeout(None)
    return end


def _accept(listener: socket.socket, secret: bytes, number: int) -> dict[socket.socket, int]:
    """The first `number` that know the secret, or those that come in time."""
    found: dict[socket.socket, int] = {}
    until = time.monotonic() + CONNECTING
    while len(found) < number and (left := until - time.monotonic()) > 0:
        listener.settimeout(left)
        try:
            end, _ = listener.accept()
        except TimeoutError:
            break
        end.settimeout(min(left, 2.0))
        try:
            said = b""
            while len(said) < _SECRET + 4 and (more := end.recv(_SECRET + 4 - len(said))):
                said += more
        except OSError:
            said = b""
        if len(said) == _SECRET + 4 and hmac.compare_digest(said[:_SECRET], secret):
            end.settimeout(None)
            found[end] = int.from_bytes(said[_SECRET:], "big")
        else:
            end.close()
    if len(found) < number:
        _warn(f"{number - len(found)} of {number} have not connected")
    return found


def _warn(reason: str) -> None:
    logger.warning(
        f"ranks cannot monitor each other ({reason}): if one dies, only the launcher or --timeout ends the job"
    )
