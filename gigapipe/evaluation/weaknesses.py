"""What a division of a cohort cannot show, said before anything is trained."""

from bisect import bisect_left

import numpy as np
import pandas as pd

from gigapipe.errors import InputError
from gigapipe.evaluation.best import POWER, of_chance, patients_needed
from gigapipe.evaluation.columns import CHANCE
from gigapipe.evaluation.folds import UNKNOWN, make_folds
from gigapipe.evaluation.intervals import auc_limits, expected_deviation, separated_bound
from gigapipe.evaluation.simulation import drawn
from gigapipe.plural import counted

COHORTS = 300
TELLING = 0.7  # an AUC from which on sites are worth a warning
MODEST = 0.8  # an AUC that a cohort should be able to tell from chance
FEW, PLENTY = 2, 5  # patients of a class in a fold: what an interval takes, and what more folds should leave
MORE = 5  # folds, of which three train
GOOD, ALIKE = 0.95, 0.75  # two networks of this AUC, whose AUCs correlate by that, as those of one cohort do


def weaknesses(table: pd.DataFrame, resolutions: int = 1) -> list[str]:
    """Of folds of classes (see folds.py), a line for each thing that their figures will not show, and what helps."""
    if table["label"].nunique() < 2:
        return []
    found = [*_few_patients(table), *_sites(table), *_number(table)]
    lowest = told_from_chance(table, resolutions)
    if lowest > MODEST:
        counts = table.groupby("label")["patient"].nunique()
        patients = " and ".join(f"{counted(count, 'patient')} of {label}" for label, count in counts.items())
        needed = enough(table, resolutions)
        found.append(
            f"{patients}: no fold has two classes, so that there will be no AUC"
            if needed is None
            else f"{patients}: an AUC below {lowest:.2f} probably cannot be distinguished from chance; for {MODEST:g} "
            f"about {needed} patients are needed"
        )
    return found


def by_fold(table: pd.DataFrame) -> pd.DataFrame:
    """Patients of each label (columns) in each fold (rows)."""
    counts = table.groupby(["fold", "label"])["patient"].nunique().unstack(fill_value=0)
    return counts.reindex(sorted(table["fold"].unique()))


def told_from_chance(table: pd.DataFrame, resolutions: int = 1, times: float = 1) -> float:
    """The lowest mean AUC, of so many, that is likely (`POWER`) to have a limit above chance, with so many times the
    patients; by simulation.
    """
    held_out, z = _held_out(table, times), of_chance(resolutions)
    if not held_out:
        return 1.0

    def likely(auc: float) -> bool:
        found = drawn([auc], held_out, COHORTS, np.random.default_rng(0))
        return (auc_limits(found.auc, found.deviation, z, found.separated(z)).low > CHANCE).mean() >= POWER

    return bisect_left(range(100), True, lo=51, key=lambda percent: likely(percent / 100)) / 100


def enough(table: pd.DataFrame, resolutions: int = 1) -> int | None:
    """How many patients, of labels in the same shares, are likely to tell an AUC of `MODEST` from chance.

    None if no fold has two classes: then no number is enough.
    """
    if not _held_out(table, 1):
        return None
    times = 1.0
    while told_from_chance(table, resolutions, times) > MODEST:
        times *= 1.2
    return int(np.ceil(times * table["patient"].nunique()))


def _held_out(table: pd.DataFrame, times: float) -> list[tuple[int, int]]:
    """Patients of the label that has the fewest, and of the others, in each fold that has both."""
    counts = by_fold(table)
    of_label, of_all = counts[counts.sum().idxmin()], counts.sum(axis=1)
    pairs = [(round(times * n), round(times * (total - n))) for n, total in zip(of_label, of_all, strict=True)]
    return [pair for pair in pairs if min(pair)]


