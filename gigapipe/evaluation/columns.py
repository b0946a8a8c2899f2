"""The columns of predictions and of the comparison: what tables call them, and how people read the comparison's."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd

UNKNOWN = "unknown"

NAMES = ["slide", "patient", "site", "label", "part", "split"]
"""Of predictions, which may look like numbers: `part` is `TEST` or `VALIDATION`, `split` one of `SPLITS`."""
SLIDE, PATIENT, SITE, LABEL, PART, SPLIT = NAMES

TEST, VALIDATION = "test", "validation"
"""The slides that were held out, and those that chose the epoch, on which thresholds are fixed and nothing else."""

SEED, FOLD = ONE_NETWORK = ["seed", "fold"]
"""What tells networks apart that are `ALIKE`."""

FILE = "network"
"""Of predictions that were read together, the number of each one's file; `NETWORK` is an architecture."""

ALIKE = ["mpp", "method", "canvas", "mesh", "memory", "network", "start"]
"""What networks that differ in seed and fold only have in common: µm per pixel, how it was computed, the side of the
canvas in px, ranks as data × rows × columns, bytes that a rank was told to take (0: no limit), architecture, weights to
begin with."""
MPP, METHOD, CANVAS, MESH, MEMORY, NETWORK, START = ALIKE

SPLITS = {"site": "folds by site", "given": "given folds", "patient": "folds by patient"}
"""What folds do not share. The first that was run is what a row is about, the others stand beside it."""

PIXELS, RANKS = "pixels", "ranks"

SLIDES, PATIENTS, SEEDS, FOLDS = "slides", "patients", "seeds", "folds"
FOLDS_WITHOUT_AUC = "folds_without_auc"
AUC, PATIENT_AUC = "auc", "patient_auc"
DECISION_FIGURES = ["balanced_accuracy", "sensitivity", "specificity"]
BALANCED_ACCURACY, SENSITIVITY, SPECIFICITY = DECISION_FIGURES
AVERAGE_PRECISION, BRIER, CALIBRATION_ERROR = "average_precision", "brier", "calibration_error"
DECISIONS_AND_PROBABILITIES = [AVERAGE_PRECISION, *DECISION_FIGURES, BRIER, CALIBRATION_ERROR]

COARSER, DELTA, P, P_BEST = "coarser", "delta", "p", "p_best"
"""The next coarser µm per pixel, the AUC above that of it and p of that, and p against the best AUC of all."""

COSTS = [
    "parameters",
    "seconds_per_step",
    "seconds_per_slide",
    "images_per_second",
    "peak_memory_per_rank_mb",
    "sent_bytes_per_step",
    "joules_per_step",
]
"""What one network cost; NaN where its training did not say."""
(
    PARAMETERS,
    SECONDS_PER_STEP,
    SECONDS_PER_SLIDE,
    IMAGES_PER_SECOND,
    PEAK_MEMORY,
    SENT_BYTES,
    JOULES,
) = COSTS


def bounds(name: str) -> tuple[str, str]:
    """The columns of a figure's 95 % interval."""
    return f"{name}_low", f"{name}_high"


def sd(name: str, over: str) -> str:
    """The column of a figure's standard deviation over `SEEDS` or `FOLDS`."""
    return f"{name}_sd_{over}"


def of_split(split: str, name: str) -> str:
    """The column of a figure on folds of another split than the row is about."""
    return f"{split}_split_{name}"


def other_splits(table: pd.DataFrame) -> list[str]:
    """Those whose figures a comparison has beside the ones that its rows are about."""
    return [split for split in SPLITS if of_split(split, AUC) in table]


def rank_seconds(rows: pd.DataFrame | pd.Series, seconds: str):
    """Seconds × ranks of rows of a comparison, of a step or of each of its slides: `seconds` is the column."""
    return rows[RANKS] * rows[seconds]


class Column(NamedTuple):
    """A column as people read it: its heading, with the unit, the columns that it is made of, and its text in a row."""

    heading: str
    needs: Sequence[str]
    text: Callable[[dict], str]


def number(value: float, form: str = ".3f") -> str:
    return UNKNOWN if pd.isna(value) else format(value, form)


