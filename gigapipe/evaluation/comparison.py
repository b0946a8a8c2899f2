"""The comparison: one row a resolution, and a way to compute it, with what it was worth and what it cost."""

from typing import Any

import numpy as np
import pandas as pd

from gigapipe.evaluation.absence import reasons
from gigapipe.evaluation.auc import MeanAuc, correlation, mean_auc, paired_test
from gigapipe.evaluation.best import TOO_MANY, of_chance, of_others, patients_needed
from gigapipe.evaluation.columns import (
    ALIKE,
    AUC,
    CANVAS,
    CHANCE,
    COARSER,
    COSTS,
    DELTA,
    FOLD,
    LABEL,
    MARGIN,
    METHOD_NAME,
    MISSING,
    MPP,
    NETWORKS,
    OF_COSTS,
    ONE_CANDIDATE,
    PART,
    PATIENTS,
    PATIENTS_NEEDED,
    PEAK_MEMORY,
    PIXELS,
    RANKS,
    RIVAL,
    RIVAL_METHOD,
    SEED,
    SLIDE,
    SPLIT,
    SPLITS,
    TEST,
    TO_BEST,
    P,
    as_missing,
    bounds,
    low_of_all,
    networks_of,
    of_split,
    without_unnamed,
)
from gigapipe.evaluation.intervals import difference_limits
from gigapipe.evaluation.learning import flagged
from gigapipe.evaluation.metrics import summary
from gigapipe.evaluation.targets import targets_of

GAIN = [DELTA, *bounds(DELTA), P]
NEAREST = [low_of_all(AUC), TO_BEST, *bounds(TO_BEST), RIVAL, RIVAL_METHOD]


