"""The state of a training on disk: the last few, each whole or not there."""

import shutil
from pathlib import Path
from typing import Any

import torch

from gigapipe.atomic import atomic_file
from gigapipe.errors import InputError


class Torn(Exception):
    """A file holds nothing that torch has saved, or only a part of it."""


def read(path: Path) -> Any:
    """What torch saved in a file. Its tensors come to the CPU: they may have been on a device that is not here.

    Raises InputError if the file cannot be read here and now, which says nothing about what is in it; or Torn, or
    FileNotFoundError.
    """
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise
    except Exception as error:  # torn bytes make torch's reader raise anything, IndexError too
        if isinstance(error, OSError | MemoryError) or "allocate memory" in str(error):
            reason = str(error).splitlines()[0] if str(error) else "no memory is left"
            raise InputError(f"{path}: cannot be read here: {reason}; it was left as it is") from None
        raise Torn from None


class Checkpoints:
    """The states of one training in `folder`, a file each, of which the last `keep` stay.

    Every rank has all weights, so one rank writes them and any mesh reads them. They are read as tensors and numbers
    only: torch.distributed.checkpoint would unpickle its metadata, which runs whatever code a file holds.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = Path(folder), keep

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after `step` steps, and remove what is older than the last few."""
        with atomic_file(self._path(step)) as partial:
            torch.save(state, partial)
        for path in self._paths()[self.keep :]:
            path.unlink()

    def load(self, step: int) -> dict[str, Any] | None:
        """The state after `step` steps; None where there is none, or it is torn. Raises InputError as `read` does."""
        try:
            state: dict[str, Any] = read(self._path(step))
            return state
        except (FileNotFoundError, Torn):
            return None

    def newest(self, identity: str) -> int | None:
        """After how many steps the newest state is that is not torn and has this `identity`.

        Raises InputError if there is one that cannot be read here: it may be that one.
        """
        for path in self._paths():
            state = self.load(int(path.stem))
            if state is not None and state["identity"] == identity:
                return int(path.stem)
        return None

    def exist(self) -> bool:
        return bool(self._paths())

    def remove(self) -> None:
        """All of them, and what a kill left half-written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:08d}.pt"

    def _paths(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("[0-9]*.pt"), reverse=True)
