"""What cannot come to its end, or cannot show much, said before anything runs: folds and batches that do not suit."""

import logging
from pathlib import Path

import pandas as pd

from gigapipe.configuration.configuration import Configuration
from gigapipe.configuration.tasks import task_named
from gigapipe.errors import InputError
from gigapipe.evaluation.columns import SPLITS
from gigapipe.evaluation.folds import UNKNOWN, given_folds, make_folds, roles
from gigapipe.slides.crashes import ask
from gigapipe.slides.numbers import number_groups, numbers_of
from gigapipe.slides.reader import longest_side
from gigapipe.slides.readers import suffix_of

logger = logging.getLogger(__name__)


def check_design(sheet: pd.DataFrame, config: Configuration) -> None:
    """Make the folds, and count the slides that each network is to learn from. InputError says what does not suit.

    What the folds' figures will not show is logged, once for all seeds.
    """
    # These import what takes a second, and whoever starts a job reads this file.
    from gigapipe.evaluation.weaknesses import weaknesses

    folds, needs = config.folds, task_named(config.task).needs
    if config.target and needs == "target":  # labels as `gigapipe folds` takes them
        numbers = numbers_of(sheet, config.target, "sample sheet")
        sheet = sheet.assign(label=number_groups(sheet, numbers, folds.number))
    elif needs != "label":
        sheet = sheet.assign(label=UNKNOWN)
    steps = {where: of.batch * of.accumulate for where, of in config.trainings.items() if of.train != "probe"}
    told: set[str] = set()
    for split in folds.splits:
        for seed in config.seeds:
            if folds.given:
                table = given_folds(sheet, Path(folds.given))
            else:
                table = make_folds(sheet, folds.number, seed, split)
            lines = [*weaknesses(table, len(config.resolutions)), *_margin(table, config)] if needs == "label" else []
            for line in lines:
                if line not in told:
                    told.add(line)
                    logger.warning(f"{SPLITS[table['split'].iloc[0]]}: {line}")
            count = int(table["fold"].max()) + 1
            if count != folds.number:
                raise InputError(f"config: folds.number: found {folds.number}, but {folds.given} has {count} folds")
            for fold in range(count):
                slides = len(roles(table, fold)["training"])
                for where, together in steps.items():
                    if slides < together:
                        raise InputError(
                            f"config: {where}.batch: {slides} training slides of fold {fold} are fewer than a step of "
                            f"{together} needs; give a smaller batch or accumulate, or more folds, which leave more "
                            "slides for training"
                        )


def _margin(table: pd.DataFrame, config: Configuration) -> list[str]:
    """A line if one resolution is not likely to be shown to be nearly as good as another."""
    from gigapipe.evaluation.weaknesses import GOOD, enough_for_margin

    patients, margin = table["patient"].nunique(), config.comparison.margin
    if len(config.resolutions) < 2 or table["label"].nunique() < 2:
        return []
    needed = enough_for_margin(table, margin)
    if needed == patients:
        return []
    takes = f"about {needed:,} patients are needed, not {patients:,}" if needed else "many more patients are needed"
    return [
        f"to show that a resolution is within {margin:g} of another one, when both have an AUC of {GOOD:g}, {takes}"
    ]


def check_resolutions(files: dict[Path, float | None], config: Configuration) -> float:
    """The longest side of a slide, in µm. InputError names the first that is coarser than a resolution asked for.

    `files` are the slides' files that are here, each with the µm per pixel that the sample sheet gives, if it does.
    What cannot be read, or does not say its µm per pixel, is left to the making of its pyramid, which names it. If
    slides that cannot be used are left out, a coarser one is, too. Without a readable slide, 0.
    """
    finest, longest = min(resolution.mpp for resolution in config.resolutions), 0.0
    pixels = config.pyramids
    reading = pixels.assume_mpp, pixels.unusual_mpp, pixels.tile_memory
    asked = [
        (file, finest, pixels.mpp_tolerance, mpp, *reading, pixels.readers.get(suffix_of(file)))
        for file, mpp in files.items()
    ]
    for found in ask(longest_side, asked):
        if found.error:
            continue
        side, coarser = found.value
        if coarser and pixels.unusable == "stop":
            raise coarser
        longest = max(longest, side)
    return longest
