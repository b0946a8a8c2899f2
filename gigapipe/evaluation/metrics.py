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
    folds = [[slides for _, slides in held_out.groupby("patient")] for _, held_out in predictions.groupby("fold")]
    values = []
    for _ in range(resamples):
        drawn = [patients[i] for patients in folds for i in rng.integers(0, len(patients), len(patients))]
        values.append(fold_auc(pd.concat(drawn)))
    tail = (1 - level) / 2
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)
