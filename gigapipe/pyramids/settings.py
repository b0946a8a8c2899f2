"""How a pyramid is made, and the slide that it is made of."""

from pathlib import Path

from gigapipe.configuration.pyramids import PyramidPixels
from gigapipe.configuration.values import Function, Micrometres
from gigapipe.disks import raise_passing
from gigapipe.errors import InputError, Unavailable
from gigapipe.slides.reader import Slide


class Settings(PyramidPixels):
    """How a pyramid is made, beside its resolutions."""

    mpp: Micrometres | None = None
    """Of the slide, against what its file says."""
    tissue: str | None = None
    """The file of a drawing that says where it has tissue, as `gigapipe.slides.regions` reads it."""
    reader: Function | None = None
    """The name of the user's function that reads the slide's file: see `gigapipe.slides.readers`. A store that is read
    has it as a text, by which nothing is run."""


class Replaced(Unavailable):
    """The slide is another than when its pyramid was begun."""

    of_use = False


def refuse_replaced(path: Path, settings: Settings, made_of: list) -> None:
    """Raise Replaced if the slide's `identity` is no longer that of what was read."""
    try:
        with open_slide(path, settings) as now:
            same = now.identity() == made_of
    except InputError:  # which it was not at the beginning
        same = False
    if not same:
        raise Replaced(f"slide {path}: was replaced while it was read; run it again") from None


def open_slide(path: Path, settings: Settings) -> Slide:
    """The slide, with what `settings` say of it. InputError as of `Slide`."""
    reading = settings.assume_mpp, settings.unusual_mpp, settings.tile_memory, settings.reader
    return Slide(path, settings.mpp, *reading)


def drawn_when(settings: Settings) -> int | None:
    """When the drawing of the tissue was last changed, in ns, if there is one."""
    if settings.tissue is None:
        return None
    try:
        return Path(settings.tissue).stat().st_mtime_ns
    except OSError as error:
        raise_passing(error)
        raise InputError(f"tissue {settings.tissue}: cannot be read ({error.strerror}); correct it") from None
