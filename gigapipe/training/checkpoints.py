"""The state of a training on disk: the last few, each whole or not there."""

import shutil
from pathlib import Path

import torch

from gigapipe.aside import written_aside


class Checkpoints:
    """The states of one training in `folder`, a file each, of which the last `keep` stay.

    Every rank has all weights, so one rank writes them and any mesh reads them. They are read as tensors and numbers
    only: torch.distributed.checkpoint would unpickle its metadata, which runs whatever code a file holds.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = Path(folder), keep

    def save(self, step: int, state: dict) -> None:
        """Write the state after `step` steps, and remove what is older than the last few."""
        with written_aside(self._path(step)) as partial:
            torch.save(state, partial)
        for path in self._paths()[self.keep :]:
            path.unlink()

    def load(self, step: int) -> dict | None:
        """The state after `step` steps; None where there is none, or none that can be read."""
        try:
            return torch.load(self._path(step), weights_only=True)
        except Exception:  # torn bytes make torch's reader raise anything, IndexError too
            return None

    def newest(self, identity: str) -> int | None:
        """After how many steps the newest state is that can be read and has this `identity`."""
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
