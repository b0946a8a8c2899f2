"""Limits of AUCs and of their differences, of one cohort or of many at once."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit


class Estimate(NamedTuple):
    """AUCs with their limits: numbers, or arrays of one shape."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def auc_limits(value, deviation, z: float, separated: float) -> Estimate:
    """AUCs with their limits, `z` standard errors `deviation` away on the logit scale, which stay within 0 and 1 and
    cover better (Pohar Perme and Manevski 2019, "Confidence intervals for the Mann-Whitney test", Statistical Methods
    in Medical Research 28:3755).

    Where classes are apart altogether the variance is zero, which nobody believes: `separated`, from
    `separated_bound`, stands in. NaN where the deviation is.
    """
    value, deviation = np.asarray(value, float), np.asarray(deviation, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        width = z * deviation / (value * (1 - value))
        low, high = expit(logit(value) - width), expit(logit(value) + width)
    low = np.where(value == 1, separated, np.where(value == 0, 0.0, low))
    high = np.where(value == 0, 1 - separated, np.where(value == 1, 1.0, high))
    return Estimate(value, low, high)


def expected_deviation(auc: float, held_out: Sequence[tuple[float, float]], folds: int) -> float:
    """Standard error of a mean AUC whose truth is `auc`.

    `held_out` are the patients with and without a class that each network is tested on, and `folds` how many of these
    are of different patients. Method 5 of Newcombe 2006, "Confidence intervals for an effect size measure based on the
    Mann–Whitney statistic. Part 2", Statistics in Medicine 25:559, of each fold: few pairs of patients in each of
    several folds tell less than as many patients in one.
    """
    ones, others = np.array(held_out, float).T
    more = (ones + others) / 2 - 1
    spread = 1 + more * ((1 - auc) / (2 - auc) + auc / (1 + auc))
    return float(np.sqrt((auc * (1 - auc) * spread / (ones * others)).mean() / folds))


def separated_bound(held_out: Sequence[tuple[float, float]], folds: int, z: float) -> float:
    """Lower limit of a mean AUC that was found to be 1: the score interval by `expected_deviation`."""

    def excess(auc: float) -> float:
        return 1 - auc - z * expected_deviation(auc, held_out, folds)

    return float(brentq(excess, 0, 1 - 1e-9))


def difference_limits(one: Estimate, other: Estimate, correlation) -> Estimate:
    """`one` − `other`, with limits from those of either (Zou and Donner 2008, "Construction of confidence limits about
    effect measures: a general approach", Statistics in Medicine 27:1693).

    They are as wide as the two allow where a variance is found to be zero, or nearly so: a difference of two networks
    that make no mistake on few patients may still be large. `correlation` is that of the two estimates.
    """
    difference = one.value - other.value

    def reach(up, down):  # of the one upwards and the other downwards
        return np.sqrt(np.maximum(up**2 + down**2 - 2 * correlation * up * down, 0))

    low = difference - reach(one.value - one.low, other.high - other.value)
    high = difference + reach(one.high - one.value, other.value - other.low)
    return Estimate(difference, np.maximum(low, -1), np.minimum(high, 1))
