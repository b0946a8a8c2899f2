"""Processes whose start is not the point are forks of one that has imported what they need (see tests/forked)."""

import fcntl
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAMS = "gigapipe", "python", "snakemake"
FOLDER = Path(__file__).parent / "forked"
ENVIRONMENT = dict(os.environ)
"""That of the tests, before one of them changes it."""


def with_forks(environment: dict[str, str], *programs: str) -> dict[str, str]:
    """Variables with which `programs`, some of `PROGRAMS`, are forks, where nothing is in their way (see
    tests/forked/client).
    """
    path = os.pathsep.join([str(FOLDER), str(Path(sys.executable).parent), environment["PATH"]])
    locale = environment.get("LC_ALL")
    servers = {f"GIGAPIPE_TESTS_FORKS_{program}": _server(program, locale) for program in programs}
    return environment | {"PATH": path} | servers


@functools.cache
def _server(program: str, locale: str | None) -> str:
    """The socket of a process that forks until the tests end: one for all their processes.

    Python takes the locale's encoding when it starts.
    """
    tests = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    folder = Path(tempfile.gettempdir(), f"forks-{tests}")
    folder.mkdir(mode=0o700, exist_ok=True)
    address = folder / f"{program}-{locale}"
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not address.exists():
            command = [sys.executable, str(FOLDER / "server.py"), program, str(address), str(tests)]
            environment = ENVIRONMENT | ({"LC_ALL": locale} if locale else {})
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, start_new_session=True)
            while not address.exists():
                assert process.poll() is None, "the process to be forked does not start"
    finally:
        os.close(lock)
    return str(address)
