"""The store of one slide: OME-Zarr (https://ngff.openmicroscopy.org), one array a resolution.

Version 0.5, on version 3 of zarr; on request 0.4, on version 2, which is all that some viewers open.
"""

import contextlib
import functools
import itertools
import os
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import zarr

import gigapipe
from gigapipe.disks import named
from gigapipe.errors import InputError
from gigapipe.pyramids.codecs import Codec, channels_together, compressors
from gigapipe.pyramids.files import check, check_seal, files_of, files_of_rectangle, folder_of, seal, stamp
from gigapipe.pyramids.folders import NAME, left_out

ZARR_FORMATS: dict[str, Literal[2, 3]] = {"0.5": 3, "0.4": 2}
COLOURS = {"red": "FF0000", "green": "00FF00", "blue": "0000FF"}
ONE_CLASS: dict = {"colors": [{"label-value": 1, "rgba": [0, 160, 0, 96]}]}
MAP_COLOURS = ("2166AC", "B2182B", "1B7837", "762A83")


@contextlib.contextmanager
def _fast_codecs() -> Iterator[None]:
    """Arrays opened within are read and written by zarrs, in Rust. Blocks and ranks run in parallel, so it does not."""
    # One thread at a time: what zarr restores at the end is what it found at the beginning, whoever had set that.
    # What zarrs does not know, as JPEG, zarr reads.
    warnings.filterwarnings("ignore", message="Array is unsupported by ZarrsCodecPipeline")
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
    codec: Codec = "zstd",
) -> None:
    """Make an empty store in `folder`: arrays (channel, row, column) of uint8 RGB, finest resolution first.

    `shapes` are (rows, columns) at each of `resolutions` (µm per pixel; of what is coarser itself, it has the slide's).
    It is a `Pyramid` when `finish` was called.
    """
    group = zarr.open_group(folder / NAME, mode="w", zarr_format=ZARR_FORMATS[version])
    for i, shape in enumerate(shapes):
        new_array(group, str(i), (3, *shape), chunk, shard, fill=255, codec=codec)
    channels = [
        {"label": label, "color": colour, "active": True, "window": {"min": 0, "max": 255, "start": 0, "end": 255}}
        for label, colour in COLOURS.items()
    ]
    down, across = slide_mpp
    scales = [(max(mpp, down), max(mpp, across)) for mpp in resolutions]
    multiscale = multiscale_of(name, scales, slide_mpp, ["c"]) | {"type": "area mean"}
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


def write(array: zarr.Array, rows: tuple[int, int], columns: tuple[int, int], pixels: np.ndarray) -> None:
    """Write `pixels` (channel, row, column), uint8, to rows and columns that are whole files (chunks, or shards).

    What is there, torn by a kill perhaps, is not looked at.
    """
    for file in files_of_rectangle(array, rows, columns):
        file.unlink(missing_ok=True)
    with _disk_errors(array):
        array[:, slice(*rows), slice(*columns)] = pixels


@contextlib.contextmanager
def _disk_errors(array: zarr.Array) -> Iterator[None]:
    """OSError, naming the array, where the disk fails: zarrs raises a RuntimeError whose text has the number."""
    try:
        with named(folder_of(array)):
            yield
    except RuntimeError as error:
        if not (found := re.search(r"\(os error (\d+)\)", str(error))):
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(folder_of(array))) from None


def finish(folder: Path, attributes: dict) -> None:
    """Keep `attributes` beside the metadata that the format asks for."""
    group = zarr.open_group(folder / NAME, mode="r+")
    stored = arrays(folder)
    for array in stored:
        stamp(array)
    files = [files_of(array) for array in stored]
    group.attrs["gigapipe"] = {"version": gigapipe.__version__, **attributes, "files": files}
    seal(folder)


