"""The columns of predictions and of the comparison: what tables call them, and how people read the comparison's."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from gigapipe.plural import counted

UNKNOWN = "unknown"
NOT_KNOWN = "not known"

NAMES = ["slide", "patient", "site", "label", "part", "split"]
"""Of predictions, which may look like numbers: `part` is `TEST` or `VALIDATION`, `split` one of `SPLITS`."""
SLIDE, PATIENT, SITE, LABEL, PART, SPLIT = NAMES

IDENTITY, MD5 = BELONGS = ["identity", "md5"]
"""Of predictions: the digest of the network, and the MD5 of the slide's file; see identity.py. Digits, perhaps."""

TEST, VALIDATION = "test", "validation"
"""The slides that were held out, and those that chose the epoch, on which thresholds are fixed and nothing else."""

SEED, FOLD = ONE_NETWORK = ["seed", "fold"]
"""What tells networks apart that are `ALIKE`."""

NUMBER, PREDICTED, TARGET = "number", "predicted", "target"
"""Of predictions of numbers: what it is, what was predicted, and the number's name."""

FILE = "network"
"""Of predictions that were read together, the number of each one's file; `NETWORK` is an architecture."""

ALIKE = ["mpp", "method", "canvas", "mesh", "memory", "network", "start", "method_name"]
"""What networks that differ in seed and fold only have in common: µm per pixel, how it was computed, the side of the
canvas in px, ranks as data × rows × columns, bytes that a rank was told to take (0: no limit), architecture, weights to
begin with, and the name of the config's method, which tables have only where there are any."""
MPP, METHOD, CANVAS, MESH, MEMORY, NETWORK, START, METHOD_NAME = ALIKE

ONE_CANDIDATE = [MPP, CANVAS, NETWORK, START, METHOD_NAME]
"""What rows of one network have in common, however it was computed: the same weights, up to rounding."""

SPLITS = {"site": "folds by site", "given": "given folds", "patient": "folds by patient"}
"""What folds do not share. The first that was run is what a row is about, the others stand beside it."""

NETWORKS = "networks"
PROBABILITY_OF = "probability of "
"""How the columns begin, in what is told of single slides, that have the probabilities of classes."""
"""The digests of a row's networks, with spaces between; `UNKNOWN` stands for those that have none."""

PIXELS, RANKS = "pixels", "ranks"

SLIDES, PATIENTS, SEEDS, FOLDS = "slides", "patients", "seeds", "folds"
PATIENTS_OF_SEVERAL_LABELS = "patients_of_several_labels"
FOLDS_WITHOUT_AUC = "folds_without_auc"
AUC, PATIENT_AUC = "auc", "patient_auc"
DECISION_FIGURES = ["balanced_accuracy", "sensitivity", "specificity"]
BALANCED_ACCURACY, SENSITIVITY, SPECIFICITY = DECISION_FIGURES
AVERAGE_PRECISION, BRIER, CALIBRATION_ERROR = "average_precision", "brier", "calibration_error"
DECISIONS_AND_PROBABILITIES = [AVERAGE_PRECISION, *DECISION_FIGURES, BRIER, CALIBRATION_ERROR]

R2, SPEARMAN, ABSOLUTE_ERROR = NUMBER_FIGURES = ["r2", "spearman", "mean_absolute_error"]
"""What predictions of numbers are worth."""

FLAGGED, FLAGS = "flagged", "flags"
"""How many of a row's networks have learnt nothing that validation could see, and which; see learning.py."""

INTERVAL_METHOD = "auc_interval_method"
"""How the AUC's variance was found, by one of these: see `auc.mean_of_folds`."""
BY_FOLD, POOLED = "DeLong", "DeLong, deviations pooled over folds"

COARSER, DELTA, P = "coarser", "delta", "p"
"""The next coarser µm per pixel, the AUC, or R², above that of it and p of that."""

TO_BEST, RIVAL, RIVAL_METHOD = "to_best", "rival", "rival_method"
"""The AUC, or R², above the best of the other resolutions, and the µm per pixel, and method, of the one that it may be
furthest below."""
MARGIN, PATIENTS_NEEDED = "margin", "patients_needed"

