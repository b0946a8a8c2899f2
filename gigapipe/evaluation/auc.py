"""The area under the ROC curve over networks, with DeLong's variance, a paired test, and a bootstrap over patients.

Scores of different networks (folds, seeds) have different scales and are never ranked together: an AUC is computed on
each network's own test slides, and averaged. Slides of one patient are correlated, so that every variance is clustered
by patient. All of these describe the variation between patients; the variation between trainings is known only from the
standard deviation over seeds.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from gigapipe.evaluation.columns import BY_FOLD, LABEL, ONE_NETWORK, PATIENT, POOLED
from gigapipe.evaluation.intervals import Estimate, auc_limits, separated_bound
from gigapipe.evaluation.targets import Targets

Held = tuple[np.ndarray, np.ndarray, np.ndarray]
"""What one network was tested on: whether slides are positive (slides,), scores (…, slides), patients (slides,)."""


@dataclass(frozen=True)
class MeanAuc:
    """The mean AUC of several networks (one per seed and fold), each on the slides that it has never seen."""

    value: float
    networks: pd.Series
    """AUC of each network, indexed by seed and fold; NaN where its held-out slides lack a class."""
    influence: pd.Series
    """How far each patient moves the mean, indexed by patient: the sum of squares is DeLong's variance."""
    held_out: list[tuple[int, int]]
    """Of each network with an AUC the patients with and without a class, that of which it has fewest; who has slides of
    both is counted with both."""
    folds: int
    """How many networks with an AUC were tested on different patients."""
    method: str
    """`BY_FOLD` or `POOLED`."""

    @property
    def deviation(self) -> float:
        """Standard error over patients."""
        return float(np.sqrt((self.influence**2).sum(skipna=False)))

    def separated(self, z: float, times: float = 1) -> float:
        """The lower limit if the AUC is 1, of so many times the patients."""
        if not self.held_out:
            return np.nan
        return separated_bound([(times * ones, times * others) for ones, others in self.held_out], self.folds, z)

    def limits(self, z: float) -> Estimate:
        """The AUC with limits so many standard errors away: see `auc_limits`."""
        return auc_limits(self.value, self.deviation, z, self.separated(z))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided interval."""
        _, low, high = self.limits(float(ndtri((1 + level) / 2)))
        return float(low), float(high)


def auc_and_influence(
    positive: np.ndarray, score: np.ndarray, patient: np.ndarray, pooled: tuple[np.ndarray, list[int]] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """AUC of slides (…), and the influence of each slide on it (…, slides), from `Held`.

    With influences summed by patient, the sum of their squares is the AUC's variance, and the sum of products with
    those of other scores on the same slides is the covariance: with one slide a patient those of DeLong et al. 1988,
    "Comparing the areas under two or more correlated receiver operating characteristic curves", Biometrics 44:837, by
    the ranks of Sun and Xu 2014, "Fast implementation of DeLong's algorithm", IEEE Signal Processing Letters 21:1389;
    with more those of Obuchowski 1997, "Nonparametric analysis of clustered ROC curve data", Biometrics 53:567, also
    for patients with slides of both classes. NaN if a class is missing; influences of a class of one patient are NaN,
    unless deviations are `pooled`: from an AUC (…) of several folds, of so many patients with and without the class.
    """
    sides = positive, ~positive
    if not (positive.any() and (~positive).any()):
        return np.full(score.shape[:-1], np.nan), np.full(score.shape, np.nan)
    above = np.empty(score.shape)  # share of the other class that a slide is on the right side of
    ranks = _ranks(score)
    for side, other in (sides, sides[::-1]):
        above[..., side] = (ranks[..., side] - _ranks(score[..., side])) / other.sum()
    above[..., ~positive] = 1 - above[..., ~positive]
    auc = above[..., positive].mean(axis=-1)
    around, patients = pooled or (auc, [len(set(patient[side])) for side in sides])
    influence = np.empty(score.shape)
    for side, count in zip(sides, patients, strict=True):
        correction = np.sqrt(count / (count - 1)) if count > 1 else np.nan
        influence[..., side] = correction * (above[..., side] - around[..., None]) / side.sum()
    return auc, influence


def _ranks(score: np.ndarray) -> np.ndarray:
    """Ranks along the last axis, equal scores having their mean rank: by pandas, for scipy.stats is slow to import."""
    return pd.DataFrame(score.reshape(-1, score.shape[-1])).rank(axis=1).to_numpy().reshape(score.shape)


def mean_of_folds(folds: list[Held]) -> tuple[np.ndarray, list[np.ndarray], str]:
    """AUC of each network (networks, …), the influence of its slides, and how variances were found.

    A fold with one patient of a class has no variance of its own. Deviations are then those from the mean of all folds,
    as if their networks had one AUC, which is more than within folds rather than less.
    """
    found = [auc_and_influence(*held) for held in folds]
    aucs, influences = np.stack([auc for auc, _ in found]), [influence for _, influence in found]
    if not any(np.isnan(influence).any() for influence in influences):
        return aucs, influences, BY_FOLD
    patients = [len({name for held in folds for name in held[2][held[0] == side]}) for side in (True, False)]
    pooled = aucs.mean(axis=0), patients
    return aucs, [auc_and_influence(*held, pooled)[1] for held in folds], POOLED


def mean_auc(scores: pd.DataFrame, targets: Targets) -> MeanAuc:
    """Mean over networks of the AUC of held-out slides; of several targets the macro mean, each against the rest.

    Columns: `seed`, `fold`, `patient`, `label`, and those of `targets`. Networks whose held-out slides lack a class
    have no AUC, and are left out of the mean; NaN if that is all of them. Patients that are held out once for each seed
    count as the same patients.
    """
    tested = dict(list(scores.groupby(ONE_NETWORK)))
    values = pd.Series(np.nan, pd.MultiIndex.from_tuples(tested, names=ONE_NETWORK))
    patients = {network: held_out[PATIENT].to_numpy() for network, held_out in tested.items()}
    sides = {network: [held_out[LABEL].to_numpy() == c for c in targets] for network, held_out in tested.items()}
    whole = [network for network in tested if all(0 < side.sum() < len(side) for side in sides[network])]
    if not whole:
        return MeanAuc(np.nan, values, pd.Series([np.nan]), [], 0, BY_FOLD)
    found = [
        mean_of_folds([(sides[one][i], tested[one][column].to_numpy(), patients[one]) for one in whole])
        for i, column in enumerate(targets.values())
    ]
    values[values.index.isin(whole)] = np.mean([aucs for aucs, _, _ in found], axis=0)
    of_slides = [np.mean(of_targets, axis=0) for of_targets in zip(*(each for _, each, _ in found), strict=True)]
    influence = pd.Series(np.concatenate(of_slides) / len(whole), np.concatenate([patients[one] for one in whole]))
    return MeanAuc(
        float(values.mean()),
        values,
        influence.groupby(level=0).sum(min_count=1),
        [_fewest(sides[one], patients[one]) for one in whole],
        len({fold for _, fold in whole}),
        POOLED if any(method == POOLED for _, _, method in found) else BY_FOLD,
    )


def _fewest(sides: list[np.ndarray], patients: np.ndarray) -> tuple[int, int]:
    """Patients with and without a class, of the class that has the fewest on either side."""
    return min(((len(set(patients[side])), len(set(patients[~side]))) for side in sides), key=min)


def paired_test(one: MeanAuc, other: MeanAuc, level: float = 0.95) -> tuple[float, float, float, float]:
    """`one` − `other`, its interval, and DeLong's two-sided p of no difference, on the same slides and folds."""
    difference = one.value - other.value
    deviation = float(np.sqrt(((one.influence - other.influence) ** 2).sum(skipna=False)))
    width = float(ndtri((1 + level) / 2)) * deviation
    # No deviation: every slide is ranked alike, or both make no mistake.
    p = 2 * ndtr(-abs(difference) / deviation) if deviation else 1.0 if difference == 0 else np.nan
    return difference, max(-1.0, difference - width), min(1.0, difference + width), float(p)


