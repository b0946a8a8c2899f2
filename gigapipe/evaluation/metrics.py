"""The area under the ROC curve over folds, with an interval that respects patients."""

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score


def fold_auc(predictions: pd.DataFrame) -> float:
    """Mean over folds of the AUC of each fold's held-out slides; NaN if no fold has both classes.

    Columns: `fold`, `positive` (bool), `score`. Scores of different folds come from different models and are
    never ranked against each other.
    """
    values = [
        roc_auc_score(held_out["positive"], held_out["score"])
        for _, held_out in predictions.groupby("fold")
        if held_out["positive"].nunique() == 2
    ]
    return float(np.mean(values)) if values else float("nan")


def auc_interval(
    predictions: pd.DataFrame, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of `fold_auc`, drawing patients (with all their slides) within each fold.

    Also needs the column `patient`. Slides of one patient are alike; drawing slides would make it too narrow.
    """
    rng = np.random.default_rng(seed)
    folds = []
    for _, held_out in predictions.groupby("fold"):
        patient, names = pd.factorize(held_out["patient"])
        folds.append((held_out["positive"].to_numpy(), held_out["score"].to_numpy(), patient, len(names)))
    values = []
    for _ in range(resamples):
        drawn = []
        for positive, score, patient, patients in folds:
            # A patient drawn twice counts twice: as a weight, which is the same and far quicker than a copy.
            weight = np.bincount(rng.integers(0, patients, patients), minlength=patients)[patient]
            if weight[positive].any() and weight[~positive].any():
                drawn.append(roc_auc_score(positive, score, sample_weight=weight))
        if drawn:
            values.append(np.mean(drawn))
    tail = (1 - level) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)
