"""Predictions as they lie in files: one table of all networks."""

from pathlib import Path

import numpy as np
import pandas as pd

from gigapipe.errors import InputError
from gigapipe.evaluation.targets import Targets

NAMES = ["slide", "patient", "site", "label"]  # which may look like numbers


def read_predictions(paths: list[Path]) -> pd.DataFrame:
    """What `gigapipe predict` wrote for several networks, in one table.

    Columns: `slide`, `patient`, `site`, `label`, `fold`, `mpp`; `network`, the number of its file; `seed` and `part`
    (`test`, or `validation`), which are 0 and `test` where a file has none; and either `score`, the probability of the
    label that comes second, or `score_…` for each. Raises InputError if a file cannot be read.
    """
    tables = []
    for network, path in enumerate(paths):
        try:
            table = pd.read_csv(path, sep="\t", dtype=dict.fromkeys(NAMES, str), keep_default_na=False)
            tables.append(table.astype({"fold": int, "mpp": float}).assign(network=network))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"predictions {path}: cannot be read ({error}); make it with `gigapipe predict`") from None
    together = pd.concat(tables, ignore_index=True)
    return together.assign(seed=together.get("seed", 0), part=together.get("part", "test"))


def score_columns(predictions: pd.DataFrame) -> Targets:
    """Of each class that is told from the rest, the column that holds its score, as `targets_of` has named it.

    By the columns: of three classes some slides may have two labels only.
    """
    several = {name.removeprefix("score_"): name for name in predictions if name.startswith("score_")}
    return several or {sorted(predictions["label"].unique())[-1]: "score"}


def probabilities(predictions: pd.DataFrame) -> pd.DataFrame:
    """A column for each class, in alphabetical order, a row for each row of `predictions`."""
    scores = score_columns(predictions)
    if len(scores) > 1:
        return predictions[[scores[label] for label in sorted(scores)]].set_axis(sorted(scores), axis=1)
    first, second = sorted(predictions["label"].unique())
    score = predictions["score"].to_numpy()
    return pd.DataFrame(np.stack([1 - score, score], axis=1), predictions.index, [first, second])
