"""Slides of other cohorts: what the networks of all folds say of them together, beside what each said of its test fold.

On its test fold every network is alone, whereas other slides are scored by all of them, and the mean of several
networks is usually better than one. So the drop is of single networks: their mean AUC on test folds, less that there.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import ndtri

from gigapipe.disks import raise_passing
from gigapipe.errors import InputError
from gigapipe.evaluation.auc import MeanAuc, mean_auc
from gigapipe.evaluation.columns import (
    AUC,
    BRIER,
    CALIBRATION_ERROR,
    FOLD,
    IDENTITY,
    LABEL,
    METHOD_NAME,
    MPP,
    NAMES,
    NETWORKS,
    ONE_NETWORK,
    PART,
    PATIENT,
    PATIENTS,
    SEED,
    SLIDE,
    SLIDES,
    SPLIT,
    SPLITS,
    TEST,
    Column,
    bounds,
    signed_interval,
    without_unnamed,
)
from gigapipe.evaluation.comparison_text import cells, in_markdown
from gigapipe.evaluation.intervals import difference_limits
from gigapipe.evaluation.metrics import brier, calibration_error, reliability
from gigapipe.evaluation.targets import Targets, targets_of
from gigapipe.slides.written_tables import read_written

FILE = "external.tsv"
"""Where the table lies, beside comparison.tsv."""
COHORT, ALONE, DROP = "cohort", "single_network_auc", "drop"
"""Columns: the name of the other cohort, the mean AUC there of single networks, and how far it is below that of test
folds."""
INSIDE = "internal"
Z = float(ndtri(0.975))

NOTE = (
    "An external cohort's slides are scored by the networks of all folds and seeds; a slide's score is the mean of "
    "their probabilities, each calibrated by temperature scaling on the slides that its network was not trained on. "
    "AUC, Brier score and calibration error are of this mean. Internal figures are of single networks on their test "
    "slides, not calibrated. The drop compares like with like: the internal AUC minus the mean AUC of single networks "
    "on the external slides; above 0 it is worse there. Brackets show 95 % confidence intervals (DeLong, with slides "
    "clustered by patient; of the drop, from the limits of both, as the cohorts share no patient)."
)


def internal(column: str) -> str:
    """The column of the same figure on test folds."""
    return f"{INSIDE}_{column}"


def read_external(paths: list[Path]) -> pd.DataFrame:
    """What `gigapipe predict-external` wrote for several resolutions and cohorts: a row for each network and slide."""
    tables = []
    for path in paths:
        try:
            names = dict.fromkeys([*NAMES, COHORT, METHOD_NAME, IDENTITY], str)
            tables.append(read_written(path, dtype=names, keep_default_na=False))
        except (OSError, ValueError) as error:
            raise_passing(error)
            raise InputError(
                f"external predictions {path}: cannot be read ({error}); make them with `gigapipe predict-external`"
            ) from None
    return pd.concat(tables, ignore_index=True).fillna({METHOD_NAME: ""})


def compare_external(scores: pd.DataFrame, external: pd.DataFrame) -> pd.DataFrame:
    """A row for each cohort, resolution and method, in the order of `external`, coarsest resolution first.

    `scores` are those of `read_networks`, `external` those of `read_external`. Columns: `cohort`, `mpp`, `method_name`,
    `split` (of the folds with which it is compared), `slides`, `patients`, `networks` (how many), `auc`, `brier` and
    `calibration_error` of the networks' mean, `single_network_auc`, `drop`, the same figures on test folds
    (`internal_auc`, …), and the 95 % limits of AUCs and drop. NaN where a class is missing or has one patient only.
    InputError if the networks are not those of `scores`.
    """
    split = next(split for split in SPLITS if (scores[SPLIT] == split).any())
    inside = scores[(scores[SPLIT] == split) & (scores[PART] == TEST)]
    targets = targets_of(sorted(scores[LABEL].unique()))
    rows = []
    for (cohort, mpp, method), there in external.groupby([COHORT, MPP, METHOD_NAME], sort=False):
        here = inside[(inside[MPP] == mpp) & (inside[METHOD_NAME] == method)]
        strangers = set(there[IDENTITY]) ^ set(here.get(IDENTITY, [""]))
        if here.empty or strangers - {""}:
            raise InputError(
                f"external predictions of {cohort} at {mpp:g} µm/px: are not from the compared networks; predict again"
            )
        rows.append({COHORT: cohort, MPP: mpp, METHOD_NAME: method, SPLIT: split} | _figures(here, there, targets))
    table = pd.DataFrame(rows).sort_values([COHORT, MPP], ascending=[True, False], kind="stable", ignore_index=True)
    return without_unnamed(table)


def _figures(here: pd.DataFrame, there: pd.DataFrame, targets: Targets) -> dict[str, float]:
    # All networks are tested on the same patients: in one fold.
    alone = there.assign(**{SEED: there.groupby(ONE_NETWORK).ngroup(), FOLD: 0})
    together = there.groupby([SLIDE, PATIENT, LABEL], as_index=False, sort=False)[list(targets.values())].mean()
    together = together.assign(**{SEED: 0, FOLD: 0})
    of_mean, of_alone, of_folds = (mean_auc(table, targets) for table in (together, alone, here))
    drop = difference_limits(of_folds.limits(Z), of_alone.limits(Z), 0.0)
    figures: dict[str, float] = {
        SLIDES: there[SLIDE].nunique(),
        PATIENTS: there[PATIENT].nunique(),
        NETWORKS: there.groupby(ONE_NETWORK).ngroups,
    }
    figures |= _with_limits(AUC, of_mean) | _probabilities(together, targets)
    figures |= _with_limits(ALONE, of_alone)
    inside = _with_limits(AUC, of_folds) | _probabilities(here, targets)
    figures |= {internal(name): value for name, value in inside.items()}
    return figures | dict(zip([DROP, *bounds(DROP)], map(float, drop), strict=True))


def _with_limits(name: str, found: MeanAuc) -> dict[str, float]:
    return dict(zip([name, *bounds(name)], map(float, found.limits(Z)), strict=True))


def _probabilities(table: pd.DataFrame, targets: Targets) -> dict[str, float]:
    """What probabilities are worth, which of different networks may be counted together."""
    return {BRIER: brier(table, targets), CALIBRATION_ERROR: calibration_error(reliability(table, targets))}


def columns(table: pd.DataFrame) -> list[Column]:
    """As people read the table."""
    method = [Column("method", [METHOD_NAME], lambda row: row[METHOD_NAME])] if METHOD_NAME in table else []
    about = SPLITS[table[SPLIT].iloc[0]]
    return [
        Column("µm/px", [MPP], lambda row: f"{row[MPP]:g}"),
        *method,
        Column("external cohort", [COHORT], lambda row: row[COHORT]),
        Column("slides (patients)", [SLIDES, PATIENTS], lambda row: f"{row[SLIDES]} ({row[PATIENTS]})"),
        Column(f"internal AUC, {about}", [internal(AUC)], lambda row: _auc(row, internal(AUC))),
        Column("external AUC, all networks", [AUC], lambda row: _auc(row, AUC)),
        Column("external AUC, single networks", [ALONE], lambda row: _auc(row, ALONE)),
        Column("drop", [DROP], partial(signed_interval, name=DROP, missing="unknown")),
        *(
            Column(f"{what}: internal, external", [name], lambda row, name=name: _both(row, name))
            for what, name in (("calibration error", CALIBRATION_ERROR), ("Brier score", BRIER))
        ),
    ]


def as_markdown(table: pd.DataFrame) -> str:
    """The table for people, and what its columns mean."""
    return "\n".join([*in_markdown(cells(table, columns(table))), "", NOTE]) + "\n"


def _auc(row: dict, name: str) -> str:
    low, high = bounds(name)
    if np.isnan(row[name]):
        return "none: a class is missing"
    limits = "no interval: one patient of a class" if np.isnan(row[low]) else f"{row[low]:.3f}–{row[high]:.3f}"
    return f"{row[name]:.3f} ({limits})"


def _both(row: dict, name: str) -> str:
    return f"{row[internal(name)]:.3f}, {row[name]:.3f}"
