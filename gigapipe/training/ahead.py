"""What is read of the canvases that come next, while those before are computed."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar, cast

Pixels = TypeVar("Pixels")
Item = TypeVar("Item")


class Ahead(Generic[Pixels]):
    """One thing that is read before it is asked for, by a thread of its own."""

    def __init__(self):
        self._thread = ThreadPoolExecutor(1, "reader")  # which begins with the first that is read
        self._begun: tuple[object, Future[Pixels]] | None = None

    def begin(self, key: object, read: Callable[[], Pixels]) -> None:
        """Read what will be asked for by `key`."""
        self.drop()
        self._begun = key, self._thread.submit(read)

    def take(self, key: object) -> Pixels | None:
        """What was begun, if it was for this key: once, and what reading it raised is raised."""
        if self._begun is None or self._begun[0] != key:
            return None
        (_, found), self._begun = self._begun, None
        return found.result()

    def drop(self) -> None:
        """Forget what was begun."""
        if self._begun:
            self._begun[1].cancel()  # if it has not begun; else its thread goes on to its end
        self._begun = None


def with_following(items: Iterable[Item]) -> Iterator[tuple[Item, Item | None]]:
    """Each with the one after it; the last with None."""
    return cast("Iterator[tuple[Item, Item | None]]", itertools.pairwise(itertools.chain(items, [None])))
