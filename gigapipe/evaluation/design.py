"""What cannot come to its end, said before anything runs: a cohort that its folds or batches do not suit."""

from pathlib import Path

import pandas as pd

from gigapipe.configuration.configuration import Configuration
from gigapipe.errors import InputError
from gigapipe.evaluation.folds import UNKNOWN, given_folds, make_folds, roles
from gigapipe.slides.reader import Slide


def check_design(sheet: pd.DataFrame, config: Configuration) -> None:
    """Make the folds, and count the slides that each network is to learn from. InputError says what does not suit."""
    folds, training = config.folds, config.training
    if config.task != "classes":
        sheet = sheet.assign(label=UNKNOWN)  # as `gigapipe folds --unlabelled` takes it
    together = training.batch * training.accumulate
    for split in folds.splits:
        for seed in config.seeds:
            if folds.given:
                table = given_folds(sheet, Path(folds.given))
            else:
                table = make_folds(sheet, folds.number, seed, split)
            count = int(table["fold"].max()) + 1
            if count != folds.number:
                raise InputError(f"config: folds.number: found {folds.number}, but {folds.given} has {count} folds")
            for fold in range(count):
                slides = len(roles(table, fold)["training"])
                if slides < together:
                    raise InputError(
                        f"config: training.batch: {slides} training slides of fold {fold} do not fill a step of "
                        f"{together}; give a smaller batch or accumulate, or fewer folds"
                    )


def check_resolutions(files: dict[Path, float | None], config: Configuration) -> float:
    """The longest side of a slide, in µm. InputError names the first that is coarser than a resolution asked for.

    `files` are the slides' files that are here, each with the µm per pixel that the sample sheet gives, if it does.
    What cannot be read, or does not say its µm per pixel, is left to the making of its pyramid, which names it. If
    slides that cannot be used are left out, a coarser one is, too. Without a readable slide, 0.
    """
    finest, longest = min(resolution.mpp for resolution in config.resolutions), 0.0
    for file, mpp in files.items():
        try:
            slide = Slide(file, mpp, config.pyramids.assume_mpp)
        except InputError:
            continue
        with slide:
            if config.pyramids.unusable == "stop":
                slide.refuse_finer(finest)
            longest = max(longest, *(n * m for n, m in zip(slide.shape, slide.mpp, strict=True)))
    return longest