MISSING = "missing"
"""Why columns are empty in a row, as `not measured: joules_per_step, sent_bytes_per_step; one seed: auc_sd_seeds`."""

COSTS = [
    "parameters",
    "seconds_per_step",
    "seconds_per_slide",
    "training_seconds",
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
    TRAINING_SECONDS,
    IMAGES_PER_SECOND,
    PEAK_MEMORY,
    SENT_BYTES,
    JOULES,
) = COSTS

PRECISION, ENERGY_COUNTED = OF_COSTS = ["precision", "energy_counted"]
"""The number format of activations; whose energy `JOULES` are: `processors`, `cards`, `processors and cards`, or
`UNKNOWN`."""


def bounds(name: str) -> tuple[str, str]:
    """The columns of a figure's 95 % interval."""
    return f"{name}_low", f"{name}_high"


def low_of_all(name: str) -> str:
    """The column of a figure's lower limit that holds for all rows together."""
    return f"{name}_low_of_all"


def networks_of(scores: pd.DataFrame) -> str:
    """What stands in `NETWORKS`."""
    return " ".join(sorted(set(scores.get(IDENTITY, pd.Series(""))))).strip() or UNKNOWN


def sd(name: str, over: str) -> str:
    """The column of a figure's standard deviation over `SEEDS` or `FOLDS`."""
    return f"{name}_sd_{over}"


def of_split(split: str, name: str) -> str:
    """The column of a figure on folds of another split than the row is about."""
    return f"{split}_split_{name}"


CHANCE = 0.5
"""The AUC of who knows nothing."""


class Main(NamedTuple):
    """The figure by which resolutions are compared."""

    name: str
    """Its column."""
    heading: str
    chance: float
    """What who knows nothing reaches."""


def main_figure(table: pd.DataFrame) -> Main:
    """That of a comparison: of classes the AUC, of numbers R²."""
    return Main(R2, "R²", 0.0) if R2 in table else Main(AUC, "AUC", CHANCE)


def other_splits(table: pd.DataFrame) -> list[str]:
    """Those whose figures a comparison has beside the ones that its rows are about."""
    return [split for split in SPLITS if of_split(split, main_figure(table).name) in table]


def cost_column(table: pd.DataFrame | pd.Series) -> str:
    """The column of seconds by which rows are compared in cost: of a training step or, as methods differ in how many
    these are and in what, of a training.
    """
    return TRAINING_SECONDS if METHOD_NAME in table else SECONDS_PER_STEP


def rank_seconds(rows: pd.DataFrame | pd.Series, seconds: str):
    """Seconds × ranks of rows of a comparison, of a step or of each of its slides: `seconds` is the column."""
    return rows[RANKS] * rows[seconds]


class Column(NamedTuple):
    """A column as people read it: its heading, with the unit, the columns that it is made of, and its text in a row."""

    heading: str
    needs: Sequence[str]
    text: Callable[[dict], str]


def names_of(table: pd.DataFrame) -> list[str]:
    """The columns that name what is compared: resolutions and, where there are several methods, these, too."""
    return [MPP, METHOD_NAME] if METHOD_NAME in table else [MPP]


def named(row: Any) -> str:
    """Of a row, or of what has the values of `names_of`, what is compared: `8 µm/px`, or `probe, 8 µm/px`."""
    mpp, *method = row
    return ", ".join([*method, f"{mpp:g} µm/px"])


def without_unnamed(table: pd.DataFrame) -> pd.DataFrame:
    """Without the columns of methods' names, where the config has none."""
    if (table[METHOD_NAME] == "").all():
        return table.drop(columns=[METHOD_NAME, RIVAL_METHOD], errors="ignore")
    return table


def as_missing(reasons: dict[str, str]) -> str:
    """What stands in `MISSING`, from the reason of each empty column."""
    columns: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        columns.setdefault(reason, []).append(name)
    return "; ".join(f"{reason}: {', '.join(names)}" for reason, names in columns.items())


