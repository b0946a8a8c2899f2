"""The comparison: one row a resolution, and a way to compute it, with what it was worth and what it cost."""

from typing import Any

import numpy as np
import pandas as pd

from gigapipe.evaluation.auc import mean_auc, paired_test
from gigapipe.evaluation.columns import (
    ALIKE,
    AUC,
    CANVAS,
    COARSER,
    COSTS,
    DELTA,
    FOLD,
    LABEL,
    MPP,
    P_BEST,
    PART,
    PEAK_MEMORY,
    PIXELS,
    RANKS,
    SEED,
    SLIDE,
    SPLIT,
    SPLITS,
    TEST,
    P,
    bounds,
    of_split,
)
from gigapipe.evaluation.metrics import summary
from gigapipe.evaluation.targets import targets_of

GAIN = [DELTA, *bounds(DELTA), P]


def compare(scores: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """One row a resolution and way to compute it, coarsest first, from the tables of `read_networks`.

    Columns: `ALIKE` (`memory` is the limit of a rank in bytes, 0 without), `pixels` and `ranks`; `split`; the figures
    of `summary`; `coarser`, `delta`, `delta_low`, `delta_high` and `p`: the next coarser resolution, in µm per pixel,
    and the AUC above that of it, by DeLong's paired test on the same slides and folds; `p_best`, that of the same test
    against the row with the best AUC; where folds of another split were run too, all these figures of it, as
    `patient_split_auc`; and `COSTS`: means over networks, of memory the most. NaN is what is not known.
    """
    classes = sorted(scores[LABEL].unique())
    rows = []
    for alike, of_row in scores.groupby(ALIKE):
        cost = costs[(costs[ALIKE] == list(alike)).all(axis=1)]
        row: dict[str, Any] = dict(zip(ALIKE, alike, strict=True))
        row |= {PIXELS: row[CANVAS] ** 2, RANKS: cost[RANKS].iloc[0]}
        for split in [split for split in SPLITS if (of_row[SPLIT] == split).any()]:
            networks = of_row[of_row[SPLIT] == split]
            figures = summary(networks, classes) | gain(networks, scores[scores[SPLIT] == split], classes)
            if row.setdefault(SPLIT, split) != split:
                figures = {of_split(split, name): value for name, value in figures.items()}
            row |= figures
        row |= {name: cost[name].astype(float).mean() for name in COSTS}
        row[PEAK_MEMORY] = cost[PEAK_MEMORY].max()
        rows.append(row)
    table = pd.DataFrame(rows)
    table[P_BEST] = against_best(table, scores, classes)
    table = table.sort_values([MPP, RANKS], ascending=[False, True], ignore_index=True)
    return table[[name for name in table if name not in COSTS] + COSTS]


def against_best(table: pd.DataFrame, scores: pd.DataFrame, classes: list[str]) -> list[float]:
    """The p of each row's AUC and the best row's, in the split that they are about; NaN for the best row itself."""
    of_row = [
        scores[(scores[ALIKE] == list(row[ALIKE])).all(axis=1) & (scores[SPLIT] == row[SPLIT])]
        for _, row in table.iterrows()
    ]
    if table[AUC].isna().all():
        return [np.nan] * len(table)
    best = table[AUC].argmax()
    same = table[SPLIT] == table[SPLIT].iloc[best]
    return [
        difference(of_row[best], of_row[i], classes)[3] if i != best and same.iloc[i] else np.nan
        for i in range(len(table))
    ]


def gain(networks: pd.DataFrame, scores: pd.DataFrame, classes: list[str]) -> dict[str, float]:
    """What these networks' AUC has above that of the next coarser resolution among `scores`, and DeLong's p.

    Of several rows of that resolution, the one most alike.
    """
    unknown = dict.fromkeys([COARSER, *GAIN], np.nan)
    coarser = scores[scores[MPP] > networks[MPP].iloc[0]]
    if coarser.empty:
        return unknown
    unknown[COARSER] = coarser[MPP].min()
    nearest = coarser[coarser[MPP] == unknown[COARSER]]
    own = networks[ALIKE].iloc[0]
    other = max((rows for _, rows in nearest.groupby(ALIKE)), key=lambda rows: (rows[ALIKE].iloc[0] == own).sum())
    return unknown | dict(zip(GAIN, difference(networks, other, classes), strict=True))


def difference(networks: pd.DataFrame, other: pd.DataFrame, classes: list[str]) -> tuple[float, float, float, float]:
    """`paired_test` of networks and others, of the seeds and folds that both have; NaN if not on the same slides."""
    pair = [table[table[PART] == TEST] for table in (networks, other)]
    common = set.intersection(*(set(zip(table[SEED], table[FOLD], strict=True)) for table in pair))
    pair = [table[[key in common for key in zip(table[SEED], table[FOLD], strict=True)]] for table in pair]
    tested = [set(zip(table[SEED], table[FOLD], table[SLIDE], strict=True)) for table in pair]
    if tested[0] != tested[1] or not common:
        return (np.nan,) * 4
    ours, theirs = (mean_auc(table, targets_of(classes)) for table in pair)
    return paired_test(ours, theirs)
