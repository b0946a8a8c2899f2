"""Ending in time: a training that is told to stop, or whose time runs out, stops between two steps, to go on later.

Nothing heavy is imported here: a signal may come while a process is still importing.
"""

import signal
import time
from types import FrameType

RESERVE = 30.0
"""Seconds of its time that a process takes to start and to end in."""


class Unfinished(Exception):
    """A training has stopped before its end, and its state is on disk. Its text says where and why."""


class Stop:
    """Whether a process is to stop: a scheduler's SIGTERM or SIGUSR1 came, or of `minutes` too little is left.

    To be made first of all: until then, these signals kill.
    """

    def __init__(self, minutes: float | None = None):
        self.signal: signal.Signals | None = None
        self._end = None if minutes is None else time.monotonic() + 60 * minutes - RESERVE
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def late(self, seconds: float) -> bool:
        """Whether what took `seconds` before may no longer end in time."""
        return self._end is not None and time.monotonic() + 1.5 * seconds > self._end

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = signal.Signals(number)
