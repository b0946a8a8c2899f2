"""The store of one slide: OME-Zarr 0.5 (https://ngff.openmicroscopy.org/0.5/), one array a resolution."""

import functools
from pathlib import Path

import numpy as np
import zarr

import gigapipe
from gigapipe.errors import InputError

NAME = "image.zarr"


def create(
    folder: Path,
    resolutions: list[float],
    shapes: list[tuple[int, int]],
    chunk: int,
    slide_mpp: tuple[float, float],
    attributes: dict,
) -> list[zarr.Array]:
    """Make an empty store in `folder`: arrays (channel, row, column) of uint8 RGB, finest resolution first.

    `shapes` are (rows, columns) at each of `resolutions` (µm per pixel); `attributes` are kept beside the
    metadata that the format asks for.
    """
    group = zarr.open_group(folder / NAME, mode="w", zarr_format=3)
    arrays = [_array(group, str(i), (3, *shape), chunk, fill=255) for i, shape in enumerate(shapes)]
    colours = {"red": "FF0000", "green": "00FF00", "blue": "0000FF"}
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [
            _multiscale(attributes["source"]["name"], [(m, m) for m in resolutions], slide_mpp, ["c"])
            | {"type": "area mean"}
        ],
        "omero": {
            "channels": [
                {
                    "label": label,
                    "color": colour,
                    "active": True,
                    "window": {"min": 0, "max": 255, "start": 0, "end": 255},
                }
                for label, colour in colours.items()
            ],
            "rdefs": {"model": "color"},
        },
    }
    group.attrs["gigapipe"] = {"version": gigapipe.__version__, **attributes}
    return arrays


def add_label(
    folder: Path, name: str, mask: np.ndarray, mpp: tuple[float, float], slide_mpp: tuple[float, float]
) -> None:
    """Store a mask (row, column) of a slide, at `mpp` µm per row and column, as a label image of the store in `folder`.

    A store of nothing but labels is made if there is none.
    """
    labels = zarr.open_group(folder / NAME, mode="a", zarr_format=3).require_group("labels")
    names = labels.attrs.get("ome", {}).get("labels", [])
    labels.attrs["ome"] = {"version": "0.5", "labels": sorted({*names, name})}
    label = labels.create_group(name, overwrite=True)
    _array(label, "0", mask.shape, 1024, fill=0)[:] = mask.astype("uint8")
    label.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [_multiscale(name, [mpp], slide_mpp, [])],
        "image-label": {"colors": [{"label-value": 1, "rgba": [0, 160, 0, 96]}]},
    }


def read_label(folder: Path, name: str) -> zarr.Array:
    """A mask that `add_label` stored. KeyError if there is none."""
    return zarr.open_group(folder / NAME, mode="r")[f"labels/{name}/0"]


def _array(group: zarr.Group, name: str, shape: tuple[int, ...], chunk: int, fill: int) -> zarr.Array:
    channels = shape[:-2]
    return group.create_array(
        name,
        shape=shape,
        chunks=(*channels, *(min(chunk, n) for n in shape[-2:])),
        dtype="uint8",
        fill_value=fill,
        compressors=zarr.codecs.ZstdCodec(level=1),
        dimension_names=["c", "y", "x"][-len(shape) :],
    )


def _multiscale(
    name: str, resolutions: list[tuple[float, float]], slide_mpp: tuple[float, float], leading: list[str]
) -> dict:
    """What the format says of arrays 0, 1, … (*leading, row, column) at these µm per row and column."""
    lead = [1.0] * len(leading)
    # Level 0's first pixel is the origin; a coarser pixel's centre lies half the difference further in.
    datasets = [
        {
            "path": str(i),
            "coordinateTransformations": [
                {"type": "scale", "scale": [*lead, *mpp]},
                {
                    "type": "translation",
                    "translation": [0.0] * len(lead) + [(m - own) / 2 for m, own in zip(mpp, slide_mpp, strict=True)],
                },
            ],
        }
        for i, mpp in enumerate(resolutions)
    ]
    axes = [{"name": axis, "type": "channel"} for axis in leading]
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    return {"name": name, "axes": axes, "datasets": datasets}


class Pyramid:
    """A finished store, opened for reading. `folder` is what `gigapipe pyramid` was told to write.

    Raises InputError if there is no whole pyramid in `folder`.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            self._group = zarr.open_group(self.folder / NAME, mode="r")
            self._attributes = self._group.attrs["gigapipe"]
        except (FileNotFoundError, KeyError):
            raise InputError(f"pyramid {self.folder}: no pyramid there; make it with `gigapipe pyramid`") from None
        self._paths = {
            dataset["coordinateTransformations"][0]["scale"][-1]: dataset["path"]
            for dataset in self._group.attrs["ome"]["multiscales"][0]["datasets"]
        }

    @property
    def resolutions(self) -> list[float]:
        """µm per pixel of each array, finest first."""
        return list(self._paths)

    @property
    def source(self) -> dict:
        """The slide it was made from: `name`, `bytes`, `md5`, `mpp` (per row, per column), `vendor`."""
        return self._attributes["source"]

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
        return self._group[self._paths[mpp]]

    @functools.cached_property
    def outline(self) -> np.ndarray:
        """The outline of the tissue, and a margin, on the whole slide: (row, column), bool, coarse.

        InputError if it is not stored.
        """
        try:
            return read_label(self.folder, "tissue")[:].astype(bool)
        except KeyError:
            raise InputError(
                f"pyramid {self.folder}: holds no outline of the tissue; make it again with `gigapipe pyramid`"
            ) from None

    def outline_at(self, mpp: float, rows: slice, columns: slice) -> np.ndarray:
        """Whether each pixel of a rectangle of the slide at `mpp` lies within the outline: (rows, columns), bool."""
        outline, shape = self.outline, self.array(mpp).shape[1:]
        places = [
            (np.arange(part.start, part.stop) + 0.5) * n // full
            for part, n, full in zip((rows, columns), outline.shape, shape, strict=True)
        ]
        return outline[np.ix_(*(p.astype(int) for p in places))]
