"""A verb in a process of its own: a crash of native code, over one slide's file, is told in a line, as any fault is."""

import os
import signal
import sys
import threading

from gigapipe.slides.crashes import CRASHES


def run_apart() -> signal.Signals | None:
    """Go on in a child of this process, where this returns None. Here it waits, and ends as that one does; of one that
    crashed it returns the signal.

    To be called before this process has a second thread: a fork has the first alone, and all the others' locks.
    """
    alive, parents_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        os.close(parents_end)
        threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
        return None
    os.close(alive)
    told = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    for number in told:
        signal.signal(number, lambda received, _: os.kill(child, received))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's reaches the child, too
    _, status = os.waitpid(child, 0)
    for number in told:
        signal.signal(number, signal.SIG_DFL)
    if os.WIFEXITED(status):
        raise SystemExit(os.WEXITSTATUS(status))
    ended = signal.Signals(os.WTERMSIG(status))
    if ended in CRASHES:
        return ended
    signal.signal(ended, signal.SIG_DFL)
    os.kill(os.getpid(), ended)
    raise SystemExit(128 + ended)


def _end_with_parent(alive: int) -> None:
    """End this process when its parent has ended, killed perhaps: the next one to be started would meet it."""
    os.read(alive, 1)
    os._exit(1)
