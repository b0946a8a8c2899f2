"""Progress of long work: a bar on a terminal, plain lines in a log."""

import sys
import time

from tqdm import tqdm


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
