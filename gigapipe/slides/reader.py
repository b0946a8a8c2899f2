"""Reading a slide file: pixels of level 0, the true µm per pixel, and errors that name the slide."""

from pathlib import Path

import numpy as np
import openslide

from gigapipe.errors import InputError


class Slide:
    """An open slide. Rows and columns count pixels of level 0 from the corner of what was scanned.

    `shape` is (rows, columns), `mpp` is (µm per row, µm per column). Reading is safe from several threads, but not
    after a fork: open the slide in the process that reads it.

    Raises InputError, naming the slide, if the file is missing, unreadable, or does not say its µm per pixel.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.exists():
            raise InputError(f"slide {self.path}: no such file; correct `source` in the sample sheet")
        try:
            self._file = openslide.OpenSlide(self.path)
        except openslide.OpenSlideError as error:
            detail = f" ({error})" if str(error) else ""
            raise InputError(
                f"slide {self.path}: not readable as a slide{detail}, {self.path.stat().st_size} bytes; "
                "fetch it again, or remove its row from the sample sheet"
            ) from None
        properties = self._file.properties
        try:
            self.mpp = tuple(float(properties[f"openslide.mpp-{axis}"]) for axis in "yx")
        except (KeyError, ValueError):
            self.mpp = (0.0, 0.0)
        if not all(0 < mpp < float("inf") for mpp in self.mpp):
            raise InputError(
                f"slide {self.path}: its file does not say how many µm a pixel is; remove its row from the sample sheet"
            )
        # Formats that scan islands (MRXS, SCN) tell where the scanned part lies on a much larger plane.
        columns, rows = self._file.dimensions
        self._corner = tuple(int(properties.get(f"openslide.bounds-{axis}", 0)) for axis in "yx")
        self.shape = (
            int(properties.get("openslide.bounds-height", rows)),
            int(properties.get("openslide.bounds-width", columns)),
        )

    @property
    def vendor(self) -> str:
        return self._file.properties.get("openslide.vendor", "unknown")

    def read(self, row: int, column: int, rows: int, columns: int, level: int = 0) -> np.ndarray:
        """Pixels (rows, columns, 3), uint8 RGB; what was not scanned is white.

        `row` and `column` count in level 0, `rows` and `columns` in `level`. Raises InputError if the file is
        damaged there.
        """
        corner = self._corner[1] + column, self._corner[0] + row
        try:
            rgba = np.asarray(self._file.read_region(corner, level, (columns, rows)))
        except openslide.OpenSlideError as error:
            raise InputError(
                f"slide {self.path}: damaged near row {row}, column {column} ({error}); fetch it again, or remove its "
                "row from the sample sheet"
            ) from None
        rgb, alpha = rgba[..., :3], rgba[..., 3:]
        if alpha.min() == 255:
            return np.ascontiguousarray(rgb)
        opacity = alpha.astype(np.float32) / 255
        return (rgb * opacity + 255 * (1 - opacity) + 0.5).astype(np.uint8)

    def thumbnail(self, longest: int) -> np.ndarray:
        """The whole slide, uint8 RGB, from the stored level that is just finer than `longest` pixels a side.

        For looking at, not for measuring: the result has the level's own size, anything from `longest` up.
        """
        level = self._file.get_best_level_for_downsample(max(self.shape) / longest)
        downsample = self._file.level_downsamples[level]
        rows, columns = (max(1, round(n / downsample)) for n in self.shape)
        # Level 0 of an unpyramidal slide may be gigapixels: read it in strips and keep every k-th pixel.
        step = max(1, max(rows, columns) // (2 * longest))
        strip = max(1, 2**24 // columns // step) * step
        return np.concatenate(
            [
                self.read(round(row * downsample), 0, min(strip, rows - row), columns, level)[::step, ::step]
                for row in range(0, rows, strip)
            ]
        )

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *_) -> None:
        self.close()
