"""What a process on CPUs keeps of the memory that tiles free: to get it from the system again takes long.

The system clears each page that it gives, at a tenth of the rate at which memory is written (measured on a virtual
machine), in particular the small pages of glibc's heaps. So where memory is not short, tensors of tiles stay in glibc's
main heap; where there is much of it, that heap is made of huge pages once, as large as the plan allows.
"""

import ctypes
import os
import platform
import sys
from typing import NamedTuple

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # <malloc.h>
MADV_HUGEPAGE = 14  # <sys/mman.h>
MOST = 2**31 - 1
"""That mallopt takes."""
HUGE = 2**21
"""Bytes of a huge page."""

_pool = _below = 0
"""Bytes that are kept, and bytes of the largest block that the heap has."""


class Kept(NamedTuple):
    """What threads keep of the memory that they free."""

    large: int
    """Bytes from which a tensor is given back at once; 32 MB are the most that glibc takes."""
    heap: int
    """Bytes of smaller ones that each thread then has beside what it computes with, at most (measured)."""
    memory: int
    """Bytes that a process that can afford it has at least for the images of each thread."""
    huge: bool
    """Whether the heap is made of huge pages, as large as what is kept, before it is used."""


WHERE_ROOMY = (
    Kept(2**25, 200_000_000, 1_800_000_000, huge=True),
    Kept(2**23, 60_000_000, 500_000_000, huge=True),
    Kept(2**22, 60_000_000, 130_000_000, huge=False),  # what tiles leave would fill too many huge pages
)
"""The most first."""


def keep_some_freed_tensors(memory: float, threads: int) -> Kept | None:
    """Keep more of what is freed, if so many threads can afford it of so many bytes that a process has for images.

    Returns what is kept, or None where nothing is. Without effect where the C library is not glibc, or where the
    environment says how it keeps memory.
    """
    global _pool, _below
    kept = next((k for k in WHERE_ROOMY if memory >= threads * k.memory), None)
    if kept is None or not _is_ours():
        return None
    pool = min(kept.heap * threads, MOST - HUGE)
    library = ctypes.CDLL(None)
    library.mallopt(M_MMAP_THRESHOLD, kept.large)
    library.mallopt(M_TRIM_THRESHOLD, pool + HUGE)
    if kept.huge:
        _pool, _below = pool, kept.large - HUGE
        library.mallopt(M_TOP_PAD, _pool)
        _of_huge_pages()
    return kept


def give_back() -> None:
    """Give back to the system what the C library has free; of others than glibc, nothing."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
        if _pool:
            _of_huge_pages()


def _of_huge_pages() -> None:
    """Have the heap grow, which it does by all that is kept, and what is new of it be of huge pages."""
    library = ctypes.CDLL(None)
    library.sbrk.argtypes, library.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_size_t
    library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    library.free.argtypes = [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
    before = after = library.sbrk(0)
    asked = []
    while after == before and len(asked) <= _pool // _below:
        asked.append(library.malloc(_below))  # large: a block touches a page
        after = library.sbrk(0)
    for address in asked:
        library.free(address)
    start = (before + HUGE - 1) // HUGE * HUGE
    if after > start:
        library.madvise(start, after - start, MADV_HUGEPAGE)


def _is_ours() -> bool:
    """Whether the C library can be told, and the environment does not."""
    glibc = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    return glibc and not {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"} & set(os.environ)
