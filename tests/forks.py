"""Processes whose start is not the point are forks of one that has imported what they need (see tests/forked)."""

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent / "forked"
ENVIRONMENT = dict(os.environ)
"""That of the tests, before one of them changes it."""


def with_forks(environment: dict[str, str], *programs: str) -> dict[str, str]:
    """Variables with which `programs`, gigapipe or snakemake, are forks, where nothing is in their way (see
    tests/forked/client).
    """
    path = os.pathsep.join([str(FOLDER), str(Path(sys.executable).parent), environment["PATH"]])
    locale = environment.get("LC_ALL")
    servers = {f"GIGAPIPE_TESTS_FORKS_{program}": _server(program, locale) for program in programs}
    return environment | {"PATH": path} | servers


@functools.cache
def _server(program: str, locale: str | None) -> str:
    """The socket of a process that forks until this one ends. Python takes the locale's encoding when it starts."""
    address = os.path.join(tempfile.mkdtemp(prefix="forks-"), "socket")
    command = [sys.executable, str(FOLDER / "server.py"), program, address]
    environment = ENVIRONMENT | ({"LC_ALL": locale} if locale else {})
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)
    while not os.path.exists(address):
        assert process.poll() is None, "the process to be forked does not start"
    _SERVERS.append(process)
    return address


_SERVERS: list[subprocess.Popen] = []
"""Each ends with the pipe that this process holds."""
