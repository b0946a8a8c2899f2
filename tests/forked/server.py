"""server.py PROGRAM SOCKET PID: starts the forks for which tests/forked/client asks, from a process that has imported
what PROGRAM, gigapipe, python or snakemake, needs.

It ends with the process of that PID.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import io
import json
import os
import re
import resource
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
import types
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

FAR = 512
"""Files of a fork are first moved beyond this number, so that none is in the place of another."""
IMPORTED = {
    "gigapipe": (
        "gigapipe.pyramids.masks",
        "gigapipe.evaluation.comparison",
        "gigapipe.evaluation.folds",
        "gigapipe.evaluation.overlap",
        "gigapipe.evaluation.report",
        "gigapipe.slides.phantom",
        "gigapipe.training.activation",
        "gigapipe.training.classification",
        "gigapipe.training.loop",
        "gigapipe.training.regression",
        "gigapipe.training.segmentation",
        "imagecodecs._jpeg8",
        "tifffile",
        "torch._dynamo",
        "zarrs",
    ),
    "python": (
        "gigapipe.pyramids.build",
        "gigapipe.spatial.check",
        "gigapipe.training.loop",
        "hypothesis",
        "monai.networks.nets",
        "torch._dynamo",
        "torch.distributed.device_mesh",
    ),
    "snakemake": (
        "snakemake.cli",
        "gigapipe.evaluation.weaknesses",
        "numba",
        "scipy.stats",
        "sklearn.metrics",
        "sklearn.model_selection",
        "snakemake.profiles",
        "snakemake.report.html_reporter",
        "snakemake.storage",
    ),
}
"""What programs import later, when they need it; the rules' own imports come to those of Snakemake."""
RULES = Path(__file__).parents[2] / "workflow"


def imported(program: str) -> Callable[[], int]:
    """The program's start, after what it and its verbs or rules import."""
    modules = list(IMPORTED[program])
    if program == "snakemake":
        for file in sorted(RULES.rglob("*.smk")):
            text = file.read_text(encoding="utf-8")
            modules += re.findall(r"^(?:from|import) ([\w.]+)", text, re.MULTILINE)
    for module in modules:
        importlib.import_module(module)
    if program == "snakemake":
        return importlib.import_module("snakemake.cli").main
    if program == "python":
        return python
    return importlib.import_module("gigapipe.cli").program


def python() -> None:
    """Run a file, or the program after -c, without the place of either if -P comes first."""
    sys.argv = sys.argv[1:]
    sys.path[0] = "" if "-c" in sys.argv[:2] else str(Path(sys.argv[0]).parent.absolute())
    if sys.argv[0] == "-P":
        sys.argv.pop(0)
        sys.path.pop(0)
    if sys.argv[0] == "-c":
        program = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(sys.argv.pop(1), program.__dict__)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


def main(program: str, address: str, tests: str) -> None:
    they_end = os.pidfd_open(int(tests))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)  # who asks meanwhile waits
    executable, start = Path(sys.executable).with_name(program), imported(program)
    weakref.finalize._registry.clear()  # what libraries do at their end, which would copy the memory that forks share
    if dynamo := sys.modules.get("torch._dynamo.utils"):
        atexit.unregister(dynamo.dump_compile_times)
    gc.collect()
    gc.freeze()
    asking: list[socket.socket] = []
    forks: list[Fork] = []
    while True:
        ends, clients = {fork.ended: fork for fork in forks}, {fork.client: fork for fork in forks}
        ready, _, _ = select.select([listener, they_end, *asking, *ends, *clients], [], [])
        if they_end in ready:
            for fork in forks:
                fork.kill()
            os.unlink(address)
            with contextlib.suppress(OSError):  # the other program's socket is there yet
                os.rmdir(os.path.dirname(address))
            return
        for one in ready:
            if one is listener:
                client, _ = listener.accept()
                with contextlib.suppress(OSError):  # it has gone
                    client.sendall(json.dumps(dict(os.environ)).encode() + b"\n")
                asking.append(client)
            elif one in asking:
                asking.remove(one)
                if fork := started(one, executable, start):
                    forks.append(fork)
            elif one in ends:
                ends[one].tell()
                forks.remove(ends[one])
            elif clients[one] in forks:
                clients[one].kill()
                clients[one].tell()
                forks.remove(clients[one])


