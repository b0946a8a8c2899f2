"""What lies in a pyramid's folder: names, and the reason where a slide was left out. No store is opened here."""

from pathlib import Path

from gigapipe.atomic import atomic_folder

NAME = "image.zarr"
OVERVIEW = "overview.png"
LEFT_OUT = "left-out.txt"


def leave_out(folder: Path, reason: str) -> None:
    """Write, in place of a store, why there is none."""
    with atomic_folder(folder) as partial:
        partial.mkdir(parents=True)
        (partial / LEFT_OUT).write_text(reason + "\n", encoding="utf-8")


def left_out(folder: Path) -> str | None:
    """Why there is no store in `folder`, if that was written there."""
    reason = folder / LEFT_OUT
    return reason.read_text(encoding="utf-8").strip() if reason.exists() else None
