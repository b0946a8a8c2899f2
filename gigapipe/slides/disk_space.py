"""Before the first slide is fetched: how much will come, whether the disk holds it, and how long it may take."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import requests

from gigapipe.errors import InputError
from gigapipe.plural import counted
from gigapipe.slides.download import measure_rate

logger = logging.getLogger(__name__)

RESERVE = 0.02  # of a disk that is left free


@dataclass(frozen=True)
class Wanted:
    """A slide that is not here yet."""

    addresses: list[str]
    size: int  # in bytes; 0 if nobody knows
    resumable: bool  # what has arrived is gone on with, by another process too


def announce(slides: Mapping[Path, Wanted], keep: bool, together: int = 1) -> None:
    """Say how much is going to be fetched, and how long that takes at the rate of a first look.

    Raises InputError as `check_disk_space` does.
    """
    if not slides:
        return
    logger.info(f"{check_disk_space({path: slide.size for path, slide in slides.items()}, keep, together)}.")
    # Not for what takes no time anyway; and what the first look brings must be of use.
    probe = next((path for path, slide in slides.items() if slide.resumable and slide.size > 1 << 26), None)
    if probe:
        slide = slides[probe]
        rate = measure_rate(slide.addresses, probe, slide.size, requests.Session())
        if rate:
            hours = sum(slide.size for slide in slides.values()) / rate / 3600
            logger.info(f"The first data arrived at {amount(rate)} per second: {hours:.2g} hours at that rate.")


def check_disk_space(sizes: Mapping[Path, int], keep: bool, together: int = 1) -> str:
    """What is going to be fetched, in a line; `sizes` are the slides' bytes, 0 where nobody knows them.

    Raises InputError if the disk cannot hold all of them, or, where they are not kept, the largest: as many as are
    worked on `together`.
    """
    folder = next(iter(sizes)).parent
    while not folder.exists():
        folder = folder.parent
    disk = shutil.disk_usage(folder)
    free = max(0, disk.free - RESERVE * disk.total)
    here = {path: partial_bytes(path) for path in sizes}
    missing = {path: size - here[path] for path, size in sizes.items() if size}
    unknown = len(sizes) - len(missing)
    text = f"{counted(len(sizes), 'slide')} to download, {amount(sum(missing.values()))}"
    text += f", and {unknown} of unknown size" if unknown else ""
    text += f" ({amount(sum(here.values()))} were downloaded before)" if any(here.values()) else ""
    text += f"; free space on the disk of {folder}: {amount(free)}"
    needed = sum(sorted(missing.values(), reverse=True)[: None if keep else together])
    if needed > free:
        remedy = ", or set `keep_slides: false`, which deletes each slide after its pyramid is written" if keep else ""
        raise InputError(
            f"{text}, which is not enough: free some space, set `pathvars: resources:` to another disk{remedy}"
        )
    return text


def partial_bytes(path: Path) -> int:
    """How much of a slide has arrived in an earlier run."""
    partial = path.with_name(f".{path.name}.partial")
    return partial.stat().st_size if partial.exists() else 0


def amount(count: float) -> str:
    """Bytes as people say them."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"
