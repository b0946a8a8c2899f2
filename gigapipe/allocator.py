"""How a process that trains on CPUs asks the system for memory.

A training step makes and frees large tensors by the thousand. By default glibc keeps what is freed below 32 MB in a
heap that fragments: two ranks at 1536 x 1536 px held 3.5 GB where 1.9 GB suffice. Asking the system anew for each
tensor instead means that each is cleared page by page, which huge pages make cheap. Measured by benchmarks/step.py.
"""

import ctypes
import os
import platform
import sys
from typing import NamedTuple

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
LARGE = 2**20  # bytes; smaller ones a heap keeps, and no plan counts what they fragment


class Kept(NamedTuple):
    """What threads keep of the memory that they free."""

    large: int
    """Bytes from which a tensor is given back at once; 32 MB are the most that glibc takes."""
    heap: int
    """Bytes that each thread then has of smaller ones beside what it computes with, at most (measured)."""
    memory: int
    """Bytes that a process has at least for each thread, that can afford it."""


WHERE_ROOMY = Kept(2**25, 200_000_000, 2_000_000_000), Kept(2**22, 60_000_000, 300_000_000)
"""The most first. To clear pages is else a fifth of a streamed step, or more."""


def return_freed_tensors() -> None:
    """Give freed tensors back to the system at once, and ask for huge pages; to be called before torch is used.

    What the environment says already (MALLOC_MMAP_THRESHOLD_, THP_MEM_ALLOC_ENABLE) stays. Without effect where the C
    library is not glibc.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first large allocation
    if _is_ours():
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)


def keep_some_freed_tensors(memory: float, threads: int) -> int | None:
    """Keep more of what is freed, if so many threads can afford it of so many bytes that the process may take.

    Returns the bytes that each keeps at most, or None where it is as `return_freed_tensors` has it.
    """
    kept = next((k for k in WHERE_ROOMY if memory >= threads * k.memory), None)
    if kept is None or not _is_ours():
        return None
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_THRESHOLD, kept.large)
    library.mallopt(M_TRIM_THRESHOLD, kept.heap)
    return kept.heap


def _is_ours() -> bool:
    """Whether the C library can be told, and the environment does not."""
    glibc = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    return glibc and not {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & set(os.environ)
