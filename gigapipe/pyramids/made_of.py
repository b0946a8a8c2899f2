"""What a pyramid was made of, asked for each slide of a cohort whenever a run is planned: by size and date first.

A slide is read only where its date is another than when it was known to be its pyramid's, and once for each date.
"""

import json
import logging
from pathlib import Path

from gigapipe.atomic import atomic_file
from gigapipe.pyramids.folders import NAME, left_out
from gigapipe.slides.checksum import md5_of_file
from gigapipe.slides.disk_space import amount

logger = logging.getLogger(__name__)


def attributes_of(folder: Path) -> dict | None:
    """What gigapipe notes of the store in `folder`, unchecked: a file is read, no library asked. None if nothing is."""
    try:
        document = json.loads((folder / NAME / "zarr.json").read_bytes())["attributes"]
    except (OSError, ValueError, KeyError):
        try:
            document = json.loads((folder / NAME / ".zattrs").read_bytes())
        except (OSError, ValueError):
            return None
    return document.get("gigapipe")


def resolutions_of(folder: Path) -> list[float] | None:
    """µm per pixel that the store in `folder` has; None if none is whole there, or its slide was left out."""
    noted = attributes_of(folder)
    if noted is None or left_out(folder):
        return None
    if "resolutions" in noted:
        return noted["resolutions"]
    from gigapipe.pyramids.store import Pyramid  # slow to import, and asked only of older stores

    return Pyramid(folder).resolutions


class Slides:
    """Which slides are still what their pyramids were made of. `file` keeps what is known, for the next time."""

    def __init__(self, file: Path):
        self._file = file
        try:
            self._known = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}
        self._read: list[int] = []
        self._before = dict(self._known)

    def another(self, slide: Path, folder: Path, made: float) -> str | None:
        """What tells a slide's file from that of its pyramid in `folder`, if it is another; None if it is the same.

        `made` is when the pyramid was made (seconds of the epoch): what is older then, and was not looked at before, is
        taken for what it was made of. Where the pyramid does not say, the date decides alone.
        """
        source = (attributes_of(folder) or {}).get("source", {})
        found = slide.stat()
        if "md5" not in source:
            return None if found.st_mtime <= made else f"changed at {found.st_mtime_ns}"
        if found.st_size != source["bytes"]:
            return f"{found.st_size} bytes"
        stamp = [found.st_size, found.st_mtime_ns]
        known = self._known.get(str(slide))
        if known and known[:2] == stamp:
            md5 = known[2]
        elif not known and found.st_mtime <= made:
            md5 = source["md5"]
        else:
            if not self._read:
                logger.info(f"{slide}: has a different date than when its pyramid was made; comparing its content")
            self._read.append(found.st_size)
            md5 = md5_of_file(slide)
        self._known[str(slide)] = [*stamp, md5]
        return None if md5 == source["md5"] else f"MD5 {md5}"

    def keep(self) -> None:
        """Keep what is known, and say how much had to be read."""
        if len(self._read) > 1:
            logger.info(
                f"{len(self._read)} slides with a different date were read and compared, {amount(sum(self._read))}"
            )
        if self._known != self._before:
            with atomic_file(self._file) as partial:
                partial.write_text(json.dumps(self._known, indent=0), encoding="utf-8")
        self._before, self._read = dict(self._known), []
