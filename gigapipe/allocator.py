"""How a process that trains on CPUs asks the system for memory.

A training step makes and frees large tensors by the thousand. By default glibc keeps what is freed below 32 MB in a
heap that fragments: two ranks at 1536 x 1536 px held 3.5 GB where 1.9 GB suffice. Asking the system anew for each
tensor instead means that each is cleared page by page, which huge pages make cheap. Measured by benchmarks/step.py.
"""

import ctypes
import os
import platform
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
LARGE = 2**20  # bytes; smaller ones a heap keeps, and no plan counts what they fragment

LARGE_WHERE_ROOMY = 2**22
"""The same where memory is not short: to clear pages is then a fifth of a streamed step that it need not be."""

HEAP_WHERE_ROOMY = 60_000_000
"""Bytes that each thread then has of them beside what it computes with (measured)."""

ROOMY = 10
"""So many times what all threads keep in this way a process has at least, that is not short of memory."""


def return_freed_tensors() -> None:
    """Give freed tensors back to the system at once, and ask for huge pages; to be called before torch is used.

    What the environment says already (MALLOC_MMAP_THRESHOLD_, THP_MEM_ALLOC_ENABLE) stays. Without effect where the C
    library is not glibc.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first large allocation
    if _is_ours():
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)


def keep_some_freed_tensors(memory: float, threads: int) -> float | None:
    """Keep more of what is freed, if so many threads can afford it of so many bytes that the process may take.

    Returns the bytes that each keeps, or None where it is as `return_freed_tensors` has it.
    """
    if not _is_ours() or memory < ROOMY * threads * HEAP_WHERE_ROOMY:
        return None
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_THRESHOLD, LARGE_WHERE_ROOMY)
    library.mallopt(M_TRIM_THRESHOLD, HEAP_WHERE_ROOMY)
    return HEAP_WHERE_ROOMY


def _is_ours() -> bool:
    """Whether the C library can be told, and the environment does not."""
    glibc = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    return glibc and not {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & set(os.environ)
