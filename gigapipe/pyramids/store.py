"""The store of one slide: OME-Zarr (https://ngff.openmicroscopy.org), one array a resolution.

Version 0.5, on version 3 of zarr; on request 0.4, on version 2, which is all that some viewers open.
"""

import contextlib
import functools
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numcodecs
import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import LocalStore

import gigapipe
from gigapipe.atomic import atomic_folder
from gigapipe.errors import InputError

NAME = "image.zarr"
OVERVIEW = "overview.png"
LEFT_OUT = "left-out.txt"
ZARR_FORMATS: dict[str, Literal[2, 3]] = {"0.5": 3, "0.4": 2}
COLOURS = {"red": "FF0000", "green": "00FF00", "blue": "0000FF"}
MAP_COLOURS = ("2166AC", "B2182B", "1B7837", "762A83")


@contextlib.contextmanager
def _fast_codecs() -> Iterator[None]:
    """Arrays opened within are read and written by zarrs, in Rust. Blocks and ranks run in parallel, so it does not."""
    # One thread at a time: what zarr restores at the end is what it found at the beginning, whoever had set that.
    with _LOCK, zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": 1}):
        yield


_LOCK = threading.Lock()


def create(
    folder: Path,
    version: str,
    name: str,
    resolutions: list[float],
    shapes: list[tuple[int, int]],
    slide_mpp: tuple[float, float],
    chunk: int,
    shard: int | None,
) -> None:
    """Make an empty store in `folder`: arrays (channel, row, column) of uint8 RGB, finest resolution first.

    `shapes` are (rows, columns) at each of `resolutions` (µm per pixel). It is a `Pyramid` when `finish` was called.
    """
    group = zarr.open_group(folder / NAME, mode="w", zarr_format=ZARR_FORMATS[version])
    for i, shape in enumerate(shapes):
        _array(group, str(i), (3, *shape), chunk, shard, fill=255)
    channels = [
        {"label": label, "color": colour, "active": True, "window": {"min": 0, "max": 255, "start": 0, "end": 255}}
        for label, colour in COLOURS.items()
    ]
    multiscale = _multiscale(name, [(m, m) for m in resolutions], slide_mpp, ["c"]) | {"type": "area mean"}
    _describe(group, {"multiscales": [multiscale], "omero": {"channels": channels, "rdefs": {"model": "color"}}})


def arrays(folder: Path) -> list[zarr.Array]:
    """The arrays of a store that was created, for `write`."""
    with _fast_codecs():
        group = zarr.open_group(folder / NAME, mode="r+")
        return [_array_at(group, str(i)) for i in range(len(_described(group)["multiscales"][0]["datasets"]))]


def _array_at(group: zarr.Group, path: str) -> zarr.Array:
    """An array of a group. KeyError if there is none."""
    found = group[path]
    if not isinstance(found, zarr.Array):
        raise KeyError(path)
    return found


def folder_of(array: zarr.Array) -> Path:
    """Where the metadata of an array lie, and beside it its files."""
    if not isinstance(array.store, LocalStore):
        raise TypeError(f"{array.store}: not on a file system")
    return Path(array.store.root) / array.path


def write(array: zarr.Array, rows: tuple[int, int], columns: tuple[int, int], pixels: np.ndarray) -> None:
    """Write `pixels` (channel, row, column), uint8, to rows and columns that are whole files (chunks, or shards).

    What is there, torn by a kill perhaps, is not looked at.
    """
    for file in files_of_rectangle(array, rows, columns):
        file.unlink(missing_ok=True)
    array[:, slice(*rows), slice(*columns)] = pixels


def files_of(array: zarr.Array) -> int:
    """How many files of chunks an array has; what is white has none."""
    return sum(file.exists() for file in files_of_rectangle(array, (0, array.shape[1]), (0, array.shape[2])))


