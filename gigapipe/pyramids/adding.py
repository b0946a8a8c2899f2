"""A resolution more for a pyramid that is there: of its slide or, where that is gone, of its own next finer one.

What the store holds is not touched. A new array lies beside the others, where no reader looks, until the metadata that
name it have taken the place of the old ones, file by file; its seal holds for both meanwhile. Whenever that is cut
short, the store is whole, with the new resolution or without it.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import zarr

from gigapipe.atomic import atomic_file
from gigapipe.errors import InputError
from gigapipe.one_writer import only_writer
from gigapipe.pyramids.area import AreaMean, Axis
from gigapipe.pyramids.build import build_pyramid, largest_error, mean_error, write_rounded
from gigapipe.pyramids.files import SEAL, files_of, seal, stamp
from gigapipe.pyramids.folders import NAME
from gigapipe.pyramids.reading import read_pixels
from gigapipe.pyramids.settings import Settings
from gigapipe.pyramids.store import Pyramid, multiscale_of, new_array

logger = logging.getLogger(__name__)

BAND = 1024  # px of a finer resolution that are read at a time
LABEL = Path("labels", "tissue")


class Level(NamedTuple):
    """An array that is made, but not named yet."""

    mpp: float
    path: str
    files: int
    mean_error: float
    largest_error: int
    made_from: dict | None = None
    """As `Pyramid.made_from`, of one."""


def add_resolutions(
    folder: str | Path,
    resolutions: Sequence[float],
    slide: str | Path | None,
    threads: int = 2,
    scheduler: str = "threads",
    reader: str | None = None,
) -> list[float]:
    """Give the pyramid in `folder` those of `resolutions` (µm per pixel) that it does not have; which they were.

    They are what `build_pyramid` would have made of the slide, which the user's function of the name `reader` opens, if
    one is given: that which the pyramid names is not called. Without the `slide` each is the area mean of the next
    finer resolution that the pyramid has, and the pyramid says so (`Pyramid.made_from`).

    Raises InputError if `slide` is not the file that the pyramid was made of, or if there is no finer resolution.
    """
    folder = Path(folder)
    with only_writer(folder):
        pyramid = Pyramid(folder)
        lacking = sorted(set(map(float, resolutions)) - set(pyramid.resolutions))
        if lacking:
            _clear(pyramid)
            if slide:
                made = _of_slide(pyramid, lacking, Path(slide), threads, scheduler, reader)
            else:
                made = _of_store(pyramid, lacking)
            _name(pyramid, made)
            shutil.rmtree(_beside(folder), ignore_errors=True)
    return lacking


def finer_than(mpp: float, resolutions: Sequence[float]) -> float | None:
    """The next finer of some resolutions, if there is one."""
    return max((one for one in resolutions if one < mpp), default=None)


def _beside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.added")


def _clear(pyramid: Pyramid) -> None:
    """Remove arrays that a run which was cut short has left, and nobody has named."""
    folder, left = pyramid.folder, []
    for group in (Path(), LABEL):
        if (place := folder / NAME / group).is_dir():
            named = {level["path"] for level in _levels(_read(place)[1])}
            left += [one for one in place.iterdir() if one.name.isdecimal() and one.name not in named]
    if left and (folder / SEAL).exists():
        seal(folder, without=left)
    for array in left:
        shutil.rmtree(array)


def _of_slide(
    pyramid: Pyramid, lacking: list[float], slide: Path, threads: int, scheduler: str, reader: str | None
) -> list[Level]:
    """Make a pyramid of what is lacking, and take its arrays."""
    folder, beside = pyramid.folder, _beside(pyramid.folder)
    settings = Settings(**pyramid.settings | {"reader": reader})
    if not settings.clean_background:  # where tissue is, is known
        settings = settings.model_copy(update={"tissue": None, "keep_without_tissue": True})
    another = InputError(f"slide {slide}: is not the file that pyramid {folder} was made from; make the pyramid again")
    if slide.exists() and slide.stat().st_size != pyramid.source["bytes"]:
        raise another
    build_pyramid(slide, beside, lacking, settings, threads, scheduler)
    made = Pyramid(beside)
    if made.source["md5"] != pyramid.source["md5"]:
        shutil.rmtree(beside)
        raise another
    levels = []
    for i, mpp in enumerate(lacking):
        path = str(len(pyramid.resolutions) + i)
        files = files_of(made.array(mpp))
        (beside / NAME / str(i)).rename(folder / NAME / path)
        levels.append(Level(mpp, path, files, made.codec["mean_error"][i], made.codec["largest_error"][i]))
    return levels


def _of_store(pyramid: Pyramid, lacking: list[float]) -> list[Level]:
    group = zarr.open_group(pyramid.folder / NAME, mode="r+")
    settings = Settings(**pyramid.settings)
    levels = []
    for i, mpp in enumerate(lacking):
        finer = finer_than(mpp, pyramid.resolutions)
        if finer is None:
            raise InputError(
                f"pyramid {pyramid.folder}: {mpp:g} µm/px is finer than all its resolutions; also give its slide"
            )
        axes = _axes(pyramid, finer, mpp)
        path = str(len(pyramid.resolutions) + i)
        shape = (3, axes[0].size, axes[1].size)
        array = new_array(group, path, shape, settings.chunk, settings.shard, fill=255, codec=settings.codec)
        lost = _fill(array, pyramid.array(finer), axes, settings)
        stamp(array)
        error = _bound(pyramid, finer, axes)
        said = f"at most {error} grey levels from" if error is not None else "by an unbounded error from"
        logger.warning(
            f"pyramid {pyramid.folder}: its slide is gone: {mpp:g} µm/px is made of {finer:g}, and differs {said} what "
            "the slide would have given (docs/pyramids.md)"
        )
        how = {"level": finer, "largest_error": error}
        levels.append(Level(mpp, path, files_of(array), mean_error(lost), largest_error(lost), how))
    return levels


def _axes(pyramid: Pyramid, finer: float, mpp: float) -> tuple[Axis, Axis]:
    """Rows and columns of an output, from a resolution of the store, of the size that they have from the slide."""
    own, shape, source = pyramid.source["mpp"], pyramid.source["shape"], pyramid.array(finer).shape[1:]
    parts = zip(source, pyramid.scale(finer), own, shape, strict=True)
    rows, columns = (
        Axis.of(n, max(mpp, mine) / scale, Axis.of(whole, max(1.0, mpp / mine)).size) for n, scale, mine, whole in parts
    )
    return rows, columns


def _fill(array: zarr.Array, source: zarr.Array, axes: tuple[Axis, Axis], settings: Settings) -> list:
    """Write all of an array; what `write_rounded` tells of each part."""
    edge, lost = settings.shard or settings.chunk, []
    for top in range(0, axes[0].size, edge):
        for left in range(0, axes[1].size, edge):
            part = [(start, min(start + edge, axis.size)) for start, axis in zip((top, left), axes, strict=True)]
            mean = AreaMean(*axes, *part)
            row, last = mean.rows
            while row < last:
                stop = min(last, row + BAND)
                band = read_pixels(source, (row, stop), mean.columns)
                mean.feed(band.transpose(1, 2, 0), row, mean.columns[0])
                row = stop
            lost.append(write_rounded(array, part[0], part[1], mean.mean, settings.codec))
    return lost


def _bound(pyramid: Pyramid, finer: float, axes: tuple[Axis, Axis]) -> int | None:
    """Grey levels by which a mean of means differs from that of the slide at most, or None.

    Of whole pixels it is the same mean, but for what the finer ones were rounded by, half a level, and lost by their
    codec. Of divided ones nobody knows any more which half of them was dark.
    """
    if any(axis.ratio.denominator != 1 for axis in axes):
        return None
    before = pyramid.made_from.get(finer, {"largest_error": 0})["largest_error"]
    return None if before is None else before + 1 + pyramid.codec["largest_error"][pyramid.resolutions.index(finer)]


def _read(place: Path) -> tuple[Path, dict]:
    """The file of a group's metadata, and what it holds."""
    file = place / "zarr.json"
    if not file.exists():
        file = place / ".zattrs"
    return file, json.loads(file.read_bytes())


