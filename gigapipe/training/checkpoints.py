"""The state of a training on disk: the last few, each whole or not there."""

import logging
import shutil
from pathlib import Path
from typing import Any

from gigapipe.training.weight_files import Unusable, load, refuse_not_finite, save

logger = logging.getLogger(__name__)


class Checkpoints:
    """The states of one training in `folder`, a file each, of which the last `keep` stay.

    Every rank has all weights, so one rank writes them and any mesh reads them. They are read as tensors and numbers
    only: torch.distributed.checkpoint would unpickle its metadata, which runs whatever code a file holds.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = Path(folder), keep

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state after `step` steps, and remove what is older than the last few."""
        save(self._path(step), state)
        for path in self._paths()[self.keep :]:
            path.unlink()

    def load(self, step: int) -> dict[str, Any] | None:
        """The state after `step` steps; None where there is none that can be used. Raises InputError as `load` does."""
        try:
            return self._load(self._path(step))
        except (FileNotFoundError, Unusable):
            return None

    def newest(self, identity: str) -> int | None:
        """After how many steps the newest state is that can be used and has this `identity`.

        Those that are passed over are told of. Raises InputError if there is one that cannot be read here: it may be
        that one.
        """
        for path in self._paths():
            try:
                if self._load(path)["identity"] == identity:
                    return int(path.stem)
                logger.warning(f"{path}: belongs to other settings or slides; skipped")
            except FileNotFoundError:
                continue
            except Unusable as error:
                logger.warning(f"{path}: {error}; skipped")
        return None

    def _load(self, path: Path) -> dict[str, Any]:
        state = load(path)
        if "identity" not in state:
            raise Unusable("it is not a training checkpoint")
        refuse_not_finite(state.get("model", {}))
        return state

    def exist(self) -> bool:
        return bool(self._paths())

    def set_aside(self) -> Path:
        """Rename the folder, and so keep what is in it; what it is called now."""
        number = 1
        while (aside := self.folder.with_name(f"{self.folder.name}-{number}")).exists():
            number += 1
        return self.folder.rename(aside)

    def remove(self) -> None:
        """All of them, and what a kill left half-written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:08d}.pt"

    def _paths(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("[0-9]*.pt"), reverse=True)
