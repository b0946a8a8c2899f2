"""How fast a device computes and moves bytes, by which tiles are chosen: measured, where it is a GPU, and kept.

GPUs differ too much for one guess: in how many multiplications they do while a byte is moved, and while the host starts
an operation, which is lost on small tiles. So short runs tell, once for each kind of GPU and version of torch, and a
file keeps what they told: the plan of a training that is resumed is then the same. CPUs have constants, which give the
same plan, and so the same bits, everywhere.
"""

import functools
import json
import os
import re
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from gigapipe.spatial.on_host import Transfer


class Speed(NamedTuple):
    """What operations take: in seconds where it was measured; only ratios matter."""

    multiplication: float
    """One multiplication with its addition, of float32."""
    sixteen_bits: float
    """How many under autocast take the time of one."""
    byte: float
    """Read, or written."""
    operation: float
    """To start one."""
    caches: float = 0.0
    """Bytes that each thread's share of the caches holds, where that counts."""

    def arithmetic(self, multiplications: float, sixteen_bits: bool) -> float:
        """Time of so many multiplications."""
        return self.multiplication * (multiplications / (self.sixteen_bits if sixteen_bits else 1))

    def moving(self, size: float) -> float:
        """Time of a byte that an operation reads or writes, of so many: some are still in the caches."""
        if not size:
            return self.byte
        return self.byte * (1 - (1 - IN_CACHES) * min(1.0, self.caches / size))

    def __str__(self) -> str:
        flops = 2 / self.multiplication / 1e12
        return (
            f"{flops:.3g} Tflop/s in float32, {flops * self.sixteen_bits:.3g} in 16 bits, {1e-9 / self.byte:.4g} GB/s, "
            f"{self.operation * 1e6:.3g} µs to start an operation"
        )


IN_CACHES = 0.3
"""Time of a byte that is read or written in a CPU's caches, in that of one in memory (measured, roughly)."""

CPU = Speed(multiplication=1.0, sixteen_bits=3, byte=12, operation=1e7, caches=16e6)
"""In multiplications of a convolution, roughly; to start an operation takes what was measured of small tiles."""

SIDE = 512
"""Rows and columns of the image that is convolved, of `CHANNELS`."""

CHANNELS = 64

MOVED = 2**27
"""Bytes of an image that is added to, more than caches hold; and of a file."""

PART = 2**22
"""Bytes of a file that are written, or read, at a time."""

TINY = 200
"""Operations that are started one after another."""

RUNS = 5


