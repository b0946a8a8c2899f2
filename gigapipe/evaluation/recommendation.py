"""Which resolution to use, as a sentence that a table of the comparison bears out, or why that cannot be told."""

from dataclasses import dataclass

import pandas as pd

from gigapipe.evaluation.best import MOST, TOO_MANY
from gigapipe.evaluation.columns import (
    AUC,
    INTERVAL_METHOD,
    MARGIN,
    METHOD_NAME,
    MPP,
    NETWORK,
    PATIENTS,
    PATIENTS_NEEDED,
    POOLED,
    RIVAL,
    RIVAL_METHOD,
    SECONDS_PER_SLIDE,
    SECONDS_PER_STEP,
    SLIDES,
    START,
    TO_BEST,
    Main,
    bounds,
    cost_column,
    interval,
    low_of_all,
    main_figure,
    names_of,
    rank_seconds,
    why_missing,
)
from gigapipe.plural import counted

CANNOT_BE_TOLD = "No resolution can be recommended."
NAME = "name"
BELOW = bounds(TO_BEST)[0]


@dataclass(frozen=True)
class Recommendation:
    """What `headline` says in a few words, and `reason` with its figures; `mpp` is None where nothing is shown,
    `method` is empty where there are none.
    """

    mpp: float | None
    headline: str
    reason: str
    method: str = ""


def recommend(table: pd.DataFrame) -> Recommendation:
    """The coarsest resolution whose AUC, or R², is shown to be above chance, and within the margin of any other; of
    several methods there, the one whose training costs least.

    Shown is what the table's limits say (see best.py): `auc_low` and `auc_low_of_all` above 0.5, or those of R² above
    0, and `to_best_low` above −`margin`. Where they are missing, nothing is shown.
    """
    main = main_figure(table)
    if not {low_of_all(main.name), BELOW, RIVAL, MARGIN} <= set(table):
        return cannot_be_told(
            "this comparison is from an older release without the comparison with the best: make it again with "
            "`gigapipe evaluate`"
        )
    rows = _named(table.sort_values(MPP, ascending=False, kind="stable"))
    above = rows[(rows[bounds(main.name)[0]] > main.chance) & (rows[low_of_all(main.name)] > main.chance)]
    if above.empty:
        return _at_chance(rows, main)
    if rows[NAME].nunique() == 1:
        return _alone(above.iloc[0], main)
    near = above[above[BELOW] > -above[MARGIN]]
    if near.empty:
        return _not_near(above, rows, main)
    chosen = min((row for _, row in near[near[MPP] == near[MPP].max()].iterrows()), key=_cost)
    return _chosen(chosen, rows, main)


def cannot_be_told(reason: str) -> Recommendation:
    return Recommendation(None, CANNOT_BE_TOLD, f"Reason: {reason}.")


def _at_chance(rows: pd.DataFrame, main: Main) -> Recommendation:
    known = rows.dropna(subset=[main.name])
    if known.empty:
        return cannot_be_told(f"there is no {main.heading} at any resolution: {why_missing(rows.iloc[0], main.name)}")
    highest = known.iloc[int(known[main.name].argmax())]
    what = f"the highest {main.heading}, {interval(highest, main.name)} {_at(highest)},"
    if pd.isna(highest[bounds(main.name)[0]]):
        return cannot_be_told(f"{what} cannot be distinguished from chance ({main.chance:g}) without an interval")
    if highest[bounds(main.name)[1]] < main.chance:
        why = f"is below chance ({main.chance:g})"
        if main.name == AUC:
            why += ": check whether the labels, or their order, are correct"
    elif highest[bounds(main.name)[0]] > main.chance:
        why = (
            f"is above chance ({main.chance:g}) by itself, but not when corrected for {len(known)} resolutions (lower "
            f"limit {highest[low_of_all(main.name)]:.3f})"
        )
    else:
        why = f"has an interval that includes chance ({main.chance:g})"
    return cannot_be_told(
        f"no network is shown to be better than chance: {what} {why}{_method(highest)}{_needed(highest)}"
    )


def _alone(row: pd.Series, main: Main) -> Recommendation:
    return Recommendation(
        row[MPP],
        f"{row[NAME]} is better than chance; no other resolution{' or method' * (METHOD_NAME in row)} was tested.",
        f"Its {main.heading} of {interval(row, main.name)} is above chance ({main.chance:g}){_method(row)}. Only tests "
        "of other resolutions can show whether a coarser one would be sufficient, or a finer one better.",
        row.get(METHOD_NAME, ""),
    )


def _not_near(above: pd.DataFrame, rows: pd.DataFrame, main: Main) -> Recommendation:
    known = above.dropna(subset=[BELOW])
    if known.empty:
        row = above.iloc[0]
        return cannot_be_told(f"{row[NAME]} cannot be compared with others: {why_missing(row, BELOW)}")
    nearest = known.iloc[int(known[BELOW].argmax())]
    best = rows.iloc[int(rows[main.name].argmax())]
    is_rival = rows[MPP] == nearest[RIVAL]
    if METHOD_NAME in rows:
        is_rival &= rows[METHOD_NAME] == nearest[RIVAL_METHOD]
    rival = rows.loc[is_rival, NAME].iloc[0]
    found = f"with an {main.heading} of {interval(nearest, main.name)}"
    if nearest[main.name] < best[main.name]:
        found += f" (the highest is {interval(best, main.name)}, {_at(best)})"
    return cannot_be_told(
        f"no resolution is shown to be within {nearest[MARGIN]:g} of the best. {nearest[NAME]} comes closest, {found}, "
        f"but may be {-nearest[BELOW]:.3f} below {rival} ({_limits(nearest, rows)}){_needed(nearest)}"
    )


