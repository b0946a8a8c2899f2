"""What held-out predictions are worth: AUC, precision, decisions at a fixed threshold, calibration."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score

from gigapipe.evaluation.auc import bootstrap_interval, by_patient, mean_auc, of_several_labels
from gigapipe.evaluation.columns import (
    AUC,
    AVERAGE_PRECISION,
    BRIER,
    CALIBRATION_ERROR,
    FOLD,
    FOLDS,
    FOLDS_WITHOUT_AUC,
    INTERVAL_METHOD,
    LABEL,
    ONE_NETWORK,
    PART,
    PATIENT,
    PATIENT_AUC,
    PATIENTS,
    PATIENTS_OF_SEVERAL_LABELS,
    SEED,
    SEEDS,
    SLIDE,
    SLIDES,
    TEST,
    bounds,
    sd,
)
from gigapipe.evaluation.decisions import decided, decision_figures
from gigapipe.evaluation.targets import Targets, targets_of


def summary(scores: pd.DataFrame, classes: list[str]) -> dict[str, Any]:
    """All figures of the networks of one resolution, on one kind of folds; NaN where there is nothing to tell.

    Columns of `scores`: `seed`, `fold`, `part` (`test`, or `validation`: the fold that chose the epoch, which is used
    for thresholds only), `slide`, `patient`, `label`, and of `targets_of` the classes. `low` and `high` are 95 %
    intervals, DeLong's by patients, and `auc_interval_method` how variances were found; `bootstrap_low` and `_high`
    those of drawing patients; `sd_folds` and `sd_seeds` are standard deviations over networks and over seeds;
    `patient_auc` is of patients, by their slides' mean score, and NaN if any has slides of several labels.
    """
    targets = targets_of(classes)
    test = scores[scores[PART] == TEST]
    tables = {AUC: test}
    mixed = of_several_labels(test)
    if not mixed:
        tables[PATIENT_AUC] = by_patient(test, targets)
    found = {name: mean_auc(table, targets) for name, table in tables.items()}
    of_slides = found[AUC]
    figures = {
        SLIDES: test[SLIDE].nunique(),
        PATIENTS: test[PATIENT].nunique(),
        PATIENTS_OF_SEVERAL_LABELS: mixed,
        SEEDS: test[SEED].nunique(),
        FOLDS: test[FOLD].nunique(),
        FOLDS_WITHOUT_AUC: int(of_slides.networks.isna().sum()),
        AUC: of_slides.value,
        INTERVAL_METHOD: of_slides.method,
        sd(AUC, FOLDS): of_slides.networks.std(),
        sd(AUC, SEEDS): of_slides.networks.groupby(SEED).mean().std(),
        PATIENT_AUC: found[PATIENT_AUC].value if PATIENT_AUC in found else np.nan,
    }
    for name in (AUC, PATIENT_AUC):
        within = drawn = np.nan, np.nan
        if name in found:
            within, drawn = found[name].interval(), bootstrap_interval(tables[name], targets)
        figures |= dict(zip(bounds(name), within, strict=True))
        figures |= dict(zip(bounds(f"{name}_bootstrap"), drawn, strict=True))
    figures[AVERAGE_PRECISION] = average_precision(test, targets)
    figures |= decision_figures(decided(scores, classes), classes)
    figures[BRIER] = brier(test, targets)
    figures[CALIBRATION_ERROR] = calibration_error(reliability(test, targets))
    return figures


def average_precision(test: pd.DataFrame, targets: Targets) -> float:
    """Mean over networks, as of the AUC; that of chance is the share of positive slides."""
    found = [
        np.mean([average_precision_score(held_out[LABEL] == name, held_out[c]) for name, c in targets.items()])
        for _, held_out in test.groupby(ONE_NETWORK)
        if all(0 < (held_out[LABEL] == name).sum() < len(held_out) for name in targets)
    ]
    return float(np.mean(found)) if found else np.nan


def brier(test: pd.DataFrame, targets: Targets) -> float:
    """Mean squared distance of probabilities from what came true, over all slides; summed over more than two classes.

    0 is perfect; who always says one half has 0.25 of two classes.
    """
    truth = np.stack([test[LABEL] == name for name in targets], axis=1)
    return float(((test[list(targets.values())].to_numpy() - truth) ** 2).sum(axis=1).mean())


def reliability(test: pd.DataFrame, targets: Targets, bins: int = 10) -> pd.DataFrame:
    """How often what was predicted came true, in `bins` of equal width, of which empty ones are left out.

    Columns: `low`, `high`, `slides`, `predicted` (the mean), `observed` (the share). Probabilities of different
    networks, other than their ranks, may be counted together, and so may those of more than two classes.
    """
    said = test[list(targets.values())].to_numpy().ravel()
    truth = np.stack([test[LABEL] == name for name in targets], axis=1).ravel()
    bin_of = np.minimum((said * bins).astype(int), bins - 1)
    table = pd.DataFrame({"bin": bin_of, "predicted": said, "observed": truth.astype(float)}).groupby("bin")
    means = table.mean().assign(slides=table.size()).reset_index()
    means["low"], means["high"] = means["bin"] / bins, (means["bin"] + 1) / bins
    return means[["low", "high", "slides", "predicted", "observed"]]


def calibration_error(bins: pd.DataFrame) -> float:
    """Mean distance of `observed` from `predicted`, by slides ("expected calibration error", Naeini et al. 2015)."""
    return float(np.average((bins["observed"] - bins["predicted"]).abs(), weights=bins["slides"]))
