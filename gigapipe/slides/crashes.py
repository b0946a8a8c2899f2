"""Crashes of native code over a slide's file: which they are, and slides that are looked at where none does harm."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gigapipe.errors import InputError

CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT}


def crash_of(slide: Path, what: str) -> InputError:
    """The error of a slide over which a process crashed, as `what` says."""
    return InputError(
        f"slide {slide}: reading it crashed ({what}); download it again, or remove its row from the sample sheet"
    )


class Answer(NamedTuple):
    """What a function returned, or the InputError that it raised."""

    value: Any
    error: InputError | None


def ask(function: Callable, slides: Iterable[tuple]) -> Iterator[Answer]:
    """What `function(*slide)` returns for each of `slides`, the first of its arguments being the path.

    All is done in another process; over what it crashes is an error of its slide, and another goes on with the next.
    """
    left = list(slides)
    while left:
        # -P: what lies in the working folder is no module, whatever its name.
        command = [sys.executable, "-P", "-c", PROGRAM]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdin and other.stdout
            other.stdin.write(pickle.dumps((function, left)))
            other.stdin.close()
            while left:
                try:
                    yield pickle.load(other.stdout)
                except EOFError:
                    break
                left.pop(0)
        if left:
            path, *_ = left.pop(0)
            if -other.returncode not in CRASHES:
                raise RuntimeError(f"slide {path}: the process that read it ended with status {other.returncode}")
            yield Answer(None, crash_of(path, signal.Signals(-other.returncode).name))


PROGRAM = "from gigapipe.slides.crashes import answer; answer()"


def answer() -> None:
    """The other process of `ask`; who asks may stop at an error, and read no further."""
    with contextlib.suppress(BrokenPipeError), os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # for what a library may have to say
        function, slides = pickle.load(sys.stdin.buffer)
        for slide in slides:
            try:
                found = Answer(function(*slide), None)
            except InputError as error:
                found = Answer(None, error)
            out.write(pickle.dumps(found))
            out.flush()