class Fork(NamedTuple):
    """A process that does a client's work."""

    pid: int
    ended: int
    """A file that can be read when it has ended."""
    client: socket.socket

    def kill(self) -> None:
        """And what it started."""
        with contextlib.suppress(ProcessLookupError):  # before it has a session of its own
            os.killpg(self.pid, signal.SIGKILL)
        os.kill(self.pid, signal.SIGKILL)

    def tell(self) -> None:
        """Wait for its end, and tell how it has ended."""
        _, status = os.waitpid(self.pid, 0)
        with contextlib.suppress(OSError):
            self.client.sendall(f"{status}\n".encode())
        self.client.close()
        os.close(self.ended)


def started(client: socket.socket, executable: Path, start: Callable[[], int]) -> Fork | None:
    """The fork for which a client asks; None if it wants none."""
    request, received = "", []
    with contextlib.suppress(ConnectionError):  # it was killed meanwhile
        sign, received, _, _ = socket.recv_fds(client, 1, FAR)
        request = client.makefile().readline() if sign else ""
    pid = os.fork() if request else None
    if pid == 0:
        become(received, executable, **json.loads(request))
        end(status_of(start))
    for file in received:
        os.close(file)
    if pid is None:
        client.close()
        return None
    with contextlib.suppress(OSError):
        client.sendall(f"{pid}\n".encode())
    return Fork(pid, os.pidfd_open(pid), client)


def status_of(start: Callable[[], int]) -> int:
    """The exit status with which a program ends, as the interpreter finds it."""
    try:
        ended = start()
    except SystemExit as exit:
        ended = exit.code
    except BaseException:
        traceback.print_exc()
        return 1
    if ended is None or isinstance(ended, int):
        return int(ended or 0)
    print(ended, file=sys.stderr)
    return 1


def end(status: int) -> NoReturn:
    """End as the interpreter does, but for taking modules and libraries apart, which would copy the memory that forks
    share, and take longer than what most forks do.
    """
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    library = ctypes.PyDLL(None)
    if (mpi := sys.modules.get("mpi4py.MPI")) and mpi.Is_initialized():
        if not mpi.Is_finalized():
            mpi.Finalize()
        if not told_launcher():
            library.exit(status)  # where MPICH tells it
    library.fflush(None)
    os._exit(status)


def told_launcher() -> bool:
    """Tell mpiexec that this rank has ended well, as MPICH does when libraries end: else it would kill the others."""
    if "PMI_FD" not in os.environ:
        return False
    with open(int(os.environ["PMI_FD"]), "r+b", buffering=0) as launcher:
        launcher.write(b"cmd=finalize\n")
        return launcher.readline().startswith(b"cmd=finalize_ack ")


def become(received, executable, arguments, folder, mounts, environment, files, limits, ignored, cores) -> None:
    """Make this process what a shell would have started."""
    os.setsid()
    enter(mounts)
    for number, file in enumerate(received, FAR):
        os.dup2(file, number, inheritable=False)
    os.closerange(0, FAR)
    for far, number in enumerate(files, FAR):
        os.dup2(far, number)
        os.close(far)
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, name), limit)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    os.sched_setaffinity(0, cores)
    os.chdir(folder)
    ours, theirs = (found_first(variables) for variables in (os.environ, environment))
    sys.path[: 1 + len(ours)] = [str(executable.parent), *theirs]
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [str(executable), *arguments]
    if "GIGAPIPE_TESTS_FORKS_python" in environment:
        sys.executable = str(Path(__file__).with_name("python"))
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), sys.stdin.encoding, sys.stdin.errors)
    for number, name in enumerate(("stdout", "stderr"), 1):
        old = getattr(sys, name)
        options = {"line_buffering": os.isatty(number), "write_through": "PYTHONUNBUFFERED" in environment}
        binary = io.BufferedWriter(io.FileIO(number, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(binary, old.encoding, old.errors, **options))


def enter(mounts: str) -> None:
    """See the file systems of the process whose namespace this is: a Slurm of the tests has its own /etc/slurm."""
    if os.readlink(mounts) == os.readlink("/proc/self/ns/mnt"):
        return
    with open(mounts, encoding="utf-8") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
            raise OSError(ctypes.get_errno(), "setns", mounts)


def found_first(variables: Mapping[str, str]) -> list[str]:
    return [os.path.abspath(place) for place in filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))]


main(*sys.argv[1:])
