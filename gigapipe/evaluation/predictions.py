"""Predictions as they lie in files: one table of all networks."""

from pathlib import Path

import numpy as np
import pandas as pd

from gigapipe.disks import raise_passing
from gigapipe.errors import InputError
from gigapipe.evaluation.columns import BELONGS, FILE, FOLD, LABEL, METHOD_NAME, MPP, NAMES, PART, SEED, TEST
from gigapipe.evaluation.targets import SCORE, Targets, several, targets_of
from gigapipe.slides.written_tables import read_written


def read_predictions(paths: list[Path]) -> pd.DataFrame:
    """What `gigapipe predict` wrote for several networks, in one table.

    Columns: `slide`, `patient`, `site`, `label`, `fold`, `mpp`; `network`, the number of its file; `seed` and `part`
    (`test`, or `validation`), which are 0 and `test` where a file has none; `method_name`, if any file has one; and
    either `score`, the probability of the label that comes second, or `score_…` for each. Raises InputError if a file
    cannot be read.
    """
    tables = []
    for network, path in enumerate(paths):
        try:
            table = read_written(path, dtype=dict.fromkeys([*NAMES, *BELONGS], str), keep_default_na=False)
            tables.append(table.astype({FOLD: int, MPP: float}).assign(**{FILE: network}))
        except (OSError, ValueError, KeyError) as error:
            raise_passing(error)
            raise InputError(f"predictions {path}: cannot be read ({error}); make it with `gigapipe predict`") from None
    together = pd.concat(tables, ignore_index=True)
    if METHOD_NAME in together:
        together = together.fillna({METHOD_NAME: ""})
    return together.assign(**{SEED: together.get(SEED, 0), PART: together.get(PART, TEST)})


def classes_of(predictions: pd.DataFrame) -> list[str]:
    """In alphabetical order. By the columns: of three classes some slides may have two labels only."""
    return sorted(several(list(predictions.columns)) or predictions[LABEL].unique())


def score_columns(predictions: pd.DataFrame) -> Targets:
    """Of each class that is told from the rest, the column that holds its score, as `targets_of` has named it."""
    classes = classes_of(predictions)
    return targets_of(classes) if len(classes) > 1 else {classes[0]: SCORE}


def probabilities(predictions: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """A column for each of `classes`, in alphabetical order, a row for each row of `predictions`.

    Classes are those of the cohort: some slides may be of one only.
    """
    if len(classes) != 2:
        return predictions[list(targets_of(classes).values())].set_axis(classes, axis=1)
    first, second = classes
    score = predictions[SCORE].to_numpy()
    return pd.DataFrame(np.stack([1 - score, score], axis=1), predictions.index, [first, second])