def _chosen(chosen: pd.Series, rows: pd.DataFrame, main: Main) -> Recommendation:
    best, margin = rows.iloc[int(rows[main.name].argmax())], chosen[MARGIN]
    reason = f"Its {main.heading} of {interval(chosen, main.name)} is above chance, and "
    if chosen[main.name] == best[main.name]:
        reason += "the highest of all; "
    bound = (
        "not below any other resolution"
        if chosen[BELOW] >= 0
        else f"at most {-chosen[BELOW]:.3f} below every other resolution"
    )
    reason += f"it is shown to be {bound}, where {margin:g} is allowed ({_limits(chosen, rows)})."
    if chosen[main.name] < best[main.name]:
        reason += f" The highest {main.heading} is {interval(best, main.name)}, {_at(best)}{_saving(chosen, best)}."
    coarser = rows[rows[MPP] > chosen[MPP]]
    if len(coarser):
        short = [_falls_short(row, main) for row in coarser.to_dict("records")]
        reason += f" This is not shown for coarser resolutions: {'; '.join(short)}."
    beside = rows[(rows[MPP] == chosen[MPP]) & (rows[NAME] != chosen[NAME])]
    if METHOD_NAME in rows and len(beside):
        words = [_beside(row, main) for row in beside.to_dict("records")]
        reason += f" At the same resolution: {'; '.join(words)}."
    return Recommendation(chosen[MPP], f"Use {chosen[NAME]}.", reason, chosen.get(METHOD_NAME, ""))


def _beside(row: dict, main: Main) -> str:
    """What is said of another method than the chosen one, at the same resolution."""
    if row[BELOW] > -row[MARGIN] and min(row[bounds(main.name)[0]], row[low_of_all(main.name)]) > main.chance:
        return f"{row[NAME]} with {interval(row, main.name)} is as near to the best, and costs more"
    return _falls_short(row, main)


def _falls_short(row: dict, main: Main) -> str:
    what = f"{row[NAME]} with {interval(row, main.name)}"
    if pd.isna(row[BELOW]):
        return f"{what} cannot be compared with others: {why_missing(row, BELOW)}"
    if row[BELOW] > -row[MARGIN]:
        return f"{what} is not shown to be above chance"
    if row[bounds(TO_BEST)[1]] < -row[MARGIN]:
        return f"{what} is worse than the margin allows"
    return f"{what} may be {-row[BELOW]:.3f} below the best"


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """With a column for people: a resolution and its method, and what else tells its networks from others there."""
    names = rows[MPP].map("{:g} µm per pixel".format)
    if METHOD_NAME in rows:
        names = rows[METHOD_NAME] + " at " + names
    for column, words in ((NETWORK, "with {}"), (START, "starting from {}")):
        if column in rows and (rows.groupby(names_of(rows))[column].nunique() > 1).any():
            names += rows[column].map(f", {words}".format)
    return rows.assign(**{NAME: names})


def _at(row: pd.Series) -> str:
    return f"{'of' if METHOD_NAME in row else 'at'} {row[NAME]}"


def _limits(row: pd.Series, rows: pd.DataFrame) -> str:
    others = rows[NAME].nunique() - 1
    whom = f"the same {counted(int(row[SLIDES]), 'slide')} of {counted(int(row[PATIENTS]), 'patient')}"
    corrected = f", corrected for {others} comparisons" if others > 1 else ""
    return f"one-sided 95 % limits of paired differences on {whom}{corrected}{_method(row)}"


def _method(row: pd.Series) -> str:
    """What to know of how variances were found."""
    if row.get(INTERVAL_METHOD) != POOLED:
        return ""
    return " (variances are pooled over folds, because in some a class has only one patient)"


def _needed(row: pd.Series) -> str:
    """How many patients would tell."""
    if PATIENTS_NEEDED not in row:
        return ""
    if pd.notna(row[PATIENTS_NEEDED]):
        return (
            f". About {row[PATIENTS_NEEDED]:,.0f} patients instead of {row[PATIENTS]:.0f} would be needed for a power "
            "of 80 %, if the true values are as estimated here"
        )
    if why_missing(row, PATIENTS_NEEDED) == TOO_MANY:
        return f". If the true values are as estimated here, even {MOST} times as many patients would not be sufficient"
    return ""


def _cost(row: pd.Series) -> float:
    of_steps = SECONDS_PER_SLIDE if SECONDS_PER_SLIDE in row else SECONDS_PER_STEP
    return rank_seconds(row, cost_column(row) if METHOD_NAME in row else of_steps)


def _saving(row: pd.Series, best: pd.Series) -> str:
    """What a row costs of another, as 1/8 or 0.6: of a step for each slide, or of a step where those are not known; of
    methods, of a training.
    """
    share = _cost(row) / _cost(best)
    if pd.isna(share):
        return ""
    ratio = f"{share:.2g}" if share > 0.67 else f"1/{1 / share:.2g}" if share > 0.1 else f"1/{1 / share:,.0f}"
    return f"; {row[NAME]} takes {ratio} of its cost"