def compare(scores: pd.DataFrame, costs: pd.DataFrame, margin: float) -> pd.DataFrame:
    """One row a resolution, method and way to compute it, coarsest first, from the tables of `read_networks`.

    Columns: `ALIKE` (`memory` is the limit of a rank in bytes, 0 without), `pixels` and `ranks`; `split`; the figures
    of `summary`; `coarser`, `delta`, `delta_low`, `delta_high` and `p`: the next coarser resolution, in µm per pixel,
    and the AUC above that of it, by DeLong's paired test on the same slides and folds; those of `nearest`; `margin`;
    `patients_needed`, for a recommendation where there is none (see best.py); where folds of another split were run
    too, the figures of `summary` and of the next coarser resolution on these, as `patient_split_auc`; `COSTS`: means
    over networks, of memory the most; `networks`, which they are; `flagged` and `flags`, how many and which have learnt
    nothing that validation could see; and `missing`, which says why each NaN of the row is one.
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
        row |= {name: " / ".join(dict.fromkeys(cost[name])) for name in OF_COSTS}
        row |= {NETWORKS: networks_of(of_row)} | flagged(cost)
        rows.append(row)
    table = pd.DataFrame(rows)
    near, not_needed = nearest(table, scores, classes, margin)
    table = pd.concat([table, near], axis=1).assign(**{MARGIN: margin})
    table = in_order(table, costs)
    alone = len(table.groupby(ONE_CANDIDATE)) == 1
    table = without_unnamed(table)
    said = [reasons(row, len(classes), alone, not_needed) for row in table.to_dict("records")]
    table[MISSING] = [as_missing(of_row) for of_row in said]
    last = [*COSTS, *OF_COSTS, MISSING]
    return table[[name for name in table if name not in last] + last]


def in_order(table: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """The rows from coarse to fine, of a resolution by method as `costs` have them, and by ranks."""
    order = {name: number for number, name in enumerate(costs[METHOD_NAME].unique())}
    table = table.assign(order=table[METHOD_NAME].map(order))
    table = table.sort_values([MPP, "order", RANKS], ascending=[False, True, True], ignore_index=True)
    return table.drop(columns="order")


def nearest(table: pd.DataFrame, scores: pd.DataFrame, classes: list[str], margin: float) -> tuple[pd.DataFrame, str]:
    """How near each row's AUC is to the best of the others, in the split that it is about; what is said of all rows
    holds together, with 95 % (see best.py).

    Columns: `auc_low_of_all`, the AUC's own lower limit; `to_best`, the AUC above the best of the others, with its
    limits `to_best_low` and `_high`; `rival` and `rival_method`, the one that it may be furthest below; and
    `patients_needed`, and why if that is not known. NaN where networks were not tested on the same slides. Rows of one
    network that was computed in several ways are not each other's others.
    """
    of_row = [
        scores[(scores[ALIKE] == list(row[ALIKE])).all(axis=1) & (scores[SPLIT] == row[SPLIT])]
        for _, row in table.iterrows()
    ]
    group = table.groupby(ONE_CANDIDATE, sort=False).ngroup()
    first = [int(np.argmax(group == number)) for number in range(group.max() + 1)]
    own = [mean_auc(of_row[row][of_row[row][PART] == TEST], targets_of(classes)) for row in first]
    count = len(first)
    difference, low, high, together = np.full((4, count, count), np.nan)
    for i, j in ((i, j) for i in range(count) for j in range(count) if i < j):
        if pair := paired(of_row[first[i]], of_row[first[j]], classes):
            together[i, j] = together[j, i] = correlation(*pair)
            limits = [auc.limits(of_others(count - 1)) for auc in pair]
            difference[i, j], low[i, j], high[i, j] = difference_limits(limits[0], limits[1], together[i, j])
            difference[j, i], low[j, i], high[j, i] = -difference[i, j], -high[i, j], -low[i, j]
    rows = []
    for i, one in enumerate(own):
        others = [j for j in range(count) if j != i]
        row = dict.fromkeys(NEAREST, np.nan) | {low_of_all(AUC): float(one.limits(of_chance(count)).low)}
        if others:
            row |= dict(
                zip([TO_BEST, *bounds(TO_BEST)], (f[i, others].min() for f in (difference, low, high)), strict=True)
            )
        if others and not np.isnan(low[i, others]).any():
            rival = table.iloc[first[others[int(low[i, others].argmin())]]]
            row |= {RIVAL: rival[MPP], RIVAL_METHOD: rival[METHOD_NAME]}
        rows.append(row)
    found = pd.DataFrame(rows)
    near = (found[bounds(TO_BEST)[0]] > -margin) if count > 1 else True
    needed, why = None, "the present patients are sufficient"
    if not ((found[low_of_all(AUC)] > CHANCE) & near).any():
        np.fill_diagonal(together, 1)
        auc, deviation = (np.array([getattr(one, name) for one in own]) for name in ("value", "deviation"))
        why = "not all resolutions have an interval and a comparison"
        if not np.isnan([*auc, *deviation, *together.ravel()]).any():
            patients = int(table[PATIENTS].iloc[first].max())
            needed = patients_needed(auc, deviation, together, own[0].separated, margin, patients)
            why = TOO_MANY
    return found.assign(**{PATIENTS_NEEDED: needed or np.nan}).iloc[group].set_axis(table.index), why


def gain(networks: pd.DataFrame, scores: pd.DataFrame, classes: list[str]) -> dict[str, float]:
    """What these networks' AUC has above that of the next coarser resolution among `scores`, and DeLong's p.

    It is that of the same method; of several rows of that resolution, the one most alike.
    """
    unknown = dict.fromkeys([COARSER, *GAIN], np.nan)
    coarser = scores[(scores[MPP] > networks[MPP].iloc[0]) & (scores[METHOD_NAME] == networks[METHOD_NAME].iloc[0])]
    if coarser.empty:
        return unknown
    unknown[COARSER] = coarser[MPP].min()
    nearest = coarser[coarser[MPP] == unknown[COARSER]]
    own = networks[ALIKE].iloc[0]
    other = max((rows for _, rows in nearest.groupby(ALIKE)), key=lambda rows: (rows[ALIKE].iloc[0] == own).sum())
    return unknown | dict(zip(GAIN, difference(networks, other, classes), strict=True))


def difference(networks: pd.DataFrame, other: pd.DataFrame, classes: list[str]) -> tuple[float, float, float, float]:
    """`paired_test` of networks and others; NaN if they are not `paired`."""
    pair = paired(networks, other, classes)
    return paired_test(*pair) if pair else (np.nan,) * 4


def paired(networks: pd.DataFrame, other: pd.DataFrame, classes: list[str]) -> tuple[MeanAuc, MeanAuc] | None:
    """The AUCs of networks and others, of the seeds and folds that both have; None if not on the same slides."""
    pair = [table[table[PART] == TEST] for table in (networks, other)]
    common = set.intersection(*(set(zip(table[SEED], table[FOLD], strict=True)) for table in pair))
    pair = [table.loc[[key in common for key in zip(table[SEED], table[FOLD], strict=True)]] for table in pair]
    tested = [set(zip(table[SEED], table[FOLD], table[SLIDE], strict=True)) for table in pair]
    if tested[0] != tested[1] or not common:
        return None
    one, another = (mean_auc(table, targets_of(classes)) for table in pair)
    return one, another
