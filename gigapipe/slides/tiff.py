"""What a TIFF says of its own pictures, by its tables alone: no pixel is decoded, and nothing native reads it."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

from gigapipe.errors import InputError

# What it has to say of vendors' peculiarities would stand between a slide's name and its fault.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

TILE_MEMORY = 2**28
"""Bytes that one tile may take when it is decoded: scanners' tiles take 0.3 to 16 MB."""
SPARSE = {"philips", "ventana"}
"""Vendors whose files leave out tiles on purpose, where nothing was scanned."""
UPRIGHT = {0, 1}  # of which 0 is nothing that the format knows
COLOURS = {tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR, tifffile.PHOTOMETRIC.PALETTE}


def pages(file: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
    return (page for page in file.pages if isinstance(page, tifffile.TiffPage))


def check_tiff(path: Path, tile_memory: int = TILE_MEMORY) -> None:
    """InputError, naming the slide, if it is a TIFF of which OpenSlide would show another picture than the file's, or
    for whose tiles it would take more than `tile_memory` bytes. What is no TIFF is left to who reads it."""
    try:
        with tifffile.TiffFile(path) as file:
            found = list(pages(file))
    except Exception:  # no TIFF, or one that tifffile makes nothing of
        return
    tiled = [page for page in found if page.is_tiled]
    fault = next((fault for page in tiled if (fault := _fault_of_tile(page, tile_memory))), None)
    if not fault and found:
        largest = max(tiled or found, key=lambda page: page.imagelength * page.imagewidth)
        fault = (_fault_of_table(largest) if tiled else None) or _fault_of_picture(largest, found)
    if fault:
        raise InputError(f"slide {path}: {fault}, or remove its row from the sample sheet")


def check_tile(path: Path, tile: tuple[int, int], tile_memory: int) -> None:
    """InputError if a tile of so many (rows, columns) takes more than `tile_memory` bytes."""
    if fault := _too_large(tile, tile_memory):
        raise InputError(f"slide {path}: {fault}, or remove its row from the sample sheet")


def _too_large(tile: tuple[int, int], memory: int) -> str | None:
    needed = tile[0] * tile[1] * 4  # as OpenSlide holds a pixel
    if needed <= memory:
        return None
    return (
        f"a tile of {tile[0]} × {tile[1]} pixels takes {needed / 1e6:.0f} MB, more than the {memory / 1e6:.0f} MB of "
        "pyramids: tile_memory (--tile-memory); download it again, or set a larger value if the file is correct"
    )


def _fault_of_tile(page: tifffile.TiffPage, memory: int) -> str | None:
    tile, shape = (page.tilelength, page.tilewidth), (page.imagelength, page.imagewidth)
    if min(*tile, *shape) < 1:
        return f"its tiles have {tile[0]} × {tile[1]} pixels, its image has {shape[0]} × {shape[1]}; download it again"
    return _too_large(tile, memory)


def _fault_of_table(page: tifffile.TiffPage) -> str | None:
    tile, shape = (page.tilelength, page.tilewidth), (page.imagelength, page.imagewidth)
    needed = -(-shape[0] // tile[0]) * -(-shape[1] // tile[1]) * (page.samplesperpixel if page.planarconfig == 2 else 1)
    table = page.tags.get("TileOffsets")
    if table is None or table.count < needed:
        return (
            f"{shape[0]} × {shape[1]} pixels need {needed} tiles, and its table has {table.count if table else 0}; "
            "download it again"
        )
    return None


def _fault_of_picture(page: tifffile.TiffPage, found: list[tifffile.TiffPage]) -> str | None:
    orientation = page.tags.get("Orientation")
    if orientation is not None and orientation.value not in UPRIGHT:
        return (
            f"its image is stored rotated or mirrored (TIFF orientation {int(orientation.value)}), which OpenSlide "
            "does not correct; save it upright"
        )
    if page.samplesperpixel < 3 and page.photometric != tifffile.PHOTOMETRIC.PALETTE:
        alike = sum((p.imagelength, p.imagewidth) == (page.imagelength, page.imagewidth) for p in found)
        if alike > 1:
            return f"{alike} pages of the same size contain one colour each, and OpenSlide shows one; save it as RGB"
        return "its image is greyscale, not RGB; save it as RGB"
    if page.tags.get("PhotometricInterpretation") and page.photometric not in COLOURS or page.samplesperpixel > 4:
        name = getattr(page.photometric, "name", page.photometric)
        return f"its image has {page.samplesperpixel} channels of {name}, not red, green and blue; save it as RGB"
    return None


def tile_bytes(path: Path, shape: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]] | None:
    """How many bytes each tile of a level of `shape` has in the file (rows, columns of tiles), none where a colour has
    none, and rows and columns of a tile. None if the file is no TIFF that has one such level in tiles."""
    try:
        with tifffile.TiffFile(path) as file:
            level = [page for page in pages(file) if page.is_tiled and (page.imagelength, page.imagewidth) == shape]
            if len(level) != 1:
                return None
            (page,) = level
            tile = page.tilelength, page.tilewidth
            grid = -(-shape[0] // tile[0]), -(-shape[1] // tile[1])
            planes = page.samplesperpixel if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1
            counts = np.array(page.databytecounts[: planes * grid[0] * grid[1]]).reshape(planes, *grid)
            return counts.sum(axis=0) * counts.all(axis=0), tile
    except Exception:  # no TIFF, or one that tifffile makes nothing of
        return None
