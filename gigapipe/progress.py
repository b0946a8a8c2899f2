"""Progress of long work: a bar on a terminal, plain lines in a log."""

import logging
import sys
import threading
import time
from collections.abc import Callable

from tqdm import tqdm

logger = logging.getLogger(__name__)


class Progress(tqdm):
    """A tqdm bar on standard error; where that is no terminal, a line of text at most every 10 seconds.

    Nothing is shown of what takes less than `delay` seconds.
    """

    def __init__(self, iterable=None, *, what: str, unit: str, total: int | None = None, delay: float = 0):
        self._on_terminal = sys.stderr.isatty()
        super().__init__(
            iterable,
            desc=what,
            unit=f" {unit}",
            total=total,
            file=sys.stderr,
            mininterval=0.1 if self._on_terminal else 10,
            ncols=None if self._on_terminal else 100,
            ascii=None if self._on_terminal else " #",
            delay=delay,
            leave=not delay,
        )

    def display(self, msg=None, pos=None):
        if self._on_terminal:
            return super().display(msg, pos)
        print(msg or str(self), file=sys.stderr, flush=True)
        return True

    def close(self):
        # On a terminal tqdm leaves the full bar; in a log the last line is written here, once.
        if not self._on_terminal and not self.disable:
            if time.time() - self.start_t >= (self.delay or 0):
                self.display()
            self.disable = True
        super().close()


def watch(what: str, done: Callable[[], int], total: int, every: float = 30) -> None:
    """Say from now on, while this process lives, how much of work that others do is done, and how long the rest takes.

    `done` counts it; it is asked every so many seconds, and what it says is logged when it has changed.
    """

    def look() -> None:
        first = said = done()
        begin = time.monotonic()
        while said < total:
            time.sleep(every)
            now = done()
            if now > said:
                left = (total - now) * (time.monotonic() - begin) / (now - first)
                logger.info(f"{what}: {now} of {total}, about {tqdm.format_interval(left)} left")
                said = now

    threading.Thread(target=look, daemon=True).start()