def files_of_rectangle(array: zarr.Array, rows: tuple[int, int], columns: tuple[int, int]) -> list[Path]:
    """The files that hold `rows` × `columns` (half-open), each of them where it is or, if it is all white, would be."""
    _, *edges = array.shards or array.chunks
    (top, bottom), (left, right) = (
        (start // edge, -(-stop // edge)) for (start, stop), edge in zip((rows, columns), edges, strict=True)
    )
    folder = folder_of(array)
    return [folder / array.metadata.encode_chunk_key((0, i, j)) for i in range(top, bottom) for j in range(left, right)]


def finish(folder: Path, attributes: dict) -> None:
    """Keep `attributes` beside the metadata that the format asks for."""
    group = zarr.open_group(folder / NAME, mode="r+")
    files = [files_of(array) for array in arrays(folder)]
    group.attrs["gigapipe"] = {"version": gigapipe.__version__, **attributes, "files": files}


def add_label(
    folder: Path,
    name: str,
    mask: np.ndarray,
    mpp: tuple[float, float],
    slide_mpp: tuple[float, float],
    version: str = "0.5",
    levels: int = 1,
) -> None:
    """Store a mask (row, column) of a slide, at `mpp` µm per row and column, as a label image of the store in `folder`.

    The format wants as many `levels` as the image has: after the first, every second pixel of the one before. A store
    of nothing but labels is made if there is none.
    """
    labels = zarr.open_group(folder / NAME, mode="a", zarr_format=ZARR_FORMATS[version]).require_group("labels")
    _describe(labels, {"labels": sorted({*_described(labels).get("labels", []), name})})
    label = labels.create_group(name, overwrite=True)
    for i in range(levels):
        coarse = mask[:: 2**i, :: 2**i].astype("uint8")
        with _fast_codecs():
            array = _array(label, str(i), coarse.shape, 1024, None, fill=0)
        array[:] = coarse
    resolutions = [(mpp[0] * 2**i, mpp[1] * 2**i) for i in range(levels)]
    colours = [{"label-value": 1, "rgba": [0, 160, 0, 96]}]
    _describe(
        label, {"multiscales": [_multiscale(name, resolutions, slide_mpp, [])], "image-label": {"colors": colours}}
    )


def open_array(folder: Path) -> zarr.Array:
    """An array that lies in a folder of its own."""
    with _fast_codecs():
        return zarr.open_array(folder, mode="r")


def create_map(
    folder: Path,
    name: str,
    values: np.ndarray,
    channels: list[str],
    mpp: float,
    corner_um: tuple[float, float],
    slide_mpp: tuple[float, float],
    attributes: dict,
) -> None:
    """Store numbers (channel, row, column), float32, that lie on a slide at `mpp` µm, coarse perhaps, in `folder`.

    `corner_um` is where the outer corner of the first pixel lies, in µm down and right of the slide's outer corner.
    """
    group = zarr.open_group(folder / NAME, mode="w", zarr_format=ZARR_FORMATS["0.5"])
    array = _array(group, "0", values.shape, 512, None, fill=0, dtype="float32")
    array[:] = values
    most = float(np.abs(values).max())
    window = {"min": -most, "max": most, "start": 0.0, "end": most}
    colours = itertools.cycle(MAP_COLOURS)
    described = [
        {"label": label, "color": colour, "active": True, "window": window}
        for label, colour in zip(channels, colours, strict=False)
    ]
    multiscale = _multiscale(name, [(mpp, mpp)], slide_mpp, ["c"], corner_um)
    _describe(group, {"multiscales": [multiscale], "omero": {"channels": described}})
    group.attrs["gigapipe"] = {"version": gigapipe.__version__, **attributes}


def read_map(folder: Path) -> tuple[np.ndarray, dict]:
    """The numbers (channel, row, column) and the attributes that `create_map` stored. FileNotFoundError without any."""
    group = zarr.open_group(folder / NAME, mode="r")
    return np.asarray(_array_at(group, "0")[:]), dict(group.metadata.attributes["gigapipe"])


def read_label(folder: Path, name: str) -> zarr.Array:
    """A mask that `add_label` stored. KeyError if there is none."""
    return _array_at(zarr.open_group(folder / NAME, mode="r"), f"labels/{name}/0")


def _describe(group: zarr.Group, metadata: dict) -> None:
    """Write what OME-Zarr says of a group, where its version wants it."""
    if group.metadata.zarr_format == 3:
        group.attrs["ome"] = {"version": "0.5", **metadata}
    else:
        group.attrs.update(metadata)
        for multiscale in metadata.get("multiscales", []):
            group.attrs["multiscales"] = [{"version": "0.4", **multiscale}]


def _described(group: zarr.Group) -> dict:
    attributes = group.metadata.attributes
    return attributes.get("ome", {}) if group.metadata.zarr_format == 3 else attributes


def _array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    chunk: int,
    shard: int | None,
    fill: int,
    dtype: str = "uint8",
) -> zarr.Array:
    channels, axes = shape[:-2], ["c", "y", "x"][-len(shape) :]
    chunks = (*channels, *(chunk if shard else min(chunk, n) for n in shape[-2:]))
    create = functools.partial(group.create_array, name, shape=shape, dtype=dtype, chunks=chunks, fill_value=fill)
    if group.metadata.zarr_format == 3:
        shards = (*channels, shard, shard) if shard else None
        return create(compressors=ZstdCodec(level=1, checksum=True), shards=shards, dimension_names=axes)
    codec = numcodecs.Blosc("zstd", clevel=1, shuffle=numcodecs.Blosc.NOSHUFFLE)
    return create(compressors=codec, chunk_key_encoding={"name": "v2", "separator": "/"})