def _attributes(document: dict) -> dict:
    """Those of a group's metadata, of whichever version of zarr."""
    return document["attributes"] if "zarr_format" in document else document


def _levels(document: dict) -> list[dict[str, Any]]:
    attributes = _attributes(document)
    return attributes.get("ome", attributes)["multiscales"][0]["datasets"]


def _name(pyramid: Pyramid, made: list[Level]) -> None:
    """Let the metadata name what was made."""
    folder, own = pyramid.folder, tuple(pyramid.source["mpp"])
    file, document = _read(folder / NAME)
    levels, attributes = _levels(document), _attributes(document)["gigapipe"]
    names = pyramid.resolutions + [level.mpp for level in made]
    order = sorted(range(len(names)), key=names.__getitem__)
    for level in made:
        scale = max(level.mpp, own[0]), max(level.mpp, own[1])
        levels.append(multiscale_of("", [scale], own, ["c"])["datasets"][0] | {"path": level.path})
    levels[:] = [levels[i] for i in order]
    codec = pyramid.codec
    for key, values in {
        "resolutions": names,
        "files": attributes["files"] + [level.files for level in made],
    }.items():
        attributes[key] = [values[i] for i in order]
    attributes["codec"] = {"name": codec["name"]} | {
        key: [(codec[key] + [getattr(level, key) for level in made])[i] for i in order]
        for key in ("mean_error", "largest_error")
    }
    if how := {f"{level.mpp:g}": level.made_from for level in made if level.made_from}:
        attributes["made_from"] = attributes.get("made_from", {}) | how
    documents = {file: document} | _more_of_label(pyramid, len(names))
    texts = {file: json.dumps(document, indent=2).encode() for file, document in documents.items()}
    sealed = (folder / SEAL).exists()  # stores of release 0.1 are not
    if sealed:
        seal(folder, coming=texts)
    for file, text in texts.items():
        with atomic_file(file) as partial:
            partial.write_bytes(text)
    if sealed:
        seal(folder)


def _more_of_label(pyramid: Pyramid, levels: int) -> dict[Path, dict]:
    """Let the outline of the tissue have as many `levels` as the image, as the format wants; its metadata then."""
    place = pyramid.folder / NAME / LABEL
    if not place.is_dir():
        return {}
    file, document = _read(place)
    there = _levels(document)
    down, across = there[0]["coordinateTransformations"][0]["scale"][-2:]
    label = zarr.open_group(place, mode="r+")
    for i in range(len(there), levels):
        coarse = pyramid.outline[:: 2**i, :: 2**i].astype("uint8")
        array = new_array(label, str(i), coarse.shape, 1024, None, fill=0)
        array[:] = coarse
        stamp(array)
        scale = down * 2**i, across * 2**i
        there.append(multiscale_of("", [scale], tuple(pyramid.source["mpp"]), [])["datasets"][0] | {"path": str(i)})
    return {file: document}
