"""Cohorts of known AUCs, as networks of several folds would score them: what limits and rules are tried on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from gigapipe.evaluation.auc import Held, mean_of_folds
from gigapipe.evaluation.intervals import separated_bound


class Cohorts(NamedTuple):
    """AUCs of several resolutions in each of many cohorts, found as `mean_auc` finds them."""

    auc: np.ndarray
    """(cohorts, resolutions)"""
    deviation: np.ndarray
    correlation: np.ndarray
    """(cohorts, resolutions, resolutions)"""
    held_out: list[tuple[int, int]]
    """Patients of each fold, with and without the class."""

    def separated(self, z: float, times: float = 1) -> float:
        """As `MeanAuc.separated`."""
        return separated_bound([(times * p, times * q) for p, q in self.held_out], len(self.held_out), z)


def drawn(
    truth: Sequence[float],
    held_out: Sequence[tuple[int, int]],
    cohorts: int,
    rng: np.random.Generator,
    correlation: float = 0.0,
) -> Cohorts:
    """Cohorts of one slide a patient. Scores are binormal: of each resolution normal, with the variance 1 and a shift
    between the classes that makes the true AUC; `correlation` is that of a patient's scores at two resolutions.
    """
    shift = np.sqrt(2) * ndtri(truth)
    folds: list[Held] = []
    for number, (p, q) in enumerate(held_out):
        label = np.arange(p + q) < p
        shared = np.sqrt(correlation) * rng.normal(size=(cohorts, 1, p + q))
        own = np.sqrt(1 - correlation) * rng.normal(size=(cohorts, len(shift), p + q))
        patients = np.array([f"{number}-{patient}" for patient in range(p + q)])
        folds.append((label, shared + own + shift[:, None] * label, patients))
    return of_folds(folds)


def of_folds(folds: list[Held]) -> Cohorts:
    """Cohorts of these patients; scores are (cohorts, resolutions, patients)."""
    aucs, parts, _ = mean_of_folds(folds)
    influence = np.concatenate(parts, axis=-1) / len(folds)
    covariance = influence @ influence.swapaxes(-1, -2)
    deviation = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    scale = deviation[..., :, None] * deviation[..., None, :]
    found = np.divide(covariance, scale, where=scale > 0, out=np.zeros_like(covariance))
    held_out = [(int(positive.sum()), int((~positive).sum())) for positive, _, _ in folds]
    return Cohorts(aucs.mean(axis=0), deviation, found, held_out)