def add_label(
    folder: Path,
    name: str,
    mask: np.ndarray,
    mpp: tuple[float, float],
    slide_mpp: tuple[float, float],
    version: str = "0.5",
    levels: int = 1,
    about: dict = ONE_CLASS,
) -> None:
    """Store a mask (row, column) of a slide, at `mpp` µm per row and column, as a label image of the store in `folder`.

    The format wants as many `levels` as the image has: after the first, every second pixel of the one before. A store
    of nothing but labels is made if there is none. `about` is what the format's `image-label` says of its values.
    """
    labels = zarr.open_group(folder / NAME, mode="a", zarr_format=ZARR_FORMATS[version]).require_group("labels")
    _describe(labels, {"labels": sorted({*_described(labels).get("labels", []), name})})
    label = labels.create_group(name, overwrite=True)
    for i in range(levels):
        coarse = mask[:: 2**i, :: 2**i].astype("uint8")
        with _fast_codecs():
            array = new_array(label, str(i), coarse.shape, 1024, None, fill=0)
        with _disk_errors(array):
            array[:] = coarse
            stamp(array)
    resolutions = [(mpp[0] * 2**i, mpp[1] * 2**i) for i in range(levels)]
    _describe(label, {"multiscales": [multiscale_of(name, resolutions, slide_mpp, [])], "image-label": about})
    seal(folder)


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
    array = new_array(group, "0", values.shape, 512, None, fill=0, dtype="float32")
    with _disk_errors(array):
        array[:] = values
        stamp(array)
    most = float(np.abs(values).max())
    window = {"min": -most, "max": most, "start": 0.0, "end": most}
    colours = itertools.cycle(MAP_COLOURS)
    described = [
        {"label": label, "color": colour, "active": True, "window": window}
        for label, colour in zip(channels, colours, strict=False)
    ]
    multiscale = multiscale_of(name, [(mpp, mpp)], slide_mpp, ["c"], corner_um)
    _describe(group, {"multiscales": [multiscale], "omero": {"channels": described}})
    group.attrs["gigapipe"] = {"version": gigapipe.__version__, **attributes}
    seal(folder)


def read_map(folder: Path) -> tuple[np.ndarray, dict]:
    """The numbers (channel, row, column) and the attributes that `create_map` stored. FileNotFoundError without any.

    ValueError if they are not what was written.
    """
    group = zarr.open_group(folder / NAME, mode="r")
    check_seal(folder)
    array = _array_at(group, "0")
    check(array)
    return np.asarray(array[:]), dict(group.metadata.attributes["gigapipe"])


def read_label(folder: Path, name: str) -> zarr.Array:
    """A mask that `add_label` stored. KeyError if there is none, InputError if it is not what was written."""
    array = _array_at(zarr.open_group(folder / NAME, mode="r"), f"labels/{name}/0")
    try:
        check_seal(folder)
        check(array)
    except ValueError as error:
        raise InputError(f"{folder}: of its mask {name} {error}; make it again") from None
    return array


def about_label(folder: Path, name: str) -> dict:
    """What the format's `image-label` says of the values of a label image that `add_label` stored."""
    label = zarr.open_group(folder / NAME, mode="r")[f"labels/{name}"]
    assert isinstance(label, zarr.Group)
    return _described(label)["image-label"]


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


def new_array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    chunk: int,
    shard: int | None,
    fill: int,
    dtype: str = "uint8",
    codec: Codec = "zstd",
) -> zarr.Array:
    """An array (channel, row, column), or (row, column), without chunks; what has none holds `fill`."""
    channels, axes = shape[:-2] if channels_together(codec) else (1,), ["c", "y", "x"][-len(shape) :]
    chunks = (*channels, *(chunk if shard else min(chunk, n) for n in shape[-2:]))
    create = functools.partial(group.create_array, name, shape=shape, dtype=dtype, chunks=chunks, fill_value=fill)
    if group.metadata.zarr_format == 3:
        shards = (*channels, shard, shard) if shard else None
        return create(compressors=compressors(codec, 3), shards=shards, dimension_names=axes)
    return create(compressors=compressors(codec, 2), chunk_key_encoding={"name": "v2", "separator": "/"})


