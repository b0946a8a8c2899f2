"""What is said of long work."""

import time

from gigapipe.progress import watch


def test_what_others_do_is_told_with_the_time_that_is_left(capsys):
    begin = time.monotonic()
    watch("pyramids", lambda: min(5, int((time.monotonic() - begin) / 0.2)), total=5, every=0.1)
    time.sleep(1.5)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"pyramids: {n} of 5" for n in range(1, 6)]
    assert all(line.endswith("about 00:00 left") or "about 00:01 left" in line for line in lines)
