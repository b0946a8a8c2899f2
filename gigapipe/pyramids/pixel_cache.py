"""Decoded pixels that are wanted again: by tiles that overlap, and by the backward pass.

Chunks are compressed, and their files checked against checksums. Without a cache that is done for each tile that
touches a chunk, in either pass.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from gigapipe.pyramids.files import Range
from gigapipe.pyramids.recycled import Recycled

STAYING = 0.5
"""Share of the cache for what was read first, which a second pass finds again; the rest is for what was used last."""

Place = tuple[int, int]
"""Row and column of a chunk among the chunks of an image."""

Load = Callable[[Range, Range], np.ndarray]
"""Pixels (…, row, column), uint8, of a rectangle of an image; rows and columns are half-open."""


class PixelCache:
    """Chunks of images, decoded, of `limit` bytes together. Several threads may read at once.

    Other files than the ones that are written by `gigapipe.pyramids` can be read, too: it is told how.
    """

    def __init__(self, limit: float = 0.0):
        self.limit = limit
        self.memory = Recycled(limit)
        """Of chunks, and of what is made of them."""
        self.checked: set[Path] = set()
        """Files whose checksum was right, since the cache was cleared last."""
        self._lock = threading.Lock()
        self._loading: dict[Hashable, Future[np.ndarray]] = {}
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._staying: dict[Hashable, np.ndarray] = {}
            self._recent: OrderedDict[Hashable, np.ndarray] = OrderedDict()
            self._bytes = {True: 0, False: 0}
            self.checked.clear()

    def read(
        self, image: Hashable, shape: tuple[int, ...], chunks: tuple[int, ...], load: Load, rows: Range, columns: Range
    ) -> np.ndarray:
        """Pixels (…, row, column), uint8, of `rows` × `columns` of an image of this shape, stored in `chunks`.

        Of each chunk that is not here, `load` is asked, in as few calls as there are rows of them. What it raises is
        raised; the next who needs that chunk asks again.
        """
        grid = Grid((shape[-2], shape[-1]), (chunks[-2], chunks[-1]))
        found: dict[Place, np.ndarray] = {}
        others: dict[Place, Future[np.ndarray]] = {}
        mine: list[Place] = []
        with self._lock:
            for place in grid.touched(rows, columns):
                key = image, place
                if (chunk := self._known(key)) is not None:
                    found[place] = chunk
                elif key in self._loading:
                    others[place] = self._loading[key]
                else:
                    self._loading[key] = Future()
                    mine.append(place)
        while mine:
            run = _first_run(mine)
            try:
                down, across = grid.rectangle(run)
                pixels = load(down, across)
                for place in run:
                    found[place] = self._keep((image, place), pixels[(..., *grid.overlap(place, down, across)[0])])
                    del mine[0]
            except BaseException as error:
                self._failed(image, mine, error)
                raise
        found |= {place: future.result() for place, future in others.items()}
        leading = next(iter(found.values())).shape[:-2] if found else shape[:-2]
        result = self.memory.empty((*leading, rows[1] - rows[0], columns[1] - columns[0]))
        for place, chunk in found.items():
            into, of_chunk = grid.overlap(place, rows, columns)
            result[(..., *into)] = chunk[(..., *of_chunk)]
        return result

    def _known(self, key: Hashable) -> np.ndarray | None:
        if key in self._recent:
            self._recent.move_to_end(key)
            return self._recent[key]
        return self._staying.get(key)

    def _keep(self, key: Hashable, pixels: np.ndarray) -> np.ndarray:
        """A chunk, of which a copy is kept if there is room, and given to those who wait for it."""
        with self._lock:
            room = self._room(pixels.nbytes)
        chunk = pixels
        if room is not None:  # a copy, for `pixels` may be part of what was read of other chunks, too
            chunk = self.memory.empty(pixels.shape)
            chunk[...] = pixels
        with self._lock:
            if room is not None:
                room[key] = chunk
            waiting = self._loading.pop(key)
        waiting.set_result(chunk)
        return chunk

    def _room(self, size: int) -> dict[Hashable, np.ndarray] | None:
        """Where a chunk of so many bytes is to be kept, for which what was not used for longest has gone; or None."""
        stays = self._bytes[True] + size <= STAYING * self.limit
        room = self.limit * (STAYING if stays else 1 - STAYING)
        while self._recent and not stays and self._bytes[False] + size > room:
            self._bytes[False] -= self._recent.popitem(last=False)[1].nbytes
        if self._bytes[stays] + size > room:
            return None
        self._bytes[stays] += size
        return self._staying if stays else self._recent

    def _failed(self, image: Hashable, places: list[Place], error: BaseException) -> None:
        with self._lock:
            waiting = [self._loading.pop((image, place)) for place in places]
        for future in waiting:
            future.set_exception(error)


class Grid:
    """Where the chunks of an image of `size` lie, of `edges` rows and columns each."""

    def __init__(self, size: tuple[int, int], edges: tuple[int, int]):
        self.size, self.edges = size, edges

    def touched(self, rows: Range, columns: Range) -> list[Place]:
        """The chunks that a rectangle touches, row by row."""
        down, across = (
            range(start // edge, -(-stop // edge)) if stop > start else range(0)
            for (start, stop), edge in zip((rows, columns), self.edges, strict=True)
        )
        return [(row, column) for row in down for column in across]

    def rectangle(self, run: list[Place]) -> tuple[Range, Range]:
        """The rows and columns of neighbours in a row of chunks."""
        (down, first), (_, last) = run[0], run[-1]
        (high, wide), (rows, columns) = self.edges, self.size
        return (down * high, min(rows, (down + 1) * high)), (first * wide, min(columns, (last + 1) * wide))

    def overlap(self, place: Place, rows: Range, columns: Range) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """What a rectangle and a chunk have in common: where in the rectangle, and where in the chunk."""
        into, of_chunk = [], []
        for own, (start, stop) in zip(self.rectangle([place]), (rows, columns), strict=True):
            first, last = max(own[0], start), min(own[1], stop)
            into.append(slice(first - start, last - start))
            of_chunk.append(slice(first - own[0], last - own[0]))
        return (into[0], into[1]), (of_chunk[0], of_chunk[1])


def _first_run(places: list[Place]) -> list[Place]:
    """The first of `places`, row by row, with those that follow it in its row of chunks without a gap."""
    (row, column), run = places[0], []
    for place in places:
        if place != (row, column + len(run)):
            break
        run.append(place)
    return run
