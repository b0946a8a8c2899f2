"""How a process that trains on CPUs asks the system for memory.

A training step makes and frees large tensors by the thousand. By default glibc keeps what is freed below 32 MB in a
heap that fragments: two ranks at 1536 x 1536 px held 3.5 GB where 1.9 GB suffice. Asking the system anew for each
tensor instead means that each is cleared page by page, which huge pages make cheap. Measured by benchmarks/step.py.
"""

import ctypes
import os
import platform
import sys

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # <malloc.h>
LARGE = 2**20  # bytes; smaller ones a heap keeps, and no plan counts what they fragment


def return_freed_tensors() -> None:
    """Give freed tensors back to the system at once, and ask for huge pages; to be called before torch is used.

    What the environment says already (MALLOC_MMAP_THRESHOLD_, MALLOC_ARENA_MAX, THP_MEM_ALLOC_ENABLE) stays. Without
    effect where the C library is not glibc.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first large allocation
    if _is_ours():
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
        if "MALLOC_ARENA_MAX" not in os.environ:
            # One heap for all threads: of one of its own each gives back all beyond 64 MB when it is done with it.
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def _is_ours() -> bool:
    """Whether the C library can be told, and the environment does not."""
    glibc = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    return glibc and not {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & set(os.environ)
