"""What the library logs, as lines on standard error for whoever waits."""

import logging
import sys


class _PlainLines(logging.Handler):
    """Writes a record's message alone, to what standard error is at that time."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def log_to_stderr() -> None:
    """Write what gigapipe logs, from INFO on, to standard error; once is enough for a process."""
    logger = logging.getLogger("gigapipe")
    if not logger.handlers:
        handler = _PlainLines()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
