"""What is said of long work."""

import logging
import time

from gigapipe.cli.messages import log_to_stderr
from gigapipe.progress import watch


def test_what_others_do_is_told_with_the_time_that_is_left(caplog):
    caplog.set_level(logging.INFO, "gigapipe")
    begin = time.monotonic()
    watch("pyramids", lambda: min(5, int((time.monotonic() - begin) / 0.2)), total=5, every=0.1)
    time.sleep(1.5)
    assert [line.split(",")[0] for line in caplog.messages] == [f"pyramids: {n} of 5" for n in range(1, 6)]
    assert all(line.endswith("about 00:00 left") or "about 00:01 left" in line for line in caplog.messages)


def test_what_is_logged_is_a_plain_line_on_standard_error_once(capsys):
    log_to_stderr()
    log_to_stderr()
    logging.getLogger("gigapipe.slides.disk_space").info("3 slides to fetch.")
    assert capsys.readouterr().err == "3 slides to fetch.\n"