def interval(row: dict | pd.Series, name: str, deviation: bool = False) -> str:
    """A figure with its 95 % interval, where the table has one; if asked for, with its deviation over seeds."""
    if pd.isna(row[name]):
        return UNKNOWN
    low, high = bounds(name)
    over_seeds = row[sd(name, SEEDS)] if deviation else math.nan
    return (
        f"{row[name]:.3f}"
        + ("" if pd.isna(over_seeds) else f" ± {over_seeds:.3f}")
        + (f" ({_between(row[low], row[high])})" if low in row else "")
    )


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {number(p)}"


def aucs(table: pd.DataFrame, deviation: bool = False) -> list[Column]:
    """The AUC on the folds that the rows are about, and beside it those on folds of other splits."""
    about = f", {SPLITS[table[SPLIT].iloc[0]]}" if SPLIT in table else ""
    folds = {AUC: about} | {of_split(split, AUC): f", {SPLITS[split]}" for split in other_splits(table)}
    return [
        Column(f"AUC{of_folds}", [name], functools.partial(interval, name=name, deviation=deviation))
        for name, of_folds in folds.items()
    ]


def _between(low: float, high: float) -> str:
    return UNKNOWN if pd.isna(low) else f"{low:.3f}–{high:.3f}"


def _gain(row: dict) -> str:
    if pd.isna(row[DELTA]):
        return UNKNOWN if pd.notna(row.get(COARSER)) else "–"
    return f"{row[DELTA]:+.3f} ({p_value(row[P])})".replace("-", "−")


def _networks(row: dict) -> str:
    without = f", {row[FOLDS_WITHOUT_AUC]} of one class" if row.get(FOLDS_WITHOUT_AUC) else ""
    return f"{row[SEEDS]} × {row[FOLDS]}{without}"


def _number(name: str, heading: str, form: str = ".3f", unit: float = 1) -> Column:
    return Column(heading, [name], lambda row: number(row[name] / unit, form))


def _name(name: str, heading: str) -> Column:
    return Column(heading, [name], lambda row: row[name])


_READ = {
    MPP: _number(MPP, "µm/px", "g"),
    METHOD: _name(METHOD, "computed"),
    START: _name(START, "begun with"),
    SLIDES: Column("slides (patients)", [SLIDES, PATIENTS], lambda row: f"{row[SLIDES]} ({row[PATIENTS]})"),
    SEEDS: Column("seeds × folds", [SEEDS, FOLDS], _networks),
    PATIENT_AUC: Column("AUC of patients", [PATIENT_AUC], lambda row: interval(row, PATIENT_AUC)),
    DELTA: Column("Δ AUC to the next coarser", [DELTA, P], _gain),
    AVERAGE_PRECISION: _number(AVERAGE_PRECISION, "average precision"),
    BALANCED_ACCURACY: _number(BALANCED_ACCURACY, "balanced accuracy"),
    SENSITIVITY: _number(SENSITIVITY, "sensitivity"),
    SPECIFICITY: _number(SPECIFICITY, "specificity"),
    BRIER: _number(BRIER, "Brier score"),
    CALIBRATION_ERROR: _number(CALIBRATION_ERROR, "calibration error"),
    CANVAS: Column("canvas, px", [CANVAS], lambda row: f"{row[CANVAS]:,}²"),
    MESH: _name(MESH, "mesh: data × rows × columns"),
    RANKS: _number(RANKS, "ranks", ",.0f"),
    MEMORY: Column("memory limit, GB", [MEMORY], lambda row: f"{row[MEMORY] / 1e9:.3g}" if row[MEMORY] else "none"),
    PARAMETERS: _number(PARAMETERS, "parameters", ",.0f"),
    SECONDS_PER_STEP: _number(SECONDS_PER_STEP, "s a step", ".3g"),
    SECONDS_PER_SLIDE: _number(SECONDS_PER_SLIDE, "s a slide-step", ".3g"),
    IMAGES_PER_SECOND: _number(IMAGES_PER_SECOND, "images a second", ".3g"),
    PEAK_MEMORY: _number(PEAK_MEMORY, "peak memory a rank, MB", ",.0f"),
    SENT_BYTES: _number(SENT_BYTES, "exchanged a step, MB", ".3g", unit=1e6),
    JOULES: _number(JOULES, "energy a step, J", ".3g"),
}


def read(*names: str) -> list[Column]:
    """These columns, or those that begin with these, as people read them; for AUCs of slides see `aucs`."""
    return [_READ[name] for name in names]