def measured(device: torch.device) -> Speed:
    """Of a GPU, in a second or two, with 0.4 GB of its memory for that time."""
    wait = torch.get_device_module(device).synchronize

    def seconds(run: Callable[[], object]) -> float:
        taken = []
        for _ in range(RUNS + 1):
            wait()
            begun = time.perf_counter()
            run()
            wait()
            taken.append(time.perf_counter() - begun)
        return statistics.median(taken[1:])  # the first also loads kernels, and chooses among them

    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        few = torch.zeros(8, device=device)
        operation = seconds(lambda: [few.add_(1) for _ in range(TINY)]) / TINY
        byte = seconds(functools.partial(_move, *torch.zeros(2, MOVED // 4, device=device))) / (2 * MOVED)
        image = torch.zeros(1, CHANNELS, SIDE, SIDE, device=device).contiguous(memory_format=torch.channels_last)
        weight = torch.zeros(CHANNELS, CHANNELS, 3, 3, device=device).contiguous(memory_format=torch.channels_last)
        count = image.numel() * CHANNELS * 9
        found = []
        for dtype in (torch.float32, torch.float16):  # which all GPUs have, at the rate of bfloat16 where that is there
            x, w = image.to(dtype), weight.to(dtype)
            took = seconds(lambda x=x, w=w: F.conv2d(x, w, padding=1))
            # What it moves is counted for itself; but a convolution may hide it.
            found.append(max(took - 2 * x.nbytes * byte, took / 2) / count)
    of_32, of_16 = found
    return Speed(of_32, of_32 / of_16, byte, operation)


def _move(many: torch.Tensor, others: torch.Tensor) -> None:
    torch.add(many, 1, out=others)


@functools.cache
def speed_of(device: torch.device) -> tuple[Speed, str]:
    """A device's speed, and a line that says where it is from.

    Of a GPU it is what a file in the user's cache folder keeps; where there is none, it is measured, and kept there.
    """
    if device.type == "cpu":
        return CPU, ""
    name = _name(device)
    found, line = _kept(f"{name} torch {torch.__version__}", Speed._fields, lambda: tuple(measured(device)))
    return Speed(*found), f"{name}, {line}: {Speed(*found)}"


class Tier(NamedTuple):
    """Where images may be kept, beside the memory of the device that computes them."""

    name: str
    """host or disk, as in `costs.Spent`."""
    byte: float
    """Time to write a byte there, or to read it."""
    free: float
    """Bytes that a rank may have there."""


class Host(NamedTuple):
    """The memory of a GPU's host, for what does not fit into the GPU's."""

    byte: float
    """Seconds to send a byte to the GPU, or to bring it back."""
    free: int
    """Bytes that a rank may have there."""


@functools.cache
def host_of(device: torch.device, free: int) -> tuple[Host, str]:
    """The host of a GPU, as fast as a file in the user's cache folder has it, and a line that says so.

    Where there is none, it is measured, in a second, and kept there.
    """
    name = f"host {socket.gethostname()} {_name(device)} torch {torch.__version__}"
    (byte,), line = _kept(name, ("byte",), lambda: (_byte_of_host(device),))
    return Host(byte, free), f"{name}, {line}: {1e-9 / byte:.3g} GB/s"


def _byte_of_host(device: torch.device) -> float:
    """Seconds in which a byte of a tile is sent from the host's memory, or brought back: the mean of both."""
    image = torch.zeros(1, CHANNELS, MOVED // PART, PART // (4 * CHANNELS)).to(memory_format=torch.channels_last)
    taken = []
    for _ in range(RUNS):
        transfer, begun = Transfer(device), time.perf_counter()
        for part in image.split(1, dim=2):
            transfer.next_tile()
            transfer.bring(transfer.send(part), image.device, part.copy_)
        transfer.finish()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken) / (2 * MOVED)


class Disk(NamedTuple):
    """A folder on a disk that can hold what does not fit into memory."""

    folder: Path
    byte: float
    """Time to write a byte, or to read it: in seconds on a GPU, on a CPU in the unit of `CPU`."""
    free: float | None = None
    """Bytes that a rank may have there; None: what the folder's file system has, shared by all ranks."""


@functools.cache
def disk_in(folder: Path, device: torch.device) -> tuple[Disk, str]:
    """The disk of a folder, as fast as a file in the user's cache folder has it, and a line that says so.

    Where there is none, it is measured, in a second or two, and kept there. Raises OSError if nothing can be written.
    """
    name = f"disk {socket.gethostname()} {folder.resolve()}"
    (byte,), line = _kept(name, ("byte",), lambda: (_byte_on_disk(folder),))
    unit = 1.0
    line = f"{folder}, {line}: {1e-9 / byte:.3g} GB/s"
    if device.type == "cpu":
        name = f"CPU {socket.gethostname()} {torch.get_num_threads()} threads torch {torch.__version__}"
        (unit,), of_which = _kept(name, ("multiplication",), lambda: (_multiplication(),))
        line += f"; CPU, {of_which}: {2e-12 / unit:.3g} Tflop/s in float32"
    return Disk(folder, byte / unit), line


def _byte_on_disk(folder: Path) -> float:
    """Seconds in which a byte is written, or read: the mean of both. Takes little memory, which may be limited."""
    data, parts = os.urandom(PART), MOVED // PART
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        begun = time.perf_counter()
        for _ in range(parts):
            file.write(data)
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # else it is read from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        for _ in range(parts):
            file.read(PART)
        return (time.perf_counter() - begun) / (2 * MOVED)


def _multiplication() -> float:
    """Seconds of one multiplication of a convolution on the CPU, by all threads."""
    image, weight = torch.zeros(1, CHANNELS, SIDE // 4, SIDE // 4), torch.zeros(CHANNELS, CHANNELS, 3, 3)
    taken = []
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for _ in range(RUNS):
            begun = time.perf_counter()
            F.conv2d(image, weight, padding=1)
            taken.append(time.perf_counter() - begun)
    return statistics.median(taken) / (image.numel() * CHANNELS * 9)


def _kept(
    name: str, fields: tuple[str, ...], measure: Callable[[], tuple[float, ...]]
) -> tuple[tuple[float, ...], str]:
    """What a file in the user's cache folder has of this name, or else is measured now; and in words which."""
    path = _folder() / f"{re.sub(r'[^A-Za-z0-9.]+', '-', name)}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return tuple(float(found[field]) for field in fields), f"as {path} has it"
    except (OSError, ValueError, TypeError, KeyError):
        values = measure()
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(dict(zip(fields, values, strict=True)), indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        return values, f"measured, but not kept ({error})"
    return values, f"measured, and kept in {path}"


def _name(device: torch.device) -> str:
    module = torch.get_device_module(device)
    return module.get_device_name(device) if hasattr(module, "get_device_name") else device.type


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gigapipe" / "speed"
