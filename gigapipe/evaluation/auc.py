"""The area under the ROC curve over networks, with DeLong's variance, a paired test, and a bootstrap of patients.

Scores of different networks (folds, seeds) have different scales. They are never ranked against each other: an AUC is
taken of each network's own held-out slides, and these are averaged. Slides of one patient are alike, so that every
variance is one of patients. All of it says how much other patients would change the figure; how much another training
would, only the spread over seeds tells.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

from gigapipe.evaluation.columns import LABEL, ONE_NETWORK, PATIENT
from gigapipe.evaluation.targets import Targets


@dataclass(frozen=True)
class MeanAuc:
    """The mean AUC of several networks (one per seed and fold), each on the slides that it has never seen."""

    value: float
    networks: pd.Series
    """AUC of each network, indexed by seed and fold; NaN where its held-out slides lack a class."""
    influence: pd.Series
    """How far each patient moves the mean, indexed by patient: the sum of squares is DeLong's variance."""
    positives: int
    negatives: int
    """Patients with and without the first target class."""

    @property
    def deviation(self) -> float:
        """Standard error over patients."""
        return float(np.sqrt((self.influence**2).sum(skipna=False)))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """DeLong's interval on the logit scale, which stays within 0 and 1 and covers better (Pohar Perme and Manevski
        2019, "Confidence intervals for the Mann-Whitney test", Statistical Methods in Medical Research 28:3755).

        Where classes are apart altogether the variance is zero, which nobody believes: `separated_bound` stands in.
        """
        z = norm.ppf((1 + level) / 2)
        if self.value == 1:
            return separated_bound(self.positives, self.negatives, z), 1.0
        if self.value == 0:
            return 0.0, 1 - separated_bound(self.positives, self.negatives, z)
        width = z * self.deviation / (self.value * (1 - self.value))
        return float(expit(logit(self.value) - width)), float(expit(logit(self.value) + width))


def auc_and_influence(positive: np.ndarray, score: np.ndarray, patient: np.ndarray) -> tuple[float, np.ndarray]:
    """AUC of slides, and the influence of each slide on it: arrays (slides,), bool, float and any.

    With influences summed by patient, the sum of their squares is the AUC's variance, and the sum of products with
    those of other scores on the same slides is the covariance: with one slide a patient those of DeLong et al. 1988,
    "Comparing the areas under two or more correlated receiver operating characteristic curves", Biometrics 44:837, by
    the ranks of Sun and Xu 2014, "Fast implementation of DeLong's algorithm", IEEE Signal Processing Letters 21:1389;
    with more, for patients whose slides have one label, those of Obuchowski 1997, "Nonparametric analysis of clustered
    ROC curve data", Biometrics 53:567. NaN if a class is missing; influences of a class of one patient are NaN.
    """
    sides = positive, ~positive
    if not (positive.any() and (~positive).any()):
        return np.nan, np.full(len(score), np.nan)
    above = np.empty(len(score))  # share of the other class that a slide is on the right side of
    ranks = rankdata(score)
    for side, other in (sides, sides[::-1]):
        above[side] = (ranks[side] - rankdata(score[side])) / other.sum()
    above[~positive] = 1 - above[~positive]
    auc = above[positive].mean()
    influence = np.empty(len(score))
    for side in sides:
        patients = len(set(patient[side]))
        correction = np.sqrt(patients / (patients - 1)) if patients > 1 else np.nan
        influence[side] = correction * (above[side] - auc) / side.sum()
    return float(auc), influence


def mean_auc(scores: pd.DataFrame, targets: Targets) -> MeanAuc:
    """Mean over networks of the AUC of held-out slides; of several targets the macro mean, each against the rest.

    Columns: `seed`, `fold`, `patient`, `label`, and those of `targets`. Networks whose held-out slides lack a class
    have no AUC, and are left out of the mean; NaN if that is all of them. Patients that are held out once for each seed
    count as the same patients.
    """
    values, parts = {}, []
    for network, held_out in scores.groupby(ONE_NETWORK):
        patient = held_out[PATIENT].to_numpy()
        found = [
            auc_and_influence((held_out[LABEL] == label).to_numpy(), held_out[column].to_numpy(), patient)
            for label, column in targets.items()
        ]
        values[network] = np.mean([auc for auc, _ in found])
        if not np.isnan(values[network]):
            parts.append(pd.Series(np.mean([influence for _, influence in found], axis=0), patient))
    networks = pd.Series(values).rename_axis(ONE_NETWORK)
    influence = (pd.concat(parts) / len(parts)).groupby(level=0).sum(min_count=1) if parts else pd.Series([np.nan])
    label_of = scores.drop_duplicates(PATIENT)[LABEL]
    positives = int((label_of == next(iter(targets))).sum())
    return MeanAuc(float(networks.mean()), networks, influence, positives, len(label_of) - positives)


