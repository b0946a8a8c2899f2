"""One process at a time makes an output; another that would make it, too, is told which one does."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gigapipe.disks import UNSUPPORTED, named, tell_once
from gigapipe.errors import Unavailable


class Busy(Unavailable):
    """Another process is at it; `holder` says which, in which `folder`, as far as it is known."""

    def __init__(self, output: Path, what: str, holder: dict):
        named = f" ({_named(holder)})" if holder else ""
        super().__init__(f"{output}: another process{named} {what}; wait until it has finished")
        self.holder = holder


class Left(Unavailable):
    """What a process of another host has left, of which nobody can tell here whether that one lives."""


_HELD: dict[Path, IO] = {}
"""The locks of this process: who holds one may take it again."""


@contextlib.contextmanager
def only_writer(output: str | Path, what: str = "is writing it", of_all_hosts: bool = False) -> Iterator[None]:
    """No other process that asks writes `output` while this block runs. Raises Busy, naming the one that does.

    The lock is the file `.NAME.lock` beside it, and goes with it. The system lets go of it when its process ends,
    however that ends: the file that a kill leaves holds nobody up. On file systems without locks it still keeps out the
    living processes of its own host, and a warning says so. Others keep each host's locks from the other hosts, and say
    nothing: where those of all hosts are to be kept out for certain, what one of them has left raises Left.
    """
    output = Path(os.path.abspath(output))
    if output in _HELD:
        yield
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with named(output):
        _HELD[output] = _locked(output, what, of_all_hosts)
    try:
        yield
    finally:
        _release(output)


def writer_of(output: Path) -> str | None:
    """The process that is writing `output`, in words; None if there is none, as far as its file system tells."""
    try:
        with open(_lock_of(output), "r+b", buffering=0) as file:
            _take(file, output, "is writing it")
    except Busy as error:
        return _named(error.holder) if error.holder else "an unknown process"
    except OSError:
        return None
    return None


def release_all() -> None:
    """For a process that is about to end in the middle of such blocks."""
    for output in list(_HELD):
        _release(output)


def _release(output: Path) -> None:
    with contextlib.suppress(OSError):
        _lock_of(output).unlink(missing_ok=True)  # while it is held: who opens it later makes a new one
    if file := _HELD.pop(output, None):
        file.close()


def _lock_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.lock")


def _locked(output: Path, what: str, of_all_hosts: bool) -> IO:
    """The lock's file, open, which names this process."""
    while True:
        file = open(_lock_of(output), "a+b", buffering=0)  # noqa: SIM115  is closed when the lock is let go
        try:
            _take(file, output, what)
            before = _holder(file) if of_all_hosts else {}
            if before and before["host"] != socket.gethostname():
                raise Left(
                    f"{output}: {_named(before)}, {what}, or was killed: {socket.gethostname()} cannot tell; start it "
                    f"there, or remove {_lock_of(output)} if that process has ended"
                )
            if _is_there(file, _lock_of(output)):
                file.truncate(0)
                here = {"host": socket.gethostname(), "folder": os.getcwd()}
                file.write(json.dumps(here | {"process": os.getpid(), "since": time.time()}).encode())
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # its holder removed it meanwhile: this is no longer the file that others see


def _take(file: IO, output: Path, what: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = _holder(file)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):  # NFS may say the latter
            raise Busy(output, what, holder) from None
        if error.errno not in UNSUPPORTED:
            raise
        if _lives_here(holder):
            raise Busy(output, what, holder) from None
        tell_once(
            f"{output.parent}: its file system does not support locks ({error.strerror}); do not write the same output "
            "from two hosts at the same time",
            about=("flock", os.fstat(file.fileno()).st_dev),
        )


def _named(holder: dict) -> str:
    since = time.strftime("%d %b %H:%M", time.localtime(holder["since"]))
    return f"process {holder['process']} on {holder['host']}, since {since}"


def _is_there(file: IO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(file: IO) -> dict:
    """Who holds a lock, as far as it has said so already."""
    try:
        file.seek(0)
        found = json.loads(file.read())
        kinds = {"host": str, "folder": str, "process": int, "since": float}
        return {name: kind(found[name]) for name, kind in kinds.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _lives_here(holder: dict) -> bool:
    """Whether it is a process of this host that has not ended; another may have its number now."""
    import psutil

    if not holder or holder["host"] != socket.gethostname() or holder["process"] == os.getpid():
        return False
    try:
        return psutil.Process(holder["process"]).create_time() <= holder["since"]
    except psutil.Error:
        return False
