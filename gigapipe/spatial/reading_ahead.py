"""Pieces of a streamed image that are read before they are asked for, by threads of their own.

Who computes tiles would otherwise wait for each piece: for the disk, for the threads that decode chunks, and on a GPU
for all that the host does with it.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

from gigapipe.spatial.torch_internals import watched_by_modes

Piece = TypeVar("Piece")


class ReadAhead(Generic[Piece]):
    """Pieces 0 … `count` - 1, each of which is asked for once, in about this order, by any number of threads.

    Once piece i is asked for, those up to i + `ahead` are read. A piece that is not begun by then is read by who asks
    for it, who also gets what reading it raises.
    """

    def __init__(self, count: int, ahead: int, read: Callable[[int], Piece], pool: ThreadPoolExecutor | None):
        self.count, self.ahead, self.read, self._pool = count, ahead, read, pool
        self._next = 0
        self._found: dict[int, Future[Piece]] = {}
        self._lock = threading.Lock()

    def take(self, index: int) -> Piece:
        """A piece; nobody else may have it."""
        if self._pool is None:
            return self.read(index)
        with self._lock:
            found = self._found.pop(index, None)
            for following in range(max(self._next, index + 1), min(self.count, index + 1 + self.ahead)):
                self._found[following] = self._pool.submit(self.read, following)
                self._next = following + 1
        return self.read(index) if found is None or found.cancel() else found.result()


@contextlib.contextmanager
def read_ahead(count: int, ahead: int, read: Callable[[int], Piece]) -> Iterator[ReadAhead[Piece]]:
    """Read so many pieces `ahead`, by as many threads; 0: none, as where somebody watches this thread's operations.

    When it ends, pieces that are not begun are not read, and those that are begun are waited for.
    """
    if not ahead or count < 2 or watched_by_modes():
        yield ReadAhead(count, ahead, read, None)
        return
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(ahead, "reader", torch.set_num_threads, (1,))
    try:
        yield ReadAhead(count, ahead, read, pool)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # of threads that begin later, too, which a reader has changed