def why_missing(row: dict | pd.Series, name: str) -> str:
    """Why a column is empty in a row; tables that were made before they had reasons do not say."""
    for group in str(row.get(MISSING, "")).split("; "):
        reason, _, names = group.rpartition(": ")
        if name in names.split(", "):
            return reason
    return UNKNOWN


def number(row: dict | pd.Series, name: str, form: str = ".3f", unit: float = 1) -> str:
    return why_missing(row, name) if pd.isna(row[name]) else format(row[name] / unit, form)


def signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def signed_interval(row: dict, name: str, missing: str) -> str:
    """A difference with its 95 % interval, or what is said where it is `missing`."""
    if pd.isna(row[name]):
        return missing
    low, high = bounds(name)
    limits = "no interval" if pd.isna(row[low]) else f"{signed(row[low])} to {signed(row[high])}"
    return f"{signed(row[name])} ({limits})"


def interval(row: dict | pd.Series, name: str, deviation: bool = False) -> str:
    """A figure with its 95 % interval, where the table has one; if asked for, with its deviation over seeds."""
    if pd.isna(row[name]):
        return why_missing(row, name)
    low, high = bounds(name)
    over_seeds = row[sd(name, SEEDS)] if deviation else math.nan
    return (
        f"{row[name]:.3f}"
        + ("" if pd.isna(over_seeds) else f" ± {over_seeds:.3f}")
        + (f" ({_between(row, low, high)})" if low in row else "")
    )


def aucs(table: pd.DataFrame, deviation: bool = False) -> list[Column]:
    """The AUC, or R², on the folds that the rows are about, and beside it those on folds of other splits."""
    about = f", {SPLITS[table[SPLIT].iloc[0]]}" if SPLIT in table else ""
    main = main_figure(table)
    folds = {main.name: about} | {of_split(split, main.name): f", {SPLITS[split]}" for split in other_splits(table)}
    return [
        Column(f"{main.heading}{of_folds}", [name], functools.partial(interval, name=name, deviation=deviation))
        for name, of_folds in folds.items()
    ]


def more_figures(table: pd.DataFrame) -> list[Column]:
    """What beside it says what a resolution is worth, and how variances were found, where that is not as usual."""
    pooled = INTERVAL_METHOD in table and (table[INTERVAL_METHOD] == POOLED).any()
    return read(SPEARMAN, ABSOLUTE_ERROR) if R2 in table else read(*[INTERVAL_METHOD] * bool(pooled), PATIENT_AUC)


def gains(table: pd.DataFrame) -> list[Column]:
    """What a resolution is worth above the next coarser one, and the best of the others."""
    heading = main_figure(table).heading
    return [column._replace(heading=f"Δ {heading} {column.heading}") for column in read(DELTA, TO_BEST)]


def _between(row: dict | pd.Series, low: str, high: str) -> str:
    if pd.isna(row[low]):
        return f"no interval: {why_missing(row, low)}"
    return f"{row[low]:.3f}–{row[high]:.3f}"


def _gain(row: dict) -> str:
    if pd.isna(row[DELTA]):
        return why_missing(row, DELTA)
    p = f"no p: {why_missing(row, P)}" if pd.isna(row[P]) else f"p = {row[P]:.3f}" if row[P] >= 0.001 else "p < 0.001"
    return f"{signed(row[DELTA])} ({p})"


def _to_best(row: dict) -> str:
    if pd.isna(row[TO_BEST]):
        return why_missing(row, TO_BEST)
    low, high = bounds(TO_BEST)
    limits = (
        f"no limits: {why_missing(row, low)}" if pd.isna(row[low]) else f"{signed(row[low])} to {signed(row[high])}"
    )
    return f"{signed(row[TO_BEST])} ({limits})"


def _of_patients(row: dict) -> str:
    """The AUC of patients; where some have slides of several labels, that is why there is none."""
    mixed = row.get(PATIENTS_OF_SEVERAL_LABELS)
    return f"none: {counted(int(mixed), 'patient')} with several labels" if mixed else interval(row, PATIENT_AUC)


