"""What the library logs, as lines on standard error for whoever waits."""

import io
import logging
import sys


class _PlainLines(logging.Handler):
    """Writes a record's message alone, to what standard error is at that time."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def log_to_stderr() -> None:
    """Write what gigapipe logs, from INFO on, to standard error; once is enough for a process.

    Whatever is printed there goes out by whole lines from then on: Python would write the end of a line by itself, and
    the lines of ranks, which share a launcher, would mix. On standard output letters that the locale lacks are escaped.
    """
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(line_buffering=True, write_through=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what the locale has no letter for
    logger = logging.getLogger("gigapipe")
    if not logger.handlers:
        handler = _PlainLines()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
