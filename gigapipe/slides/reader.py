"""Reading a slide file: its pixels, the true µm per pixel, and errors that name the slide."""

import errno
import functools
import math
import os
from pathlib import Path

import numpy as np
import openslide
from PIL import Image, ImageCms

from gigapipe import named
from gigapipe.disks import look_for_fault, passes, read_again, remedy
from gigapipe.errors import InputError
from gigapipe.slides.dicom import is_ycbcr_called_rgb
from gigapipe.slides.readers import READERS, suffix_of
from gigapipe.slides.tiff import TILE_MEMORY, check_tiff, check_tile

PLAUSIBLE = 0.05, 20.0
"""µm per pixel of slides as scanners make them: what lies beyond is mostly another unit, and taken if confirmed."""
OBJECTIVE = 10.0
"""µm per pixel times the objective's power, for scanners' usual cameras: 0.25 at 40 ×, 0.5 at 20 ×."""


class Slide:
    """An open slide. Rows and columns count pixels of level 0 from the corner of what was scanned.

    `shape` is (rows, columns), `mpp` is (µm per row, µm per column): what the file says, unless `mpp` is given. Where
    it says nothing, and with `assume_mpp`, that follows from the objective's power. Beyond `PLAUSIBLE` it is taken with
    `unusual_mpp`. Reading is safe from several threads, but not after a fork: open the slide in the process that reads
    it.

    Raises InputError, naming the slide, if the file is missing, unreadable, has no plausible µm per pixel, or a tile of
    it takes more than `tile_memory` bytes. `reader` is the name of a function of the user's that reads the file in
    place of what `READERS` says of its suffix; it, too, is told of in a line if it cannot be called up.
    """

    def __init__(
        self,
        path: str | Path,
        mpp: float | None = None,
        assume_mpp: bool = False,
        unusual_mpp: bool = False,
        tile_memory: int = TILE_MEMORY,
        reader: str | None = None,
    ):
        self.path = Path(path)
        self._reader = reader or READERS.get(suffix_of(self.path))
        try:
            self._file = read_again(lambda: _opened(self.path, tile_memory, self._reader), self.path)
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"slide {self.path}: no such file; correct its path") from None
        except OSError as error:
            if passes(error):  # which is the disk's and not the slide's
                raise
            raise InputError(f"slide {self.path}: cannot be read ({error.strerror}); {remedy(error)}") from None
        except openslide.OpenSlideError as error:
            detail = f" ({error})" if str(error) else ""
            raise InputError(
                f"slide {self.path}: not readable as a slide{detail}, {self.path.stat().st_size} bytes; download it "
                "again, or remove its row from the sample sheet"
            ) from None
        check_tile(self.path, self.tile, tile_memory)
        properties = self._file.properties
        self.mpp = self._own_mpp(assume_mpp) if mpp is None else (mpp, mpp)
        if not unusual_mpp:
            self._refuse_unusual("its file says" if mpp is None else "the mpp that is given says")
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
        self.file_shapes = [(rows, columns) for columns, rows in self._file.level_dimensions]
        """Rows and columns of each level as the file has them; `level_shapes` are those of what was scanned."""
        self.faults: dict[int, str | None] = {}
        """What `level_checks` found of levels."""
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
                found = float(properties[key])
            except (KeyError, ValueError):
                return 0.0
            return found if found > 0 and math.isfinite(found) else 0.0

        mpp = number("openslide.mpp-y"), number("openslide.mpp-x")
        if not all(mpp) and assume and (power := number("openslide.objective-power")) > 0:
            mpp = OBJECTIVE / power, OBJECTIVE / power
        if not all(mpp):
            raise InputError(
                f"slide {self.path}: its file does not state its µm per pixel; give it in a column mpp of the sample "
                "sheet, or remove its row"
            )
        return mpp

    def _refuse_unusual(self, whose: str) -> None:
        if not all(PLAUSIBLE[0] <= m <= PLAUSIBLE[1] for m in self.mpp):
            raise InputError(
                f"slide {self.path}: {whose} that a pixel is {self.mpp[0]:g} × {self.mpp[1]:g} µm, but slides usually "
                f"have {PLAUSIBLE[0]:g} to {PLAUSIBLE[1]:g}; if it is correct, set pyramids: unusual_mpp: true "
                "(--unusual-mpp), otherwise give the correct value in a column mpp of the sample sheet"
            )

    def refuse_finer(self, mpp: float, tolerance: float = 0.0) -> None:
        """InputError if the slide is coarser than a resolution of `mpp` µm per pixel, by more than a `tolerance`."""
        own = max(self.mpp)
        if mpp * (1 + tolerance) < own * (1 - 1e-6):
            more = math.ceil((own / mpp - 1) * 1000) / 1000
            near = (
                f"set pyramids: mpp_tolerance: {more:g} (--mpp-tolerance) to use it all the same, "
                if more <= 0.1
                else ""
            )
            raise InputError(
                f"slide {self.path}: has {own:g} µm per pixel, coarser than the requested {mpp:g}; {near}remove that "
                "resolution from the config, or the slide from the sample sheet"
            )

    def damaged(self, row: int, column: int, why: str) -> InputError:
        """The error of a place that cannot be decoded; `row` and `column` count pixels of the level that is read."""
        return InputError(
            f"slide {self.path}: damaged near row {row}, column {column} ({' '.join(why.split())}); download it again, "
            "set pyramids: damaged: white (--damaged white), or remove its row from the sample sheet"
        )

    @property
    def vendor(self) -> str:
        return self._file.properties.get("openslide.vendor", "unknown")

    @property
    def objective(self) -> float | None:
        """The power of the objective, if the file says it."""
        try:
            return float(self._file.properties["openslide.objective-power"])
        except (KeyError, ValueError):
            return None

    @property
    def quickhash(self) -> str | None:
        """OpenSlide's checksum of all the slide's files, by their tables and coarsest level."""
        return self._file.properties.get("openslide.quickhash-1")

    def identity(self) -> list:
        """What tells this file from another of its name: size, time of change, and `quickhash`."""
        status = self.path.stat()
        return [self.path.name, status.st_size, status.st_mtime_ns, self.quickhash]

    @property
    def profile_name(self) -> str | None:
        """What the scanner's ICC profile is called, or `unreadable`; None without one."""
        try:
            profile = self._file.color_profile
            return ImageCms.getProfileDescription(profile).strip() if profile else None
        except (ImageCms.PyCMSError, OSError):
            return "unreadable"

    @functools.cached_property
    def to_srgb(self) -> ImageCms.ImageCmsTransform | None:
        """From the scanner's colours to sRGB, if there is a profile; several threads may share it.

        Raises InputError if the profile cannot be read, or is not one of RGB.
        """
        try:
            profile = self._file.color_profile
            if profile is None:
                return None
            srgb = ImageCms.createProfile("sRGB")
            return ImageCms.buildTransform(profile, srgb, "RGB", "RGB", flags=ImageCms.Flags.NOCACHE)
        except (ImageCms.PyCMSError, OSError) as error:
            raise InputError(
                f"slide {self.path}: its ICC profile cannot be used ({error}); set pyramids: colours: scanner "
                "(--colours scanner)"
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
            rgba = read_again(lambda: self._region(corner, level, (columns, rows)), self.path)
        except openslide.OpenSlideError as error:
            raise self.damaged(row, column, str(error)) from None
        rgb, alpha = rgba[..., :3], rgba[..., 3:]
        if self._ycbcr:
            rgb = np.asarray(Image.fromarray(np.ascontiguousarray(rgb), "YCbCr").convert("RGB"))
        if alpha.min() == 255:
            return np.ascontiguousarray(rgb)
        opacity = alpha.astype(np.float32) / 255
        return (rgb * opacity + 255 * (1 - opacity) + 0.5).astype(np.uint8)

    def _region(self, corner: tuple[int, int], level: int, size: tuple[int, int]) -> np.ndarray:
        try:
            return np.asarray(self._file.read_region(corner, level, size))
        except openslide.OpenSlideError as error:
            _refuse_fault(self.path, error)
            # After an error a handle gives nothing but that error, to other threads too: it may not be ours.
            self._file = _handle(self.path, self._reader)
            with _handle(self.path, self._reader) as own:
                return np.asarray(own.read_region(corner, level, size))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Slide":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def longest_side(file: Path, finest: float, tolerance: float, *reading) -> tuple[float, InputError | None]:
    """A slide's longest side, in µm, and why it cannot serve for the finest resolution, if so."""
    with Slide(file, *reading) as slide:
        side = max(n * m for n, m in zip(slide.shape, slide.mpp, strict=True))
        try:
            slide.refuse_finer(finest, tolerance)
        except InputError as error:
            return side, error
        return side, None


def _opened(path: Path, tile_memory: int, reader: str | None) -> openslide.AbstractSlide:
    with open(path, "rb"):  # OpenSlide does not say why it cannot
        pass
    if reader is None:
        check_tiff(path, tile_memory)
    try:
        return _handle(path, reader)
    except openslide.OpenSlideError as error:
        _refuse_fault(path, error)
        return _handle(path, reader)


def _handle(path: Path, reader: str | None) -> openslide.AbstractSlide:
    """The file as OpenSlide opens it, or the function of that name. InputError if that fails in a way of its own."""
    if reader is None:
        return openslide.OpenSlide(path)
    function = named.load(reader)
    try:
        return function(path)
    except (openslide.OpenSlideError, InputError, OSError):
        raise
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        raise InputError(f"slide {path}: its reader {reader}: {type(error).__name__}: {said}; correct it") from error


def _refuse_fault(path: Path, error: openslide.OpenSlideError) -> None:
    """OSError if it is the disk that fails: OpenSlide says so of few formats, and calls others damaged."""
    if "I/O error" in str(error):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
    look_for_fault(path)