def correlation(one: MeanAuc, other: MeanAuc) -> float:
    """Of two mean AUCs on the same slides and folds; 0 where one has no deviation."""
    scale = one.deviation * other.deviation
    return float((one.influence * other.influence).sum(skipna=False) / scale) if scale else 0.0


def bootstrapped(scores: pd.DataFrame, targets: Targets, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """`mean_auc` of `resamples` cohorts (resamples,), of patients drawn with replacement among those of their labels.

    A patient comes with all slides, in all seeds. Networks whose drawn slides lack a class are left out of that mean.
    """
    rng = np.random.default_rng(seed)
    label_of = scores.groupby(PATIENT, sort=False)[LABEL].agg(lambda labels: "\0".join(sorted(set(labels))))
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
    bias = ndtri(np.clip(below, 1 / resamples, 1 - 1 / resamples))
    acceleration = (found.influence**3).sum() / (6 * found.deviation**3) if found.deviation else 0.0
    reach = bias + ndtri([(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(drawn, ndtr(bias + reach / (1 - acceleration * reach)))
    return float(low), float(high)


def of_several_labels(scores: pd.DataFrame) -> int:
    """How many patients have slides of more than one label, so that they have none themselves."""
    return int((scores.groupby(PATIENT)[LABEL].nunique() > 1).sum())


def by_patient(scores: pd.DataFrame, targets: Targets) -> pd.DataFrame:
    """One row a patient and network, with the mean of its slides' scores; patients must have one label."""
    of = scores.groupby([*ONE_NETWORK, PATIENT, LABEL], as_index=False)
    return of[list(targets.values())].mean()


def _weighted(positive: pd.Series, score: pd.Series, weight: np.ndarray) -> np.ndarray:
    """AUC with each of many weights (resamples, slides); NaN where a class has none."""
    truth, scores = positive.to_numpy(), score.to_numpy()
    ones, others = scores[truth][:, None], scores[~truth]
    right = (ones > others) + 0.5 * (ones == others)
    ones, others = weight[:, truth], weight[:, ~truth]
    with np.errstate(invalid="ignore"):
        return ((ones @ right) * others).sum(axis=1) / (ones.sum(axis=1) * others.sum(axis=1))
