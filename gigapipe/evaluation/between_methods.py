"""Methods compared with each other: paired differences at the same resolution, on the same slides and folds."""

import itertools
from functools import partial

import numpy as np
import pandas as pd

from gigapipe.evaluation import comparison, regression
from gigapipe.evaluation.columns import (
    ALIKE,
    DELTA,
    LABEL,
    METHOD_NAME,
    MPP,
    PREDICTED,
    SPLIT,
    SPLITS,
    Column,
    P,
    bounds,
    signed_interval,
)

OTHER, CORRECTED = "other", "p_corrected"
FILE = "methods.tsv"
"""Where the table lies, beside comparison.tsv."""
NOT_PAIRED = "not tested on the same slides"

NOTE = (
    "Δ is the first method minus the second, at the same resolution, on the same slides and folds, with its 95 % "
    "interval and p of the same paired test as between resolutions; the corrected p is Holm's, over all rows (Holm "
    "1979, Scand. J. Stat. 6:65)."
)


def between_methods(scores: pd.DataFrame) -> pd.DataFrame | None:
    """A row for each pair of methods at each resolution, coarsest first, from the scores of `read_networks`; None if
    there are fewer than two methods.

    Columns: `mpp`, `method_name`, `other`, `split`, `delta` (the AUC, or R², of the first above the other's),
    `delta_low`, `delta_high`, `p`, and `p_corrected` for all rows; NaN where they were not tested on the same slides.
    """
    names = list(dict.fromkeys(scores[METHOD_NAME]))
    if len(names) < 2:
        return None
    split = next(split for split in SPLITS if (scores[SPLIT] == split).any())
    scores = scores[scores[SPLIT] == split]

    def difference(networks: pd.DataFrame, other: pd.DataFrame) -> tuple[float, float, float, float]:
        if PREDICTED in scores:
            return regression.difference(networks, other)
        return comparison.difference(networks, other, sorted(scores[LABEL].unique()))

    rows = []
    for mpp in sorted(scores[MPP].unique(), reverse=True):
        of_method = {name: _first(scores[(scores[MPP] == mpp) & (scores[METHOD_NAME] == name)]) for name in names}
        for name, other in itertools.combinations([name for name in names if len(of_method[name])], 2):
            found = difference(of_method[name], of_method[other])
            named = {MPP: mpp, METHOD_NAME: name, OTHER: other, SPLIT: split}
            rows.append(named | dict(zip([DELTA, *bounds(DELTA), P], found, strict=True)))
    table = pd.DataFrame(rows)
    return table.assign(**{CORRECTED: holm(table[P].to_numpy(float))})


def _first(networks: pd.DataFrame) -> pd.DataFrame:
    """Of networks that were computed in several ways, those of the first."""
    return networks[(networks[ALIKE] == networks[ALIKE].iloc[0]).all(axis=1)] if len(networks) else networks


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction of those that are known (tests,)."""
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known])]
    corrected = np.full(len(p), np.nan)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * (len(order) - np.arange(len(order)))))
    return corrected


def columns(heading: str) -> list[Column]:
    """As people read the table; `heading` is what the figure is called."""
    return [
        Column("µm/px", [MPP], lambda row: f"{row[MPP]:g}"),
        Column("methods", [METHOD_NAME, OTHER], lambda row: f"{row[METHOD_NAME]} − {row[OTHER]}"),
        Column(f"Δ {heading} (95 % interval)", [DELTA], partial(signed_interval, name=DELTA, missing=NOT_PAIRED)),
        Column("p", [P], lambda row: _p(row[P])),
        Column("p, corrected", [CORRECTED], lambda row: _p(row[CORRECTED])),
    ]


def _p(p: float) -> str:
    return "no p" if pd.isna(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"
