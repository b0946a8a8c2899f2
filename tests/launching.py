"""How tests start gigapipe: a verb in this process, a verb as a process of its own, and cases on ranks that stay up."""

import contextlib
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Client, Connection, wait
from pathlib import Path

import psutil
from forks import with_forks

from gigapipe.cli import main

TESTS = Path(__file__).parent
ROOT = TESTS.parent
MORE = int(os.environ.get("GIGAPIPE_TESTS_MORE", 1))
"""How many times as many random examples, kills and slides there are as usually."""
GIGAPIPE = str(Path(sys.executable).with_name("gigapipe"))
EXIT_GLOO = "import os, sys; sys.stdout.flush(); os._exit(0)\n"
"""The last line of a program on gloo, whose threads now and then abort the interpreter's own end."""


def gigapipe(
    *arguments, ranks: int = 1, process: bool = False, check: bool = True, cwd: Path | None = None
) -> subprocess.CompletedProcess:
    """Run `gigapipe …`; its output is text, both streams in one.

    It runs in this process, which saves its start; as a process of its own if `process`; under mpiexec if on several
    ranks, which are forks.
    """
    arguments = list(map(str, arguments))
    if ranks > 1 or process:
        command = ["mpiexec", "-n", str(ranks), "gigapipe"] if ranks > 1 else [GIGAPIPE]
        done = subprocess.run(
            [*command, *arguments], env=with_forks(dict(os.environ), "gigapipe") if ranks > 1 else None,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, cwd=cwd,
        )  # fmt: skip
    else:
        done = _in_this_process(arguments, cwd)
    assert not check or done.returncode == 0, done.stdout
    return done


def _in_this_process(arguments: list[str], cwd: Path | None) -> subprocess.CompletedProcess:
    said = io.StringIO()
    told = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    with contextlib.chdir(cwd or os.getcwd()), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = main(arguments)
        except SystemExit as exit:  # argparse's
            status = exit.code
        finally:
            for number, handler in told.items():  # a training listens to them
                signal.signal(number, handler)
    return subprocess.CompletedProcess(arguments, status, said.getvalue())


def with_a_state(arguments: list, folder: Path, ranks: int = 2, process: bool = False) -> subprocess.Popen:
    """`gigapipe train …`, to be ended, that has written its first state somewhere in `folder`, where it runs."""
    launched = ["mpiexec", "-n", str(ranks)] if ranks > 1 else []
    training = subprocess.Popen(
        [*launched, GIGAPIPE if process else "gigapipe", *map(str, arguments)],
        env=None if process else with_forks(dict(os.environ), "gigapipe"),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, start_new_session=True,
    )  # fmt: skip
    while not list(folder.rglob("checkpoints/*.pt")):
        assert training.poll() is None, training.communicate()[0]
        time.sleep(0.01)
    return training


def ranks_of(training: subprocess.Popen) -> list[psutil.Process]:
    """The processes that mpiexec has started, in their order."""
    started = psutil.Process(training.pid).children(recursive=True)
    return [one for one in started if "train" in one.cmdline()[1:5] and not one.name().startswith("hydra")]


def kill(process: subprocess.Popen) -> None:
    """Kill a run and all that it started; forks, which are in no session of its own, have ended, too."""
    try:
        folder = os.readlink(f"/proc/{process.pid}/cwd")
    except FileNotFoundError:  # it has just ended, and its forks with it
        folder = ""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 20
    while left := [
        p.pid for p in psutil.process_iter(["cwd"]) if folder and p.info["cwd"] == folder and p.pid != os.getpid()
    ]:
        assert time.monotonic() < deadline, f"of a killed run there are processes {left}"
        time.sleep(0.05)


@contextlib.contextmanager
def ended(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """Nothing of a process's session is left behind."""
    try:
        yield process
    finally:
        if process.poll() is None:
            kill(process)


def run_program(program: str, ranks: int, *arguments) -> list[dict]:
    """Run tests/ranks/`program`, which wants ranks of its own; the JSON objects that rank 0 prints, one a line."""
    command = ["mpiexec", "-n", str(ranks), "python", str(TESTS / "ranks" / program), *map(str, arguments)]
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = with_forks(dict(os.environ), "python") | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


class Ranks:
    """Six real MPI ranks that stay up and run one case after another, on any mesh of as many ranks or fewer.

    A case that fails on a rank, or does not end, is an AssertionError that names it and the rank; the ranks are then
    started anew for the next one.
    """

    SIZE = 6

    def __init__(self):
        self.process: subprocess.Popen | None = None
        self.connections: list[Connection] = []
        self.folder: Path | None = None

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def __call__(self, case: str, *arguments, mesh=(1, 1, 1), transport: str = "mpi", timeout: float = 90) -> list:
        """What each rank's `case(mesh, *arguments)` returns; `case` is "module.function" in tests/ranks."""
        if self.process is None or self.process.poll() is not None:
            self._start()
        name = f"{case}{arguments} on a mesh of {' × '.join(map(str, mesh))}, by {transport}"
        try:
            for connection in self.connections:
                connection.send((case, mesh, transport, arguments))
            replies = self._replies(name, time.monotonic() + timeout)
        except BaseException:
            self.stop()
            raise
        return replies[: math.prod(mesh)]

    def _replies(self, name: str, end: float) -> list:
        replies = {}
        while len(replies) < self.SIZE:
            ready = wait([c for c in self.connections if c not in replies], max(0.0, end - time.monotonic()))
            missing = [rank for rank, c in enumerate(self.connections) if c not in replies]
            assert ready, f"{name}: no answer from ranks {missing}"
            for connection in ready:
                try:
                    whole, replies[connection] = connection.recv()
                except EOFError:
                    raise AssertionError(f"{name}: rank {self.connections.index(connection)} died") from None
                assert whole, f"{name}: rank {self.connections.index(connection)}: {replies[connection]}"
        return [replies[connection] for connection in self.connections]

    def _start(self) -> None:
        self.stop()
        self.folder = Path(tempfile.mkdtemp(prefix="ranks-"))
        command = ["mpiexec", "-n", str(self.SIZE), "python", str(TESTS / "ranks/worker.py"), str(self.folder)]
        forks = with_forks(dict(os.environ), "python")
        self.process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, env=forks)
        for rank in range(self.SIZE):
            self.connections.append(self._connect(self.folder / f"rank-{rank}"))

    def _connect(self, address: Path) -> Connection:
        while True:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):  # it does not listen yet
                return Client(str(address), "AF_UNIX")
            assert self.process.poll() is None, "the ranks do not start"
            time.sleep(0.02)

    def stop(self) -> None:
        for connection in self.connections:
            connection.close()
        self.connections = []
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
        if self.folder is not None:
            shutil.rmtree(self.folder)
            self.folder = None
