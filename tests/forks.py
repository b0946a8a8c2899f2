"""Processes of gigapipe whose start is not the point are forks of one that has imported torch (see tests/forked)."""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent / "forked"
ENVIRONMENT = dict(os.environ)
"""That of the tests, before one of them changes it."""


def with_forks(environment: dict[str, str]) -> dict[str, str]:
    """Variables with which `gigapipe` is a fork, where nothing is in its way (see tests/forked/gigapipe)."""
    path = os.pathsep.join([str(FOLDER), str(Path(sys.executable).parent), environment["PATH"]])
    return environment | {"PATH": path, "GIGAPIPE_TESTS_FORKS": _server()}


@functools.cache
def _server() -> str:
    """The socket of a process that forks until this one ends."""
    address = os.path.join(tempfile.mkdtemp(prefix="forks-"), "socket")
    command = [sys.executable, str(FOLDER / "server.py"), address]
    _server.process = subprocess.Popen(command, stdin=subprocess.PIPE, env=ENVIRONMENT, start_new_session=True)
    while not os.path.exists(address):
        assert _server.process.poll() is None, "the process to be forked does not start"
    return address
