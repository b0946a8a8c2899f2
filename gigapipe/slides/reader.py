"""Reading a slide file: its pixels, the true µm per pixel, and errors that name the slide."""

import functools
from pathlib import Path

import numpy as np
import openslide
from PIL import Image, ImageCms

from gigapipe.errors import InputError
from gigapipe.slides.dicom import is_ycbcr_called_rgb

PLAUSIBLE = 0.05, 20.0
"""µm per pixel: no microscope of slides resolves more, and what is coarser is no scan of a slide."""
OBJECTIVE = 10.0
"""µm per pixel times the objective's power, for scanners' usual cameras: 0.25 at 40 ×, 0.5 at 20 ×."""


class Slide:
    """An open slide. Rows and columns count pixels of level 0 from the corner of what was scanned.

    `shape` is (rows, columns), `mpp` is (µm per row, µm per column): what the file says, unless `mpp` is given. Where
    it says nothing, and with `assume_mpp`, that follows from the objective's power. Reading is safe from several
    threads, but not after a fork: open the slide in the process that reads it.

    Raises InputError, naming the slide, if the file is missing, unreadable, or has no plausible µm per pixel.
    """

    def __init__(self, path: str | Path, mpp: float | None = None, assume_mpp: bool = False):
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
        self.mpp = self._own_mpp(assume_mpp) if mpp is None else (mpp, mpp)
        photometric = properties.get("dicom.PhotometricInterpretation", "")
        self._ycbcr = is_ycbcr_called_rgb(self.path, photometric)
        # Formats that scan islands (MRXS, SCN) tell where the scanned part lies on a much larger plane.
        columns, rows = self._file.dimensions
        self.corner = int(properties.get("openslide.bounds-y", 0)), int(properties.get("openslide.bounds-x", 0))
        self.shape = (
            int(properties.get("openslide.bounds-height", rows)),
            int(properties.get("openslide.bounds-width", columns)),
        )
        # The file's levels are smaller by whole numbers; OpenSlide gives a mean of two quotients, such as 4.0004.
        self.level_downsamples = [round(downsample) for downsample in self._file.level_downsamples]
        whole = self.shape == self._file.dimensions[::-1]
        sizes = zip(self._file.level_dimensions, self.level_downsamples, strict=True)
        self.level_shapes = [
            (rows, columns) if whole else (-(-self.shape[0] // d), -(-self.shape[1] // d))
            for (columns, rows), d in sizes
        ]

    def _own_mpp(self, assume: bool) -> tuple[float, float]:
        properties = self._file.properties

        def number(key: str) -> float:
            try:
                return float(properties[key])
            except (KeyError, ValueError):
                return 0.0

        remedy = "give it in a column mpp of the sample sheet, or remove its row"
        mpp = number("openslide.mpp-y"), number("openslide.mpp-x")
        if not all(mpp) and assume and (power := number("openslide.objective-power")) > 0:
            mpp = OBJECTIVE / power, OBJECTIVE / power
        if not all(mpp):
            raise InputError(f"slide {self.path}: its file does not say how many µm a pixel is; {remedy}")
        if not all(PLAUSIBLE[0] <= m <= PLAUSIBLE[1] for m in mpp):
            raise InputError(
                f"slide {self.path}: its file says that a pixel is {mpp[0]:g} × {mpp[1]:g} µm, which cannot be; "
                f"{remedy}"
            )
        return mpp

    def refuse_finer(self, mpp: float) -> None:
        """InputError if the slide is coarser than a resolution of `mpp` µm per pixel."""
        own = max(self.mpp)
        if mpp < own * (1 - 1e-6):
            raise InputError(
                f"slide {self.path}: has {own:g} µm per pixel, coarser than the {mpp:g} asked for; "
                "take that resolution out of the config, or the slide out of the sample sheet"
            )

    @property
    def vendor(self) -> str:
        return self._file.properties.get("openslide.vendor", "unknown")

    @property
    def objective(self) -> float | None:
        """The power of the objective, if the file says it."""
        power = self._file.properties.get("openslide.objective-power")
        return float(power) if power else None

    @property
    def quickhash(self) -> str | None:
        """OpenSlide's checksum of all the slide's files, by their tables and coarsest level."""
        return self._file.properties.get("openslide.quickhash-1")

    @functools.cached_property
    def colour_profile(self) -> ImageCms.ImageCmsProfile | None:
        """The scanner's ICC profile, if the file has one that can be read."""
        try:
            return self._file.color_profile
        except (ImageCms.PyCMSError, OSError):
            return None

    @functools.cached_property
    def to_srgb(self) -> ImageCms.ImageCmsTransform | None:
        """From the scanner's colours to sRGB, if there is a profile; several threads may share it.

        Raises InputError if the profile is not one of RGB.
        """
        if self.colour_profile is None:
            return None
        srgb = ImageCms.createProfile("sRGB")
        try:
            return ImageCms.buildTransform(self.colour_profile, srgb, "RGB", "RGB", flags=ImageCms.Flags.NOCACHE)
        except ImageCms.PyCMSError as error:
            raise InputError(
                f"slide {self.path}: its ICC profile is of no use ({error}); set colours: scanner"
            ) from None

    def level_is_aligned(self, level: int) -> bool:
        """Whether OpenSlide reads a level's own pixels: not where it takes its downsample for a fraction."""
        return self._file.level_downsamples[level] == self.level_downsamples[level]

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of the file's own tiles at level 0, or what is good to read at a time."""
        properties = self._file.properties
        height, width = (int(properties.get(f"openslide.level[0].tile-{side}", 256)) for side in ("height", "width"))
        return height, width

    def read(self, row: int, column: int, rows: int, columns: int, level: int = 0) -> np.ndarray:
        """Pixels (rows, columns, 3), uint8 RGB; what was not scanned is white.

        All count pixels of `level`. Raises InputError if the file is damaged there.
        """
        downsample = self._file.level_downsamples[level]
        corner = self.corner[1] + round(column * downsample), self.corner[0] + round(row * downsample)
        try:
            rgba = np.asarray(self._file.read_region(corner, level, (columns, rows)))
        except openslide.OpenSlideError:
            # After an error a handle gives nothing but that error, to other threads too: it may not be ours.
            self._file = openslide.OpenSlide(self.path)
            try:
                with openslide.OpenSlide(self.path) as own:
                    rgba = np.asarray(own.read_region(corner, level, (columns, rows)))
            except openslide.OpenSlideError as error:
                raise InputError(
                    f"slide {self.path}: damaged near row {row}, column {column} ({error}); fetch it again, or remove "
                    "its row from the sample sheet"
                ) from None
        rgb, alpha = rgba[..., :3], rgba[..., 3:]
        if self._ycbcr:
            rgb = np.asarray(Image.fromarray(np.ascontiguousarray(rgb), "YCbCr").convert("RGB"))
        if alpha.min() == 255:
            return np.ascontiguousarray(rgb)
        opacity = alpha.astype(np.float32) / 255
        return (rgb * opacity + 255 * (1 - opacity) + 0.5).astype(np.uint8)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *_) -> None:
        self.close()