def enough_for_margin(table: pd.DataFrame, margin: float) -> int | None:
    """With how many patients, of labels in the same shares, one of two networks of AUC `GOOD` is likely to be shown to
    be within `margin` of the other; None if that takes more than can be said.
    """
    held_out = _held_out(table, 1)
    if not held_out:
        return None

    def separated(z: float, times: float) -> float:
        return separated_bound(_held_out(table, times), len(held_out), z)

    deviation = expected_deviation(GOOD, held_out, len(held_out))
    together = np.array([[1, ALIKE], [ALIKE, 1]])
    patients = table["patient"].nunique()
    return patients_needed(np.full(2, GOOD), np.full(2, deviation), together, separated, margin, patients)


def _few_patients(table: pd.DataFrame) -> list[str]:
    counts, found = by_fold(table), []
    for label, of_label in counts.items():
        for number, what in (
            (0, "no AUC"),
            (1, "no interval for this fold, so that variances are pooled over folds"),
        ):
            folds = of_label.index[of_label == number]
            if len(folds):
                found.append(
                    f"{'folds' if len(folds) > 1 else 'fold'} {', '.join(map(str, folds))} {'each ' * (len(folds) > 1)}"
                    f"with {number or 'no'} {'patient' if number else 'patients'} of {label}: {what}"
                )
    if not found:
        return []
    fewer = fewer_folds(table)
    advice = (
        f"{fewer} folds would each have at least {FEW} patients of each label" if fewer else "more patients are needed"
    )
    return [f"{line}; {advice}" for line in found]


def fewer_folds(table: pd.DataFrame) -> int | None:
    """The largest smaller number of folds that hold enough patients of each label."""
    return _other_number(table, range(len(by_fold(table)) - 1, 2, -1), FEW)


def _other_number(table: pd.DataFrame, numbers: range, patients: int) -> int | None:
    by = table["split"].iloc[0]
    if by == "given":
        return None
    sheet = table.drop(columns=["fold", "split"])
    for number in numbers:
        try:
            counts = by_fold(make_folds(sheet, number, 0, by))
        except InputError:
            continue
        if counts.to_numpy().min() >= patients:
            return number
    return None


def _number(table: pd.DataFrame) -> list[str]:
    count = len(by_fold(table))
    if count > 3 or not _other_number(table, range(MORE, MORE + 1), PLENTY):
        return []
    return [
        f"{count} folds train each network on {(count - 2) / count:.0%} of the patients; {MORE} folds train it on "
        f"{(MORE - 2) / MORE:.0%}, and each would still have at least {PLENTY} patients of each label, for "
        f"{MORE / count:.1f} times as many trainings"
    ]


def _sites(table: pd.DataFrame) -> list[str]:
    alone, across = site_reader(table, "patient"), site_reader(table, "fold")
    if alone is None or across is None:
        return []
    if across >= TELLING:
        return [
            f"these folds share sites, and the site alone predicts the label (AUC {across:.2f} without seeing a "
            "slide): a network that learns to distinguish hospitals scores as well as one that learns the disease; "
            "divide by site"
        ]
    if alone >= TELLING:
        return [
            f"the site alone predicts the label (AUC {alone:.2f} without seeing a slide): these folds share no site, "
            "so that this does not affect them; results of folds that share sites would not be valid"
        ]
    return []


def site_reader(table: pd.DataFrame, held_out: str) -> float | None:
    """AUC of knowing a slide's site and nothing else, with two labels; None where no site is known.

    A slide's score is the share of the second label among the slides of its site that differ from it in the column
    `held_out` (`patient` or `fold`); where there are none, that of all slides.
    """
    labels = sorted(table["label"].unique())
    known = table[table["site"] != UNKNOWN]
    if len(labels) != 2 or known["label"].nunique() < 2:
        return None
    second = (known["label"] == labels[1]).astype(float)
    at_site = second.groupby(known["site"])
    together = second.groupby([known["site"], known[held_out]])
    others = at_site.transform("size") - together.transform("size")
    score = (at_site.transform("sum") - together.transform("sum")) / others.where(others > 0)
    # The Mann-Whitney statistic, by ranks of pandas: scikit-learn and scipy.stats are slow to import.
    ranks, one = score.fillna(second.mean()).rank(), int(second.sum())
    return float((ranks[second == 1].mean() - (one + 1) / 2) / (len(second) - one))
