"""Which of several AUCs are shown to be above chance, and nearly the best.

An AUC is nearly the best if it is shown to be no more than a margin below any other: non-inferiority, as in trials of
a treatment that is cheaper. Which one is the best is not known, so every other is taken for it in turn, and what is
said of all holds together: "multiple comparisons with the best" (Edwards and Hsu 1983, JASA 78:965; Hsu 1984, Annals of
Statistics 12:1136). With the true best as the control, k − 1 one-sided limits hold together in 95 % of cohorts, by
Dunnett's critical value as Hsu takes it (of differences that correlate by one half, as those of equally good AUCs from
one control do), and then none that is worse by more than the margin is taken, whichever is chosen afterwards. An AUC at
chance is worse than the margin wherever the best is above 0.5 by more than that; elsewhere k one-sided limits of the
AUCs, 5 % / k each, keep it out. So a wrong one is taken in about 5 % of cohorts at most; benchmarks/recommendation.py
counts.
"""

import functools
from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from gigapipe.evaluation.columns import CHANCE
from gigapipe.evaluation.intervals import Estimate, auc_limits, difference_limits

LEVEL = 0.05
"""In what share of cohorts anything wrong may be said."""

POWER = 0.8
DRAWS = 400
MOST = 100
"""Times the patients of a cohort, up to which it is said how many would tell."""
TOO_MANY = f"more than {MOST} times as many"

Separated = Callable[[float, float], float]
"""`separated_bound` for limits so many standard errors away, with so many times the patients."""


@functools.cache
def of_others(count: int) -> float:
    """How many standard errors away the limits of an AUC's differences from `count` others are: Dunnett's one-sided
    critical value, with many degrees of freedom.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)

    def missed(z: float) -> float:
        return (1 - LEVEL) - float(weights @ ndtr(np.sqrt(2) * z + nodes) ** max(count, 1)) / np.sqrt(2 * np.pi)

    return float(brentq(missed, 0, 10))


def of_chance(count: int) -> float:
    """How many standard errors away the limits of `count` AUCs are: the interval of 95 %, and of all together."""
    return float(ndtri(1 - min(LEVEL / 2, LEVEL / count)))


def lower_limits(auc: np.ndarray, deviation: np.ndarray, correlation: np.ndarray, bound: float, z: float) -> np.ndarray:
    """Of each AUC, how far it may be below any other, as a negative number: arrays (…, k) and (…, k, k) to (…, k)."""
    limits = auc_limits(auc, deviation, z, bound)
    one = Estimate(*(part[..., :, None] for part in limits))
    other = Estimate(*(part[..., None, :] for part in limits))
    low = difference_limits(one, other, correlation).low
    itself = np.arange(low.shape[-1])
    low[..., itself, itself] = np.inf
    return low.min(axis=-1)


def shown(
    auc: np.ndarray, deviation: np.ndarray, correlation: np.ndarray, separated: Separated, margin: float, times=1.0
) -> np.ndarray:
    """Whether each AUC (…, k) is shown to be above chance and within `margin` of the best."""
    count = auc.shape[-1]
    chance, z = of_chance(count), of_others(count - 1)
    above = auc_limits(auc, deviation, chance, separated(chance, times)).low > CHANCE
    return above & (lower_limits(auc, deviation, correlation, separated(z, times), z) > -margin)


def patients_needed(
    auc: np.ndarray, deviation: np.ndarray, correlation: np.ndarray, separated: Separated, margin: float, patients: int
) -> int | None:
    """With how many patients like these one of the AUCs (k,) would be shown in four cohorts of five, if the truth were
    what was found; None if `MOST` times as many are too few.

    By simulation: cohorts have AUCs that are drawn around those found, with their covariance, which is smaller the more
    patients there are. Rounded to two digits.
    """
    rng = np.random.default_rng(0)
    covariance = correlation * deviation[:, None] * deviation
    noise = rng.multivariate_normal(np.zeros(len(auc)), covariance, DRAWS, method="eigh")

    def share(times: float) -> float:
        drawn = np.clip(auc + noise / np.sqrt(times), 0, 1)
        spread = np.sqrt(np.maximum(drawn * (1 - drawn), 0) / np.maximum(auc * (1 - auc), 1e-12) / times)
        found = shown(drawn, deviation * spread, np.broadcast_to(correlation, (DRAWS, *correlation.shape)), separated,
                      margin, times)  # fmt: skip
        return found.any(axis=-1).mean()

    times = 1.0
    while share(times) < POWER:
        times *= 1.15
        if times > MOST:
            return None
    digits = 10 ** max(0, int(np.log10(times * patients)) - 1)
    return int(np.ceil(times * patients / digits) * digits)
