"""Who reads a slide's file: OpenSlide, or by the file's suffix a function that is named for it.

Such a function takes the path of a file, and returns an `openslide.AbstractSlide`, of which `Slide` uses `dimensions`,
`level_dimensions`, `level_downsamples`, `properties` (as OpenSlide names them: `openslide.mpp-x` and `openslide.mpp-y`
are the µm per pixel), `color_profile`, `read_region` and `close`. It, and `read_region`, raise
`openslide.OpenSlideError` if the file is damaged. Needs no OpenSlide: the workflow asks which files it may fetch.
"""

from collections.abc import Mapping
from pathlib import Path

READERS: dict[str, str | None] = dict.fromkeys(("bif", "ndpi", "scn", "svs", "svslide", "tif", "tiff"))
"""Of the suffixes of slides of one file the reader, as `package.module:function`; None is OpenSlide, which reads other
files, too (MRXS, DICOM): they are folders, and no URL fetches one whole."""


def suffix_of(path: str | Path) -> str:
    """That of a file's name, in small letters, without its point; empty if it has none."""
    return Path(path).suffix.lower().removeprefix(".")


def one_file(own: Mapping[str, str]) -> list[str]:
    """The suffixes of slides that can be fetched, with those for which the user has readers of their `own`."""
    return sorted({*READERS, *own})
