"""A level of a slide as its pixels are read in bulk: by OpenSlide, or tile by tile where that gives the same.

OpenSlide composes every region on a canvas of its own, which takes most of its time. Where a level is one grid of JPEG
or JPEG 2000 tiles, there is nothing to compose, and the tiles are decoded directly.
"""

import os
from collections import OrderedDict
from typing import Protocol

import imagecodecs
import numpy as np
import tifffile

from gigapipe.disks import read_again
from gigapipe.errors import InputError
from gigapipe.slides.frames import GREY, Frame, j2k_frame, jpeg_frame, with_a_block_more
from gigapipe.slides.reader import Slide
from gigapipe.slides.tiff import SPARSE, pages, tile_bytes

JPEG = 7
COMPRESSIONS = {JPEG, 33003, 33005}  # and JPEG 2000 as Aperio writes it, of YCbCr and of RGB
SAMPLES = 12
NO_DATA = "a tile without data"
KEPT, KEPT_BYTES = 128, 2**28  # tiles, and what they may take, at most


class Level(Protocol):
    """Rows and columns count pixels of the level. It may be read from several threads, but not after a fork."""

    slide: Slide
    shape: tuple[int, int]
    tile: tuple[int, int]
    """What is decoded at a time."""

    def read(self, row: int, column: int, rows: int, columns: int) -> np.ndarray:
        """Pixels (rows, columns, 3), uint8 RGB. Raises InputError, with the place, if the file is damaged there."""


class OpenSlideLevel:
    """A level as OpenSlide reads it, which is any slide's."""

    def __init__(self, slide: Slide, level: int = 0):
        self.slide, self.shape, self.tile = slide, slide.level_shapes[level], slide.tile
        self._level = level
        # What has no data OpenSlide takes for transparent.
        found = tile_bytes(slide.path, self.shape) if slide.vendor not in SPARSE else None
        counts, self._size = found or (np.ones((0, 0)), (1, 1))
        self._empty = np.argwhere(counts == 0) * self._size

    def read(self, row: int, column: int, rows: int, columns: int) -> np.ndarray:
        height, width = self._size
        for top, left in self._empty:
            if top < row + rows and row < top + height and left < column + columns and column < left + width:
                raise self.slide.damaged(top, left, NO_DATA)
        return self.slide.read(row, column, rows, columns, self._level)