def _multiscale(
    name: str,
    resolutions: list[tuple[float, float]],
    slide_mpp: tuple[float, float],
    leading: list[str],
    corner_um: tuple[float, float] = (0.0, 0.0),
) -> dict:
    """What the format says of arrays 0, 1, … (*leading, row, column) at these µm per row and column."""
    lead = [1.0] * len(leading)
    # The centre of level 0's first pixel is the origin; a coarser pixel's centre lies half the difference further in.
    datasets = [
        {
            "path": str(i),
            "coordinateTransformations": [
                {"type": "scale", "scale": [*lead, *mpp]},
                {
                    "type": "translation",
                    "translation": [0.0] * len(lead)
                    + [start + (m - own) / 2 for start, m, own in zip(corner_um, mpp, slide_mpp, strict=True)],
                },
            ],
        }
        for i, mpp in enumerate(resolutions)
    ]
    axes = [{"name": axis, "type": "channel"} for axis in leading]
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    return {"name": name, "axes": axes, "datasets": datasets}


def at_pixels(mask: np.ndarray, rows: tuple[int, int], columns: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    """A coarse mask of an image, at some of the pixels of that image of `shape`: (rows, columns), by the nearest."""
    places = [
        ((np.arange(*part) + 0.5) * n // full).astype(int)
        for part, n, full in zip((rows, columns), mask.shape, shape, strict=True)
    ]
    return mask[np.ix_(*places)]


def leave_out(folder: Path, reason: str) -> None:
    """Write, in place of a store, why there is none."""
    with atomic_folder(folder) as partial:
        partial.mkdir(parents=True)
        (partial / LEFT_OUT).write_text(reason + "\n", encoding="utf-8")


def left_out(folder: Path) -> str | None:
    """Why there is no store in `folder`, if that was written there."""
    reason = folder / LEFT_OUT
    return reason.read_text(encoding="utf-8").strip() if reason.exists() else None


class Pyramid:
    """A finished store, opened for reading. `folder` is what `gigapipe pyramid` was told to write.

    Raises InputError if there is no whole pyramid in `folder`.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if reason := left_out(self.folder):
            raise InputError(f"pyramid {self.folder}: the slide was left out: {reason}")
        try:
            with _fast_codecs():
                self._group = zarr.open_group(self.folder / NAME, mode="r")
            self._attributes = self._group.metadata.attributes["gigapipe"]
        except (FileNotFoundError, KeyError, ValueError):
            raise InputError(f"pyramid {self.folder}: no pyramid there; make it with `gigapipe pyramid`") from None
        self._paths = {
            dataset["coordinateTransformations"][0]["scale"][-1]: dataset["path"]
            for dataset in _described(self._group)["multiscales"][0]["datasets"]
        }

    @property
    def resolutions(self) -> list[float]:
        """µm per pixel of each array, finest first."""
        return list(self._paths)

    @property
    def source(self) -> dict:
        """The slide it was made from: `name`, `bytes`, `md5`, `mpp` and `shape` (rows, columns), `vendor`, `objective`,
        `icc_profile`, `damaged_tiles` (row and column in level 0 where each begins)."""
        return self._attributes["source"]

    def lost_files(self, mpp: float) -> int:
        """How many files of chunks there were at `mpp` when the store was made, and are not there now."""
        return self._attributes["files"][self.resolutions.index(mpp)] - files_of(self.array(mpp))

    @property
    def settings(self) -> dict:
        """How it was made: the fields of `gigapipe.pyramids.build.Settings`."""
        return self._attributes["settings"]

    @property
    def tissue(self) -> dict:
        """`box_um` and `fraction` of `gigapipe.slides.tissue.Tissue`."""
        return self._attributes["tissue"]

    def array(self, mpp: float) -> zarr.Array:
        """The slide (channel, row, column), uint8, at `mpp` µm per pixel. InputError if it is not stored."""
        if mpp not in self._paths:
            stored = ", ".join(f"{m:g}" for m in self.resolutions)
            raise InputError(
                f"pyramid {self.folder}: holds {stored} µm/px, not {mpp:g}; make it again with `gigapipe pyramid`"
            )
        try:
            with _fast_codecs():
                return _array_at(self._group, self._paths[mpp])
        except (KeyError, ValueError):
            raise InputError(
                f"pyramid {self.folder}: its {mpp:g} µm/px cannot be read; make it again with `gigapipe pyramid`"
            ) from None

    @functools.cached_property
    def outline(self) -> np.ndarray:
        """The outline of the tissue, and a margin, on the whole slide: (row, column), bool, coarse.

        InputError if it is not stored.
        """
        try:
            return np.asarray(read_label(self.folder, "tissue")[:]).astype(bool)
        except KeyError:
            raise InputError(
                f"pyramid {self.folder}: holds no outline of the tissue; make it again with `gigapipe pyramid`"
            ) from None

    def outline_at(self, mpp: float, rows: slice, columns: slice) -> np.ndarray:
        """Whether each pixel of a rectangle of the slide at `mpp` lies within the outline: (rows, columns), bool."""
        down, across = ((part.start, part.stop) for part in (rows, columns))
        return at_pixels(self.outline, down, across, self.array(mpp).shape[1:])
