"""What held-out predictions are worth beside their AUC: precision, decisions at a fixed threshold, calibration."""

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, roc_curve

from gigapipe.evaluation.auc import bootstrap_interval, by_patient, mean_auc
from gigapipe.evaluation.targets import Targets, targets_of


def summary(scores: pd.DataFrame, classes: list[str]) -> dict[str, float]:
    """All figures of the networks of one resolution, on one kind of folds; NaN where there is nothing to tell.

    Columns of `scores`: `seed`, `fold`, `part` (`test`, or `validation`: the fold that chose the epoch, which is used
    for thresholds only), `slide`, `patient`, `label`, and of `targets_of` the classes. `low` and `high` are 95 %
    intervals, DeLong's by patients; `bootstrap_low` and `_high` those of drawing patients; `sd_folds` and `sd_seeds`
    are standard deviations over networks and over seeds; `patient_auc` is of patients, by their slides' mean score.
    """
    targets = targets_of(classes)
    test = scores[scores["part"] == "test"]
    of_slides = mean_auc(test, targets)
    patients = by_patient(test, targets)
    of_patients = mean_auc(patients, targets)
    figures = {
        "slides": test["slide"].nunique(),
        "patients": test["patient"].nunique(),
        "seeds": test["seed"].nunique(),
        "folds": test["fold"].nunique(),
        "folds_without_auc": int(of_slides.networks.isna().sum()),
        "auc": of_slides.value,
        "auc_sd_folds": of_slides.networks.std(),
        "auc_sd_seeds": of_slides.networks.groupby("seed").mean().std(),
        "patient_auc": of_patients.value,
    }
    for name, table, found in (("auc", test, of_slides), ("patient_auc", patients, of_patients)):
        figures[f"{name}_low"], figures[f"{name}_high"] = found.interval()
        low, high = bootstrap_interval(table, targets)
        figures[f"{name}_bootstrap_low"], figures[f"{name}_bootstrap_high"] = low, high
    figures["average_precision"] = average_precision(test, targets)
    figures |= decision_figures(decided(scores, classes), classes)
    figures["brier"] = brier(test, targets)
    figures["calibration_error"] = calibration_error(reliability(test, targets))
    return figures


def average_precision(test: pd.DataFrame, targets: Targets) -> float:
    """Mean over networks, as of the AUC; that of chance is the share of positive slides."""
    found = [
        np.mean([average_precision_score(held_out["label"] == name, held_out[c]) for name, c in targets.items()])
        for _, held_out in test.groupby(["seed", "fold"])
        if all(0 < (held_out["label"] == name).sum() < len(held_out) for name in targets)
    ]
    return float(np.mean(found)) if found else np.nan


def threshold(positive: np.ndarray, score: np.ndarray) -> float:
    """From which score on to call a slide positive, for the best balanced accuracy on these; NaN if a class is missing.

    It lies half-way to the next lower score; of several as good, the middle one is taken.
    """
    if len(set(positive)) < 2:
        return np.nan
    false, true, scores = roc_curve(positive, score, drop_intermediate=False)
    best = np.flatnonzero(true - false >= (true - false).max() - 1e-12)
    chosen = best[len(best) // 2]
    return float(scores[chosen : chosen + 2].mean())


def decided(scores: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """The test slides with a column `decided`, the class that each network takes them for.

    Of two classes by its `threshold` on its validation slides, of more by the highest score. Slides of networks without
    a threshold are left out. Decisions of different networks, other than their scores, may be counted together.
    """
    parts = []
    for _, network in scores.groupby(["seed", "fold"]):
        test, validation = (network[network["part"] == part] for part in ("test", "validation"))
        if len(classes) == 2:
            limit = threshold((validation["label"] == classes[1]).to_numpy(), validation["score"].to_numpy())
            if not np.isnan(limit):
                parts.append(test.assign(decided=np.where(test["score"] >= limit, classes[1], classes[0])))
        else:
            highest = test[list(targets_of(classes).values())].to_numpy().argmax(axis=1)
            parts.append(test.assign(decided=np.array(classes)[highest]))
    return pd.concat(parts) if parts else scores.iloc[:0].assign(decided="")


def decision_figures(decisions: pd.DataFrame, classes: list[str]) -> dict[str, float]:
    """Balanced accuracy, and of two classes sensitivity and specificity: over all folds, then the mean over seeds."""
    right = (decisions["decided"] == decisions["label"]).groupby([decisions["seed"], decisions["label"]]).mean()
    recall = right.unstack().reindex(columns=classes)
    figures = {"balanced_accuracy": recall.mean(axis=1, skipna=False).mean(), "sensitivity": np.nan}
    figures["specificity"] = np.nan
    if len(classes) == 2:
        figures["specificity"], figures["sensitivity"] = recall[classes[0]].mean(), recall[classes[1]].mean()
    return {name: float(value) for name, value in figures.items()}


def confusion(decisions: pd.DataFrame, classes: list[str]) -> pd.DataFrame:
    """Slides by label (rows) and decision (columns), of all folds and seeds together."""
    counts = pd.crosstab(decisions["label"], decisions["decided"])
    return counts.reindex(index=classes, columns=classes, fill_value=0)


def brier(test: pd.DataFrame, targets: Targets) -> float:
    """Mean squared distance of probabilities from what came true, over all slides; summed over more than two classes.

    0 is perfect; who always says one half has 0.25 of two classes.
    """
    truth = np.stack([test["label"] == name for name in targets], axis=1)
    return float(((test[list(targets.values())].to_numpy() - truth) ** 2).sum(axis=1).mean())


def reliability(test: pd.DataFrame, targets: Targets, bins: int = 10) -> pd.DataFrame:
    """How often what was predicted came true, in `bins` of equal width, of which empty ones are left out.

    Columns: `low`, `high`, `slides`, `predicted` (the mean), `observed` (the share). Probabilities of different
    networks, other than their ranks, may be counted together, and so may those of more than two classes.
    """
    said = test[list(targets.values())].to_numpy().ravel()
    truth = np.stack([test["label"] == name for name in targets], axis=1).ravel()
    bin_of = np.minimum((said * bins).astype(int), bins - 1)
    table = pd.DataFrame({"bin": bin_of, "predicted": said, "observed": truth.astype(float)}).groupby("bin")
    means = table.mean().assign(slides=table.size()).reset_index()
    means["low"], means["high"] = means["bin"] / bins, (means["bin"] + 1) / bins
    return means[["low", "high", "slides", "predicted", "observed"]]


def calibration_error(bins: pd.DataFrame) -> float:
    """Mean distance of `observed` from `predicted`, by slides ("expected calibration error", Naeini et al. 2015)."""
    return float(np.average((bins["observed"] - bins["predicted"]).abs(), weights=bins["slides"]))
