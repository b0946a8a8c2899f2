"""Decisions: which class each slide is taken for, by what rule, and how often that is right."""

import numpy as np
import pandas as pd

from gigapipe.evaluation.columns import (
    BALANCED_ACCURACY,
    DECISION_FIGURES,
    LABEL,
    ONE_NETWORK,
    PART,
    SEED,
    SENSITIVITY,
    SPECIFICITY,
    TEST,
    VALIDATION,
)
from gigapipe.evaluation.targets import SCORE, targets_of

DECIDED, FROM = "decided", "from"
"""The columns with the class that a slide is taken for, and, of two classes, from which score on it is the second."""


def rule(classes: list[str]) -> str:
    """How `decided` decides, in words."""
    if len(classes) == 2:
        return "at a threshold chosen on each network's validation slides"
    return "by the largest probability"


def threshold(positive: np.ndarray, score: np.ndarray) -> float:
    """From which score on to call a slide positive, for the best balanced accuracy on these; NaN if a class is missing.

    It lies half-way to the next lower score; of several as good, the middle one is taken.
    """
    from sklearn.metrics import roc_curve  # slow to import, and figures need confusion only

    if len(set(positive)) < 2:
        return np.nan
    false, true, scores = roc_curve(positive, score, drop_intermediate=False)
    best = np.flatnonzero(true - false >= (true - false).max() - 1e-12)
    chosen = best[len(best) // 2]
    return float(scores[chosen : chosen + 2].mean())


def decided(scores: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """The test slides of networks that are alike, with a column `decided`, the class that each takes them for; of two
    classes with a column `from`, the score from which on that is the second.

    Of two classes by its `threshold` on its validation slides, of more by the highest score. Slides of networks without
    a threshold are left out. Decisions of different networks, other than their scores, may be counted together.
    """
    parts = []
    for _, network in scores.groupby(ONE_NETWORK):
        test, validation = (network[network[PART] == part] for part in (TEST, VALIDATION))
        if len(classes) == 2:
            limit = threshold((validation[LABEL] == classes[1]).to_numpy(), validation[SCORE].to_numpy())
            if not np.isnan(limit):
                taken = np.where(test[SCORE] >= limit, classes[1], classes[0])
                parts.append(test.assign(**{DECIDED: taken}).assign(**{FROM: limit}))
        else:
            highest = test[list(targets_of(classes).values())].to_numpy().argmax(axis=1)
            parts.append(test.assign(**{DECIDED: np.array(classes)[highest]}))
    return pd.concat(parts) if parts else scores.iloc[:0].assign(**{DECIDED: ""})


def decision_figures(decisions: pd.DataFrame, classes: list[str]) -> dict[str, float]:
    """Balanced accuracy, and of two classes sensitivity and specificity: over all folds, then the mean over seeds."""
    right = (decisions[DECIDED] == decisions[LABEL]).groupby([decisions[SEED], decisions[LABEL]]).mean()
    recall = right.unstack().reindex(columns=classes)
    figures = dict.fromkeys(DECISION_FIGURES, np.nan)
    figures[BALANCED_ACCURACY] = recall.mean(axis=1, skipna=False).mean()
    if len(classes) == 2:
        figures[SPECIFICITY], figures[SENSITIVITY] = recall[classes[0]].mean(), recall[classes[1]].mean()
    return {name: float(value) for name, value in figures.items()}


def confusion(decisions: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Slides by label (rows) and decision (columns), of all folds and seeds together."""
    counts = pd.crosstab(decisions[LABEL], decisions[DECIDED])
    return counts.reindex(index=classes, columns=classes, fill_value=0)