def multiscale_of(
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


class Pyramid:
    """A finished store, opened for reading. `folder` is what `gigapipe pyramid` was told to write.

    Raises InputError if there is no whole pyramid in `folder`.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if reason := left_out(self.folder):
            raise InputError(f"pyramid {self.folder}: the slide was excluded: {reason}")
        try:
            if (self.folder / NAME).exists():
                check_seal(self.folder)
        except ValueError as error:
            raise InputError(f"pyramid {self.folder}: {error}; make it again with `gigapipe pyramid`") from None
        try:
            with _fast_codecs():
                self._group = zarr.open_group(self.folder / NAME, mode="r")
            self._attributes = self._group.metadata.attributes["gigapipe"]
        except (FileNotFoundError, KeyError, ValueError):
            raise InputError(f"pyramid {self.folder}: there is no pyramid; make it with `gigapipe pyramid`") from None
        datasets = _described(self._group)["multiscales"][0]["datasets"]
        scales = [tuple(dataset["coordinateTransformations"][0]["scale"][-2:]) for dataset in datasets]
        # Older stores have no other resolutions than their scales.
        names = self._attributes.get("resolutions", [scale[-1] for scale in scales])
        self._paths = {mpp: dataset["path"] for mpp, dataset in zip(names, datasets, strict=True)}
        self._opened: dict[float, zarr.Array] = {}  # zarr takes 2 ms for each, as long as reading a small canvas
        self._scales = dict(zip(names, scales, strict=True))

    @property
    def resolutions(self) -> list[float]:
        """µm per pixel of each array, finest first, as they were asked for."""
        return list(self._paths)

    def scale(self, mpp: float) -> tuple[float, float]:
        """µm per row and column at `mpp`: that, or a little more where a coarser slide was let serve for it."""
        self.array(mpp)
        return self._scales[mpp]

    @property
    def source(self) -> dict:
        """The slide it was made from: `name`, `bytes`, `md5`, `mpp` and `shape` (rows, columns), `vendor`, `objective`,
        `icc_profile`, `damaged_tiles` (row and column in level 0 where each begins), `unused_levels` (of the file, and
        why; unlike the others not in every old store), and of a reader of the user's `reader_code`."""
        return self._attributes["source"]

    def lost_files(self, mpp: float) -> int:
        """How many files of chunks there were at `mpp` when the store was made, and are not there now."""
        return self._attributes["files"][self.resolutions.index(mpp)] - files_of(self.array(mpp))

    @property
    def settings(self) -> dict:
        """How it was made: the fields of `gigapipe.pyramids.settings.Settings`."""
        return self._attributes["settings"]

    @property
    def codec(self) -> dict:
        """The `name` of what compressed the pixels, and by how many grey levels they differ for it at each resolution:
        `mean_error`, `largest_error`."""
        none = [0] * len(self.resolutions)
        return self._attributes.get("codec", {"name": "zstd", "mean_error": none, "largest_error": none})

    @property
    def made_from(self) -> dict[float, dict]:
        """Of resolutions that were made of a finer one, as the slide was gone: that `level` (µm per pixel), and the
        `largest_error` (grey levels) against what the slide would have given, or None where it has no bound."""
        return {float(mpp): how for mpp, how in self._attributes.get("made_from", {}).items()}

    @property
    def tissue(self) -> dict:
        """`box_um`, `fraction`, `verdict`, `why` of `gigapipe.slides.tissue.Tissue`, and `density`, the mean optical
        density of the tissue in red, green and blue, or None; older stores have no density, and some no verdict."""
        return {"verdict": "not judged", "why": ""} | self._attributes["tissue"]

    def array(self, mpp: float) -> zarr.Array:
        """The slide (channel, row, column), uint8, at `mpp` µm per pixel. InputError if it is not stored."""
        if mpp in self._opened:
            return self._opened[mpp]
        if mpp not in self._paths:
            stored = ", ".join(f"{m:g}" for m in self.resolutions)
            raise InputError(
                f"pyramid {self.folder}: has {stored} µm/px, not {mpp:g}; make it again with `gigapipe pyramid`"
            )
        try:
            with _fast_codecs():
                self._opened[mpp] = _array_at(self._group, self._paths[mpp])
        except (KeyError, ValueError):
            raise InputError(
                f"pyramid {self.folder}: its {mpp:g} µm/px cannot be read; make it again with `gigapipe pyramid`"
            ) from None
        return self._opened[mpp]

    @functools.cached_property
    def outline(self) -> np.ndarray:
        """The outline of the tissue, and a margin, on the whole slide: (row, column), bool, coarse.

        InputError if it is not stored.
        """
        try:
            return np.asarray(read_label(self.folder, "tissue")[:]).astype(bool)
        except KeyError:
            raise InputError(
                f"pyramid {self.folder}: has no outline of the tissue; make it again with `gigapipe pyramid`"
            ) from None

    def outline_at(self, mpp: float, rows: slice, columns: slice) -> np.ndarray:
        """Whether each pixel of a rectangle of the slide at `mpp` lies within the outline: (rows, columns), bool.

        All do of a slide in which no tissue was found.
        """
        if not self.outline.any():
            return np.ones((rows.stop - rows.start, columns.stop - columns.start), bool)
        down, across = ((part.start, part.stop) for part in (rows, columns))
        return at_pixels(self.outline, down, across, self.array(mpp).shape[1:])