def _networks(row: dict) -> str:
    without = f", {row[FOLDS_WITHOUT_AUC]} of one class" if row.get(FOLDS_WITHOUT_AUC) else ""
    return f"{row[SEEDS]} × {row[FOLDS]}{without}"


def _energy(row: dict) -> str:
    counted = row.get(ENERGY_COUNTED, UNKNOWN)
    return number(row, JOULES, ".3g") + (f" ({counted})" if counted != UNKNOWN else "")


def _flagged(row: dict) -> str:
    return f"{row[FLAGGED]:.0f}{', not known for others' if NOT_KNOWN in row[FLAGS] else ''}"


def _number(name: str, heading: str, form: str = ".3f", unit: float = 1) -> Column:
    return Column(heading, [name], lambda row: number(row, name, form, unit))


def _name(name: str, heading: str) -> Column:
    return Column(heading, [name], lambda row: row[name])


_READ = {
    MPP: _number(MPP, "µm/px", "g"),
    METHOD_NAME: _name(METHOD_NAME, "method"),
    METHOD: _name(METHOD, "computed as"),
    START: _name(START, "initial weights"),
    SLIDES: Column("slides (patients)", [SLIDES, PATIENTS], lambda row: f"{row[SLIDES]} ({row[PATIENTS]})"),
    SEEDS: Column("seeds × folds", [SEEDS, FOLDS], _networks),
    FLAGGED: Column("networks flagged", [FLAGGED, FLAGS], _flagged),
    INTERVAL_METHOD: _name(INTERVAL_METHOD, "variance method"),
    PATIENT_AUC: Column("AUC per patient", [PATIENT_AUC], _of_patients),
    DELTA: Column("to the next coarser", [DELTA, P], _gain),
    TO_BEST: Column("to the best other (simultaneous limits)", [TO_BEST, *bounds(TO_BEST)], _to_best),
    SPEARMAN: Column("Spearman's ρ", [SPEARMAN], functools.partial(interval, name=SPEARMAN)),
    ABSOLUTE_ERROR: Column("mean absolute error", [ABSOLUTE_ERROR], functools.partial(interval, name=ABSOLUTE_ERROR)),
    AVERAGE_PRECISION: _number(AVERAGE_PRECISION, "average precision"),
    BALANCED_ACCURACY: _number(BALANCED_ACCURACY, "balanced accuracy"),
    SENSITIVITY: _number(SENSITIVITY, "sensitivity"),
    SPECIFICITY: _number(SPECIFICITY, "specificity"),
    BRIER: _number(BRIER, "Brier score"),
    CALIBRATION_ERROR: _number(CALIBRATION_ERROR, "calibration error"),
    CANVAS: Column("canvas, px", [CANVAS], lambda row: f"{row[CANVAS]:,}²"),
    MESH: _name(MESH, "mesh: data × rows × columns"),
    RANKS: _number(RANKS, "ranks", ",.0f"),
    PRECISION: _name(PRECISION, "number format"),
    MEMORY: Column("memory limit, GB", [MEMORY], lambda row: f"{row[MEMORY] / 1e9:.3g}" if row[MEMORY] else "none"),
    PARAMETERS: _number(PARAMETERS, "parameters", ",.0f"),
    SECONDS_PER_STEP: _number(SECONDS_PER_STEP, "step time, s", ".3g"),
    SECONDS_PER_SLIDE: _number(SECONDS_PER_SLIDE, "step time per slide, s", ".3g"),
    TRAINING_SECONDS: _number(TRAINING_SECONDS, "training time, s", ",.3g"),
    IMAGES_PER_SECOND: _number(IMAGES_PER_SECOND, "images per second", ".3g"),
    PEAK_MEMORY: _number(PEAK_MEMORY, "peak memory per rank, MB", ",.0f"),
    SENT_BYTES: _number(SENT_BYTES, "data sent per step, MB", ".3g", unit=1e6),
    JOULES: Column("energy per step, J", [JOULES], _energy),
}


def read(*names: str) -> list[Column]:
    """These columns, or those that begin with these, as people read them; for AUCs of slides see `aucs`."""
    return [_READ[name] for name in names]
