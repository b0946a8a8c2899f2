"""Memory of arrays that are gone, kept for new ones of the same size.

The system clears each page of what it hands out, and a process waits for each. Of a large image that is read by tiles
that was a quarter of a training step's processor time (docs/streaming.md).
"""

import contextlib
import math
import mmap
import threading
import weakref
from collections import defaultdict

import numpy as np

STEP = 2**20
"""Larger sizes are multiples of so many bytes, that tiles at an image's end may have memory of others."""
HUGE = 2**21
"""Bytes from which on the system is asked for huge pages, of which it clears fewer."""


class Recycled:
    """Arrays whose memory, together with what is kept of others, is at most `limit` bytes, if they themselves are.

    Several threads may use it at once.
    """

    def __init__(self, limit: float = 0.0):
        self._limit = limit
        self._used = self._free_bytes = 0
        self._free: dict[int, list[mmap.mmap]] = defaultdict(list)
        self._lock = threading.RLock()  # an array may end wherever Python collects what is gone, here too

    @property
    def limit(self) -> float:
        return self._limit

    @limit.setter
    def limit(self, limit: float) -> None:
        with self._lock:
            self._limit = limit
            self._make_room(0)

    def empty(self, shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
        """A new array with any content; its memory comes back when it, and what views it, is gone."""
        count = math.prod(shape)
        size = count * np.dtype(dtype).itemsize
        size = -(-size // STEP) * STEP if size > STEP else size
        if not size:
            return np.empty(shape, dtype)
        with self._lock:
            if self._free[size]:
                memory = self._free[size].pop()
                self._free_bytes -= size
            else:
                self._make_room(size)
                try:
                    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                except OSError:  # a process may have so many of them, and chunks can be small
                    return np.empty(shape, dtype)
                if size >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
                    with contextlib.suppress(OSError):  # of a system without them
                        memory.madvise(mmap.MADV_HUGEPAGE)
            self._used += size
        array = np.frombuffer(memory, dtype, count)
        weakref.finalize(array, self._give_back, memory, size).atexit = False
        return array.reshape(shape)

    def _give_back(self, memory: mmap.mmap, size: int) -> None:
        with self._lock:
            self._used -= size
            if self._used + self._free_bytes + size <= self._limit:
                self._free[size].append(memory)
                self._free_bytes += size

    def _make_room(self, size: int) -> None:
        """Return memory to the system until so much more is within the limit."""
        for kept in list(self._free):  # which an array that ends meanwhile may add to
            while self._free[kept] and self._used + self._free_bytes + size > self._limit:
                self._free[kept].pop()
                self._free_bytes -= kept