def paired_test(one: MeanAuc, other: MeanAuc, level: float = 0.95) -> tuple[float, float, float, float]:
    """`one` − `other`, its interval, and DeLong's two-sided p of no difference, on the same slides and folds."""
    difference = one.value - other.value
    deviation = float(np.sqrt(((one.influence - other.influence) ** 2).sum(skipna=False)))
    width = float(norm.ppf((1 + level) / 2)) * deviation
    # No deviation: every slide is ranked alike, or both make no mistake.
    p = 2 * norm.sf(abs(difference) / deviation) if deviation else 1.0 if difference == 0 else np.nan
    return difference, max(-1.0, difference - width), min(1.0, difference + width), float(p)


def bootstrapped(scores: pd.DataFrame, targets: Targets, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """`mean_auc` of `resamples` cohorts (resamples,), of patients drawn with replacement among those of their label.

    A patient comes with all slides, in all seeds. Networks whose drawn slides lack a class are left out of that mean.
    """
    rng = np.random.default_rng(seed)
    label_of = scores.drop_duplicates(PATIENT).set_index(PATIENT)[LABEL]
    weights = np.empty((resamples, len(label_of)))  # how often a patient was drawn
    for label in sorted(label_of.unique()):
        those = np.flatnonzero(label_of == label)
        weights[:, those] = rng.multinomial(len(those), np.full(len(those), 1 / len(those)), resamples)
    networks = []
    for _, held_out in scores.groupby(ONE_NETWORK):
        weight = weights[:, label_of.index.get_indexer(pd.Index(held_out[PATIENT]))]
        networks.append(
            np.mean(
                [_weighted(held_out[LABEL] == c, held_out[column], weight) for c, column in targets.items()], axis=0
            )
        )
    means = np.array(networks)
    counted = ~np.isnan(means)
    with np.errstate(invalid="ignore"):
        return np.where(counted, means, 0).sum(axis=0) / counted.sum(axis=0)


def bootstrap_interval(
    scores: pd.DataFrame, targets: Targets, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval of `mean_auc` over the cohorts of `bootstrapped`; NaN where they are all alike, or have no AUC.

    The quantiles are those of BCa (Efron 1987, "Better bootstrap confidence intervals", JASA 82:171): plain ones cover
    too little near an AUC of 1.
    """
    found, drawn = mean_auc(scores, targets), bootstrapped(scores, targets, resamples, seed)
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn) or drawn.min() == drawn.max() or np.isnan(found.deviation):
        return np.nan, np.nan
    below = ((drawn < found.value).mean() + (drawn <= found.value).mean()) / 2
    bias = norm.ppf(np.clip(below, 1 / resamples, 1 - 1 / resamples))
    acceleration = (found.influence**3).sum() / (6 * found.deviation**3) if found.deviation else 0.0
    reach = bias + norm.ppf([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(drawn, norm.cdf(bias + reach / (1 - acceleration * reach)))
    return float(low), float(high)


def by_patient(scores: pd.DataFrame, targets: Targets) -> pd.DataFrame:
    """One row a patient and network, with the mean of its slides' scores."""
    of = scores.groupby([*ONE_NETWORK, PATIENT, LABEL], as_index=False)
    return of[list(targets.values())].mean()


def separated_bound(positives: int, negatives: int, z: float) -> float:
    """Lower bound of an AUC that was found to be 1: Newcombe's score interval (method 5 of Newcombe 2006, "Confidence
    intervals for an effect size measure based on the Mann–Whitney statistic. Part 2", Statistics in Medicine 25:559).
    """
    more = (positives + negatives) / 2 - 1

    def excess(auc: float) -> float:
        spread = 1 + more * ((1 - auc) / (2 - auc) + auc / (1 + auc))
        return 1 - auc - z * np.sqrt(auc * (1 - auc) * spread / (positives * negatives))

    return float(brentq(excess, 0, 1 - 1e-9))


def _weighted(positive: pd.Series, score: pd.Series, weight: np.ndarray) -> np.ndarray:
    """AUC with each of many weights (resamples, slides); NaN where a class has none."""
    truth, scores = positive.to_numpy(), score.to_numpy()
    ones, others = scores[truth][:, None], scores[~truth]
    right = (ones > others) + 0.5 * (ones == others)
    ones, others = weight[:, truth], weight[:, ~truth]
    with np.errstate(invalid="ignore"):
        return ((ones @ right) * others).sum(axis=1) / (ones.sum(axis=1) * others.sum(axis=1))
