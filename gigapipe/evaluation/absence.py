"""Why figures of a comparison are not there: NaN is no value, and no reader should have to guess."""

from typing import Any

import pandas as pd

from gigapipe.evaluation.columns import (
    AUC,
    AVERAGE_PRECISION,
    BALANCED_ACCURACY,
    COARSER,
    COSTS,
    DELTA,
    FOLDS,
    PATIENT_AUC,
    PATIENTS_NEEDED,
    PATIENTS_OF_SEVERAL_LABELS,
    RIVAL,
    RIVAL_METHOD,
    SEEDS,
    SENSITIVITY,
    SPECIFICITY,
    SPLITS,
    TO_BEST,
    P,
    bounds,
    low_of_all,
    of_split,
    sd,
)

NO_AUC = "no test fold has slides of all classes"
ONE_PATIENT = "a class has only one patient"
NOT_PAIRED = "not tested on the same slides"


def reasons(row: dict[Any, Any], classes: int, alone: bool, not_needed: str) -> dict[str, str]:
    """Of each NaN in a row of `compare` why it is one.

    `classes` is how many there are, `alone` whether the row has no other to be compared with, and `not_needed` why it
    is not said how many patients a recommendation needs.
    """
    known = {PATIENTS_NEEDED: not_needed}
    if alone:
        known |= dict.fromkeys([TO_BEST, *bounds(TO_BEST), RIVAL, RIVAL_METHOD], "no other resolution")
    empty = [str(name) for name, value in row.items() if pd.isna(value)]
    return {name: known.get(name) or _reason(name, row, classes) for name in empty}


def _reason(name: str, row: dict[Any, Any], classes: int) -> str:
    prefix = next((of_split(split, "") for split in SPLITS if name.startswith(of_split(split, ""))), "")
    name, auc = name.removeprefix(prefix), row[prefix + AUC]
    if name in COSTS:
        return "not measured"
    if name.startswith(PATIENT_AUC) and (mixed := row[prefix + PATIENTS_OF_SEVERAL_LABELS]):
        return f"{mixed:.0f} of the patients have slides of several labels"
    if name in (BALANCED_ACCURACY, SENSITIVITY, SPECIFICITY):
        if classes > 2 and name != BALANCED_ACCURACY:
            return "defined for two classes only"
        return "no network has validation slides of all classes"
    if name in (COARSER, DELTA, *bounds(DELTA), P):
        if pd.isna(row[prefix + COARSER]):
            return "there is no coarser resolution"
        if pd.isna(auc):
            return NO_AUC
        if pd.isna(row[prefix + DELTA]):
            return NOT_PAIRED
        return ONE_PATIENT if pd.isna(row[prefix + bounds(DELTA)[0]]) else "the classes are perfectly separated"
    if pd.isna(auc):
        return NO_AUC
    if name == sd(AUC, SEEDS):
        return "one seed"
    if name == sd(AUC, FOLDS):
        return "one network"
    if name.endswith(bounds("bootstrap")):
        return "all bootstrap samples have the same AUC"
    if name in (*bounds(AUC), *bounds(PATIENT_AUC), low_of_all(AUC)):
        return ONE_PATIENT
    if name in (TO_BEST, *bounds(TO_BEST), RIVAL, RIVAL_METHOD):
        return NOT_PAIRED if pd.isna(row[TO_BEST]) else ONE_PATIENT
    return NO_AUC if name == AVERAGE_PRECISION else "not computed"
