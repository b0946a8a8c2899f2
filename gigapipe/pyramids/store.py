"""The store of one slide: OME-Zarr 0.5 (https://ngff.openmicroscopy.org/0.5/), one array a resolution."""

from pathlib import Path

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
    arrays = [
        group.create_array(
            str(i),
            shape=(3, *shape),
            chunks=(3, *(min(chunk, n) for n in shape)),
            dtype="uint8",
            fill_value=255,
            compressors=zarr.codecs.ZstdCodec(level=1),
            dimension_names=["c", "y", "x"],
        )
        for i, shape in enumerate(shapes)
    ]
    # Level 0's first pixel is the origin; a coarser pixel's centre lies half the difference further in.
    datasets = [
        {
            "path": str(i),
            "coordinateTransformations": [
                {"type": "scale", "scale": [1.0, mpp, mpp]},
                {"type": "translation", "translation": [0.0, *((mpp - own) / 2 for own in slide_mpp)]},
            ],
        }
        for i, mpp in enumerate(resolutions)
    ]
    axes = [{"name": "c", "type": "channel"}] + [{"name": n, "type": "space", "unit": "micrometer"} for n in "yx"]
    colours = {"red": "FF0000", "green": "00FF00", "blue": "0000FF"}
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [
            {"name": attributes["source"]["name"], "axes": axes, "datasets": datasets, "type": "area mean"}
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
        """See `gigapipe.slides.tissue.find_tissue`."""
        return self._attributes["tissue"]

    def array(self, mpp: float) -> zarr.Array:
        """The slide (channel, row, column), uint8, at `mpp` µm per pixel. InputError if it is not stored."""
        if mpp not in self._paths:
            stored = ", ".join(f"{m:g}" for m in self.resolutions)
            raise InputError(
                f"pyramid {self.folder}: holds {stored} µm/px, not {mpp:g}; make it again with `gigapipe pyramid`"
            )
        return self._group[self._paths[mpp]]
