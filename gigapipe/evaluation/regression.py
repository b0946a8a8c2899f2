"""What predicted numbers are worth: R², Spearman's correlation, the mean absolute error, with intervals over patients.

Predictions of different networks have one unit, that of the number: R² and the error are of all held-out slides of a
seed together, and averaged over seeds. Ranks are not mixed: Spearman's correlation is that of each network's own
held-out slides, and averaged. Intervals are of cohorts of patients drawn with replacement, each with all its slides.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from gigapipe.evaluation.best import MOST, POWER, of_chance, of_others
from gigapipe.evaluation.columns import (
    ALIKE,
    CANVAS,
    COARSER,
    COSTS,
    DELTA,
    FOLD,
    FOLDS,
    MARGIN,
    METHOD_NAME,
    MISSING,
    MPP,
    NETWORKS,
    NUMBER,
    NUMBER_FIGURES,
    OF_COSTS,
    ONE_CANDIDATE,
    ONE_NETWORK,
    PART,
    PATIENT,
    PATIENTS,
    PATIENTS_NEEDED,
    PEAK_MEMORY,
    PIXELS,
    PREDICTED,
    R2,
    RANKS,
    RIVAL,
    RIVAL_METHOD,
    SEED,
    SEEDS,
    SLIDE,
    SLIDES,
    SPLIT,
    SPLITS,
    TARGET,
    TEST,
    TO_BEST,
    P,
    as_missing,
    bounds,
    low_of_all,
    networks_of,
    of_split,
    sd,
    without_unnamed,
)
from gigapipe.evaluation.comparison import in_order
from gigapipe.evaluation.learning import flagged

RESAMPLES = 1000


class Figures(NamedTuple):
    """`NUMBER_FIGURES` of networks that are alike: each (figures, …)."""

    found: np.ndarray
    drawn: np.ndarray
    """Of each cohort that was drawn; the same cohorts of the same patients."""
    left_out: np.ndarray
    """Without each patient, in alphabetical order."""
    tested: frozenset
    """Seed, fold and slide of each prediction."""

    def interval(self, name: str) -> tuple[float, float]:
        i = NUMBER_FIGURES.index(name)
        return bca(self.found[i], self.drawn[i], self.left_out[i])


def compare_numbers(scores: pd.DataFrame, costs: pd.DataFrame, margin: float) -> pd.DataFrame:
    """One row a resolution, method and way to compute it, coarsest first, from the tables of `read_networks`.

    Columns are as in `comparison.compare`, with `target`, and `NUMBER_FIGURES` with 95 % intervals in place of figures
    of classes; differences are those of R², and `p` tells how many drawn cohorts have none, or the opposite; limits,
    too, are of drawn cohorts.
    """
    rows = []
    for alike, of_row in scores.groupby(ALIKE):
        cost = costs[(costs[ALIKE] == list(alike)).all(axis=1)]
        row: dict[Any, Any] = dict(zip(ALIKE, alike, strict=True))
        row |= {PIXELS: row[CANVAS] ** 2, RANKS: cost[RANKS].iloc[0], TARGET: of_row[TARGET].iloc[0]}
        for split in [split for split in SPLITS if (of_row[SPLIT] == split).any()]:
            found = summary(of_row[of_row[SPLIT] == split]) | gain(row[MPP], scores[scores[SPLIT] == split], alike)
            if SPLIT in row:
                row |= {of_split(split, name): value for name, value in found.items()}
            else:
                row |= {SPLIT: split} | found
        row |= cost[COSTS].apply(pd.to_numeric).mean().to_dict()
        row[PEAK_MEMORY] = cost[PEAK_MEMORY].max()
        row |= {name: " / ".join(dict.fromkeys(cost[name])) for name in OF_COSTS}
        row |= {NETWORKS: networks_of(of_row)} | flagged(cost)
        rows.append(row)
    table = pd.DataFrame(rows)
    near, not_needed = nearest_numbers(table, scores, margin)
    table = pd.concat([table, near], axis=1).assign(**{MARGIN: margin})
    table = in_order(table, costs)
    alone = len(table.groupby(ONE_CANDIDATE)) == 1
    table = without_unnamed(table)
    table[MISSING] = [as_missing(_reasons(row, alone, not_needed)) for row in table.to_dict("records")]
    last = [*COSTS, *OF_COSTS, MISSING]
    return table[[name for name in table if name not in last] + last]


def nearest_numbers(table: pd.DataFrame, scores: pd.DataFrame, margin: float) -> tuple[pd.DataFrame, str]:
    """How near each row's R² is to the best of the others, as in `comparison.nearest`, from drawn cohorts.

    `patients_needed` is an approximation: limits shrink with the root of the patients, differences stay.
    """
    of_row = [
        figures(
            scores[
                (scores[ALIKE] == list(row[ALIKE])).all(axis=1) & (scores[SPLIT] == row[SPLIT]) & (scores[PART] == TEST)
            ]
        )
        for _, row in table.iterrows()
    ]
    group = table.groupby(ONE_CANDIDATE, sort=False).ngroup().to_numpy()
    count, rows, needed = len(set(group)), [], []
    for i, one in enumerate(of_row):
        low, _ = bca(one.found[0], one.drawn[0], one.left_out[0], 1 - 2 * ndtr(-of_chance(count)))
        row = dict.fromkeys([TO_BEST, *bounds(TO_BEST), RIVAL, RIVAL_METHOD], np.nan) | {low_of_all(R2): low}
        found = {}
        for j, other in enumerate(of_row):
            if group[i] != group[j] and one.tested == other.tested:
                difference, drawn, left_out = (getattr(one, n)[0] - getattr(other, n)[0] for n in Figures._fields[:3])
                limits = bca(difference, drawn, left_out, 1 - 2 * ndtr(-of_others(count - 1)))
                found[j] = (float(difference), *limits, float(np.nanstd(drawn)))
        if found and len(found) == (group != group[i]).sum():
            differences, lows, highs, spreads = np.array(list(found.values())).T
            row |= dict(zip([TO_BEST, *bounds(TO_BEST)], (differences.min(), lows.min(), highs.min()), strict=True))
            if not np.isnan(lows).any():
                rival = table.iloc[list(found)[int(lows.argmin())]]
                row |= {RIVAL: rival[MPP], RIVAL_METHOD: rival[METHOD_NAME]}
            reach = (of_others(count - 1) + ndtri(POWER)) * spreads
            with np.errstate(divide="ignore", invalid="ignore"):
                needed.append(np.where(differences > -margin, (reach / (margin + differences)) ** 2, np.inf).max())
        rows.append(row)
    near = pd.DataFrame(rows)
    shown = (near[low_of_all(R2)] > 0) & ((near[bounds(TO_BEST)[0]] > -margin) if count > 1 else True)
    if shown.any():
        return near.assign(**{PATIENTS_NEEDED: np.nan}), "the present patients are sufficient"
    times = min(needed, default=np.nan)
    if not 1 < times <= MOST or not (near[low_of_all(R2)] > 0).any():
        return near.assign(**{PATIENTS_NEEDED: np.nan}), "not estimated"
    return near.assign(**{PATIENTS_NEEDED: np.ceil(times * table[PATIENTS].max())}), ""


def _reasons(row: dict[Any, Any], alone: bool, not_needed: str) -> dict[str, str]:
    """Of each NaN in a row why it is one."""
    empty = [str(name) for name, value in row.items() if pd.isna(value)]
    found = {}
    for name in empty:
        figure = name.removeprefix(next((of_split(split, "") for split in SPLITS if name.startswith(split)), ""))
        if name in COSTS:
            found[name] = "not measured"
        elif name == PATIENTS_NEEDED:
            found[name] = not_needed
        elif figure == sd(R2, SEEDS):
            found[name] = "one seed"
        elif figure in (TO_BEST, *bounds(TO_BEST), RIVAL, RIVAL_METHOD):
            found[name] = "no other resolution" if alone else "not tested on the same slides"
        elif figure in (COARSER, DELTA, *bounds(DELTA), P):
            found[name] = "there is no coarser resolution" if pd.isna(row[COARSER]) else "not tested on the same slides"
        else:
            found[name] = "all numbers, or all bootstrap samples, are the same"
    return found


def summary(scores: pd.DataFrame) -> dict[str, float]:
    """The figures of the networks of one resolution, on one kind of folds, and of how many slides they are."""
    test = scores[scores[PART] == TEST]
    of_all = figures(test)
    row: dict[str, float] = {
        SLIDES: test[SLIDE].nunique(),
        PATIENTS: test[PATIENT].nunique(),
        SEEDS: test[SEED].nunique(),
        FOLDS: test[FOLD].nunique(),
    }
    for name, value in zip(NUMBER_FIGURES, of_all.found, strict=True):
        row |= {name: float(value)} | dict(zip(bounds(name), of_all.interval(name), strict=True))
    by_seed = [_figures(of_seed, np.ones((1, len(of_seed))))[0, 0] for _, of_seed in test.groupby(SEED)]
    row[sd(R2, SEEDS)] = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else np.nan
    return row


def gain(mpp: float, scores: pd.DataFrame, alike: tuple) -> dict[str, float]:
    """The next coarser µm per pixel, and R² above its, where both were tested on the same slides; NaN is not known."""
    of_method = scores[scores[METHOD_NAME] == alike[ALIKE.index(METHOD_NAME)]]
    coarser = of_method.loc[of_method[MPP] > mpp, MPP].min()
    found = dict.fromkeys([DELTA, *bounds(DELTA), P], np.nan)
    for _, other in of_method[of_method[MPP] == coarser].groupby(ALIKE):
        between = difference(scores[(scores[ALIKE] == list(alike)).all(axis=1)], other)
        if not np.isnan(between[0]):
            found = dict(zip(found, between, strict=True))
            break
    return {COARSER: coarser, **found}


def difference(networks: pd.DataFrame, other: pd.DataFrame) -> tuple[float, float, float, float]:
    """R² of networks above that of others, its 95 % interval, and p; NaN if not tested on the same slides."""
    ours, theirs = (figures(table[table[PART] == TEST]) for table in (networks, other))
    if ours.tested != theirs.tested:
        return (np.nan,) * 4
    found, drawn, left_out = (getattr(ours, n)[0] - getattr(theirs, n)[0] for n in Figures._fields[:3])
    beyond = min((drawn <= 0).mean(), (drawn >= 0).mean())
    p = min(1.0, 2 * max(beyond, 1 / RESAMPLES))
    return (float(found), *bca(found, drawn, left_out), float(p))


def figures(test: pd.DataFrame, seed: int = 0) -> Figures:
    """`NUMBER_FIGURES` of held-out slides of networks that are alike, of `RESAMPLES` drawn cohorts, and without each
    patient. Columns: `seed`, `fold`, `slide`, `patient`, `number`, `predicted`."""
    patients = np.sort(test[PATIENT].unique())
    count, of_slide = len(patients), np.searchsorted(patients, test[PATIENT])
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), RESAMPLES)
    found, of_drawn, left_out = (
        _figures(test, weights[:, of_slide]) for weights in (np.ones((1, count)), drawn, 1 - np.eye(count))
    )
    tested = frozenset(zip(test[SEED], test[FOLD], test[SLIDE], strict=True))
    return Figures(found[:, 0], of_drawn, left_out, tested)


def _figures(test: pd.DataFrame, weights: np.ndarray) -> np.ndarray:
    """`NUMBER_FIGURES` (figures, cohorts) of cohorts in which slides count by `weights` (cohorts, slides)."""
    true, predicted = test[NUMBER].to_numpy(float), test[PREDICTED].to_numpy(float)
    in_units, ranks = [], []
    for rows in test.reset_index(drop=True).groupby(SEED).groups.values():
        weight, y, error = weights[:, rows], true[rows], predicted[rows] - true[rows]
        total = weight.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = weight @ y**2 - (weight @ y) ** 2 / total
            r2 = np.where(spread > 1e-12 * (weight @ y**2), 1 - (weight @ error**2) / spread, np.nan)
            in_units.append((r2, weight @ np.abs(error) / total))
    for rows in test.reset_index(drop=True).groupby(ONE_NETWORK).groups.values():
        ranks.append(spearman(true[rows], predicted[rows], weights[:, rows]))
    r2, absolute = (np.mean(of_seeds, axis=0) for of_seeds in zip(*in_units, strict=True))
    counted = ~np.isnan(ranks)
    with np.errstate(invalid="ignore"):
        correlation = np.where(counted, ranks, 0).sum(axis=0) / counted.sum(axis=0)
    return np.array([r2, correlation, absolute])


def spearman(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Spearman's correlation of samples that have each pair `weights` (samples, pairs) times; ties at their mean rank.

    NaN where all of either are the same.
    """
    total = weights.sum(axis=1, keepdims=True)
    centred = []
    for values in (a, b):
        below = (values > values[:, None]).astype(float) + 0.5 * (values == values[:, None])  # row is below column
        rank = weights @ below
        with np.errstate(invalid="ignore"):
            centred.append(rank - (weights * rank).sum(axis=1, keepdims=True) / total)
    ours, theirs = centred
    with np.errstate(invalid="ignore", divide="ignore"):
        norms = np.sqrt((weights * ours**2).sum(axis=1) * (weights * theirs**2).sum(axis=1))
        return np.where(norms > 1e-9, (weights * ours * theirs).sum(axis=1) / norms, np.nan)


def bca(found: float, drawn: np.ndarray, left_out: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The interval of a figure by those of drawn cohorts and of the cohort without each patient (Efron 1987, "Better
    bootstrap confidence intervals", JASA 82:171); NaN where they are all alike, or it is not known."""
    drawn = drawn[~np.isnan(drawn)]
    if np.isnan(found) or np.isnan(left_out).any() or not len(drawn) or drawn.min() == drawn.max():
        return np.nan, np.nan
    below = ((drawn < found).mean() + (drawn <= found).mean()) / 2
    bias = ndtri(np.clip(below, 1 / len(drawn), 1 - 1 / len(drawn)))
    influence = left_out.mean() - left_out
    spread = (influence**2).sum() ** 1.5
    acceleration = (influence**3).sum() / (6 * spread) if spread else 0.0
    reach = bias + ndtri([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(drawn, ndtr(bias + reach / (1 - acceleration * reach)))
    return float(low), float(high)
