"""Tiles side by side: threads that compute one tile each, and what they find taken in the order of the tiles.

Two tiles computed by one thread each take less time than one after another by two threads: an operation that is shared
among threads waits for the slowest, and its image leaves their caches. What is added up is added in one order, so the
sum is the same to the bit, however many threads there are and whichever is done first.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator

import torch

from gigapipe.spatial.heap import give_back
from gigapipe.spatial.torch_internals import watched_by_modes

AHEAD = 1
"""How many more tiles than workers may have been begun and not taken: then unlike tiles keep nobody waiting."""

MANY = 16
"""After so many tiles a worker, what they left free in the C library's heaps is given back to the system: the next
segment's tiles are of other sizes, and need other memory. To clear it again costs little beside so many tiles."""


def waiting(workers: int) -> int:
    """Of how many tiles at most what was found waits to be taken, for those before them are not done."""
    return workers + AHEAD - 1 if workers > 1 else 0


def side_by_side(count: int, workers: int, work: Callable[[int], Callable[[], None]]) -> None:
    """Call `work` of 0 … `count` - 1 on so many threads, and what it returns in the order of these numbers.

    The calling thread is one of them. Each has one thread for torch's operations, and gradients enabled or not as the
    calling thread has. What `work` returns is never called by two threads at a time. With `workers` 0, all is done in
    the calling thread, by as many threads an operation as torch has there; so it is in a thread whose operations
    somebody watches (torch's modes, as a FLOP counter is). Raises what the first call to fail raises, once all threads
    have ended.
    """
    if workers == 0 or watched_by_modes():
        for index in range(count):
            work(index)()
        return
    crew = _Crew(count, workers, work)
    threads = [threading.Thread(target=crew.work_as_told) for _ in range(min(workers, count) - 1)]
    with _one_thread_an_operation():
        for thread in threads:
            thread.start()
        try:
            crew.go()
        finally:
            crew.stop()
            for thread in threads:
                thread.join()
    if crew.error is not None:
        raise crew.error
    if count >= MANY * workers:
        give_back()


@contextlib.contextmanager
def _one_thread_an_operation() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # of this thread, and of those that begin later
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Crew:
    """What threads that go through numbered work have in common."""

    def __init__(self, count: int, workers: int, work: Callable[[int], Callable[[], None]]):
        self.count, self.work, self.most = count, work, workers + (AHEAD if workers > 1 else 0)
        self.graded, self.inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        self.begun = self.taken = 0
        self.found: dict[int, Callable[[], None]] = {}
        self.error: BaseException | None = None
        self.changed = threading.Condition()

    def work_as_told(self) -> None:
        """What a thread of its own does."""
        torch.set_num_threads(1)
        with torch.inference_mode(self.inference), torch.set_grad_enabled(self.graded):
            self.go()

    def go(self) -> None:
        try:
            while (index := self._next()) is not None:
                self._take(index, self.work(index))  # held by no name here: it is large
        except BaseException as error:  # an interruption, too, ends all
            with self.changed:
                self.error = self.error or error
                self.changed.notify_all()

    def stop(self) -> None:
        """Let nobody begin any more."""
        with self.changed:
            self.count = min(self.count, self.begun)
            self.changed.notify_all()

    def _next(self) -> int | None:
        def known() -> bool:
            return self.error is not None or self.begun >= self.count or self.begun < self.taken + self.most

        with self.changed:
            self.changed.wait_for(known)
            if self.error is not None or self.begun >= self.count:
                return None
            self.begun += 1
            return self.begun - 1

    def _take(self, index: int, found: Callable[[], None]) -> None:
        with self.changed:
            self.found[index] = found
            del found
            while self.taken in self.found and self.error is None:
                self.found.pop(self.taken)()
                self.taken += 1
            self.changed.notify_all()
