"""Where a run's divisions into folds lie in its folder of results, and their networks.

The cohort is divided once for each seed and each kind of folds. A division that is the only one lies in the folder of
results itself, several lie a level deeper. Where each has been made, it stays: one that comes later moves no other.
"""

import itertools
from pathlib import Path
from typing import NamedTuple

from gigapipe.configuration import Configuration
from gigapipe.configuration.tasks import TASKS

FLAT = Path("folds", "first.txt")
"""In the folder of results: which division lies in it as the only one did."""


class Division(NamedTuple):
    """The cohort divided by what folds do not share (`split`), beginning with a `seed`."""

    split: str
    seed: int
    deeper: bool

    @property
    def name(self) -> str:
        return f"{self.split}-{self.seed}"

    @property
    def folder(self) -> str:
        """What stands between the folder of a resolution and those of its folds: `site-7/`, or nothing."""
        return f"{self.name}/" if self.deeper else ""

    @property
    def folds(self) -> str:
        """Where its folds are in the folder of results: `folds/site-7/`, or nothing."""
        return f"folds/{self.folder}" if self.deeper else ""


def divisions(results: Path, config: Configuration) -> list[Division]:
    """The divisions of a run, as they lie, or will lie, in its folder of results."""
    all_of = [Division(split, seed, True) for split, seed in itertools.product(config.folds.splits, config.seeds)]
    task = TASKS.get(config.task)  # of one of the user's, whose code is not run here, it is as the config says
    if task and not task.divisions:
        return [all_of[0]._replace(deeper=False)]
    here = [one for one in all_of if not (results / one.folds / "folds.tsv").exists()]
    first = _noted(results) or all_of[0].name  # release 0.1 noted none
    flat: list[Division] = []
    if len(all_of) == 1:
        flat = here
    elif _noted(results) or (results / "folds.tsv").exists():
        flat = [one for one in here if one.name == first]
    return [one._replace(deeper=one not in flat) for one in all_of]


def note_divisions(results: Path, found: list[Division]) -> None:
    """Keep which one lies as the only one does."""
    for one in found:
        if not one.deeper and _noted(results) != one.name:
            (results / FLAT).parent.mkdir(parents=True, exist_ok=True)
            (results / FLAT).write_text(one.name + "\n", encoding="utf-8")


def _noted(results: Path) -> str:
    try:
        return (results / FLAT).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