class TiffLevel:
    """A level of a TIFF that is one grid of JPEG or JPEG 2000 tiles.

    Raises ValueError if it is no such grid, and whatever tifffile raises if the file is no TIFF.
    """

    def __init__(self, slide: Slide, level: int = 0):
        self.slide, self.shape, self._level = slide, slide.level_shapes[level], level
        self._file = tifffile.TiffFile(slide.path)
        found = [p for p in pages(self._file) if p.is_tiled and (p.imagelength, p.imagewidth) == self.shape]
        if len(found) != 1 or not _is_plain(found[0]) or (slide.vendor in SPARSE and not all(found[0].databytecounts)):
            self._file.close()
            raise ValueError("not one grid of tiles in JPEG or JPEG 2000")
        (self._page,) = found
        self._tables = self._page.jpegtables
        self.tile = self._page.tilelength, self._page.tilewidth
        self.grid = -(-self.shape[0] // self.tile[0]), -(-self.shape[1] // self.tile[1])
        self._most = max(2, min(KEPT, KEPT_BYTES // (3 * self.tile[0] * self.tile[1])))
        # Tiles of which a part was asked for: who reads beside asks for the rest.
        self._kept: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def read(self, row: int, column: int, rows: int, columns: int) -> np.ndarray:
        out = np.empty((rows, columns, 3), np.uint8)
        height, width = self.tile
        for i in range(row // height, -(-(row + rows) // height)):
            for j in range(column // width, -(-(column + columns) // width)):
                top, left = max(row, i * height), max(column, j * width)
                bottom, right = min(row + rows, (i + 1) * height), min(column + columns, (j + 1) * width)
                part = slice(top - i * height, bottom - i * height), slice(left - j * width, right - j * width)
                tile = self._kept.pop((i, j), None)
                if tile is None:
                    tile = self._decode(i, j)
                    ends = min((i + 1) * height, self.shape[0]), min((j + 1) * width, self.shape[1])
                    if (top, left, bottom, right) != (i * height, j * width, *ends):
                        self._kept[i, j] = tile
                        if len(self._kept) > self._most:
                            self._kept.popitem(last=False)
                out[top - row : bottom - row, left - column : right - column] = tile[part]
        return out

    def _decode(self, i: int, j: int) -> np.ndarray:
        """The tile in row `i`, column `j` of the grid, with what it has past the image."""
        index = i * self.grid[1] + j
        length = self._page.databytecounts[index]
        data = read_again(lambda: self._bytes(self._page.dataoffsets[index], length), self.slide.path)
        try:
            if not length:
                raise ValueError(NO_DATA)
            if len(data) < length:
                raise ValueError(f"{len(data)} of {length} bytes")
            if self._page.compression == JPEG:
                pixels, suspect = self._decode_jpeg(data)
            else:
                self._check(j2k_frame(data))
                decoded, *_ = self._page.decode(data, index)
                if decoded is None:
                    raise ValueError("no pixels")
                pixels, suspect = decoded[0], False
        except Exception as error:  # each codec has errors of its own
            raise self.slide.damaged(i * self.tile[0], j * self.tile[1], str(error)) from None
        if suspect:
            self._ask_openslide(i, j)
        return pixels

    def _decode_jpeg(self, data: bytes) -> tuple[np.ndarray, bool]:
        """A tile's pixels, and whether its data seem to have ended before its pixels did, which nobody else tells."""
        frame = jpeg_frame(data)
        self._check(frame)
        pixels = imagecodecs.jpeg8_decode(
            with_a_block_more(data, frame) if frame.block else data,
            tables=self._tables,
            colorspace="RGB" if self._page.photometric == tifffile.PHOTOMETRIC.RGB and not self._page.is_jfif else None,
            outcolorspace="RGB",
        )
        if not frame.block:
            return pixels, not frame.whole or _is_strange(pixels[-1, -1])
        beyond = pixels[-frame.block :, : frame.block]
        made_up = bool((beyond[-1, -1] == GREY).all() and (beyond == GREY).all())
        return pixels[: frame.rows], not frame.whole or made_up

    def _check(self, frame: Frame) -> None:
        """ValueError if a tile's data are another picture's: a decoder believes them, whatever memory that takes."""
        if frame[:3] != (*self.tile, 3):
            raise ValueError("its frame has {} × {} pixels in {} channels".format(*frame))

    def _ask_openslide(self, i: int, j: int) -> None:
        """InputError if OpenSlide, which hears libjpeg's warnings, finds a tile damaged."""
        row, column = (min(k * t + t // 2, n - 1) for k, t, n in zip((i, j), self.tile, self.shape, strict=True))
        self.slide.read(row, column, 1, 1, self._level)

    def _bytes(self, offset: int, length: int) -> bytes:
        """Not through tifffile's file: its position is shared by all threads."""
        try:
            return os.pread(self._file.filehandle.fileno(), length, offset)
        except OSError:  # an open file may be stale where its name is not
            with open(self.slide.path, "rb", buffering=0) as file:
                return os.pread(file.fileno(), length, offset)

    def sample(self) -> list[tuple[int, int]]:
        """Tiles by which to judge: the corners, and some of every size in the file; the largest show most."""
        rows, columns = self.grid
        by_size = np.argsort(self._page.databytecounts[: rows * columns], kind="stable")
        some = by_size[np.linspace(0, len(by_size) - 1, SAMPLES).astype(int)]
        corners = [(i, j) for i in {0, rows - 1} for j in {0, columns - 1}]
        return corners + [divmod(int(index), columns) for index in some]


def _is_strange(last: np.ndarray) -> bool:
    """Whether a tile's last pixel, RGB, is one that was made up, or one of the colours that lost data lead to."""
    low, high = int(last.min()), int(last.max())
    return low == high == GREY or (high - low > 60 and (low == 0 or high == 255))


def _is_plain(page: tifffile.TiffPage) -> bool:
    return (
        page.compression in COMPRESSIONS
        and page.dtype == np.uint8
        and page.samplesperpixel == 3
        and page.planarconfig == 1
    )


def open_level(slide: Slide, level: int = 0) -> Level:
    """A level by its tiles, if a sample of them decodes to the very pixels of OpenSlide, or else by OpenSlide."""
    plain = OpenSlideLevel(slide, level)
    if slide.corner != (0, 0):
        return plain
    try:
        direct = TiffLevel(slide, level)
    except Exception:  # no TIFF, or one that tifffile makes nothing of
        return plain
    sample = direct.sample()
    if not slide.level_is_aligned(level):
        sample = [(0, 0)]  # elsewhere OpenSlide interpolates between pixels
    same = 0
    for i, j in sample:
        row, column = i * direct.tile[0], j * direct.tile[1]
        size = min(direct.tile[0], direct.shape[0] - row), min(direct.tile[1], direct.shape[1] - column)
        try:
            expected = plain.read(row, column, *size)
        except InputError:  # damaged; who reads all will meet it
            continue
        try:
            if not (direct.read(row, column, *size) == expected).all():
                return plain
        except InputError:
            return plain
        same += 1
    return direct if same else plain


class Mended:
    """A level whose damaged tiles are white. `damaged` collects where they begin, (row, column), as they are read."""

    def __init__(self, level: Level):
        self.slide, self.shape, self.tile, self._level = level.slide, level.shape, level.tile, level
        self.damaged: set[tuple[int, int]] = set()

    def read(self, row: int, column: int, rows: int, columns: int) -> np.ndarray:
        try:
            return self._level.read(row, column, rows, columns)
        except InputError:
            pass
        out = np.full((rows, columns, 3), 255, np.uint8)
        height, width = self.tile
        for top in range(row // height * height, row + rows, height):
            for left in range(column // width * width, column + columns, width):
                begin, end = max(top, row), min(top + height, row + rows)
                first, last = max(left, column), min(left + width, column + columns)
                try:
                    part = self._level.read(begin, first, end - begin, last - first)
                    out[begin - row : end - row, first - column : last - column] = part
                except InputError:
                    self.damaged.add((top, left))
        return out
