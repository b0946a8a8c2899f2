"""What is read of the slides that come next, while those before are computed."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar, cast

from gigapipe.spatial.window import Rectangle

Pixels = TypeVar("Pixels")
Item = TypeVar("Item")


class Ahead:
    """One image, whose pixels are read before they are asked for, by a thread of its own."""

    def __init__(self):
        self._thread = ThreadPoolExecutor(1, "reader")  # which begins with the first that is read
        self._begun: tuple[object, Future[Any]] | None = None

    def begin(self, key: object, read: Callable[[], Any]) -> None:
        """Read what will be asked for by `key`; what was begun before is forgotten."""
        if self._begun:
            self._begun[1].cancel()  # if it has not begun; else its thread goes on to its end
        self._begun = key, self._thread.submit(read)

    def take(self, key: object) -> Any | None:
        """What was begun, if it was for this key, once; what reading it raised is raised."""
        if self._begun is None or self._begun[0] != key:
            return None
        (_, found), self._begun = self._begun, None
        return found.result()

    def reader(self, key: object, rectangle: Rectangle, read: Callable[[Rectangle], Pixels]) -> Callable[..., Pixels]:
        """`read`, but of `rectangle` what was begun for this key, if it was: that is taken now, and given once.

        Now, for the image may be read after the one that follows is begun.
        """
        waiting = [self.take(key)]

        def taken_or_read(asked: Rectangle) -> Pixels:
            found = waiting.pop() if waiting and asked == rectangle else None
            return read(asked) if found is None else found

        return taken_or_read


def with_following(items: Iterable[Item]) -> Iterator[tuple[Item, Item | None]]:
    """Each with the one after it; the last with None."""
    return cast("Iterator[tuple[Item, Item | None]]", itertools.pairwise(itertools.chain(items, [None])))
