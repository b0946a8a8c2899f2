"""Which resolution to use, as a sentence that a table of the comparison bears out."""

from dataclasses import dataclass

import pandas as pd

from gigapipe.evaluation.columns import (
    AUC,
    COARSER,
    MPP,
    P_BEST,
    PATIENTS,
    SECONDS_PER_SLIDE,
    SECONDS_PER_STEP,
    P,
    bounds,
    interval,
    p_value,
    rank_seconds,
)

LEVEL = 0.05
"""A p below which two AUCs differ."""

LOW, HIGH = bounds(AUC)


@dataclass(frozen=True)
class Recommendation:
    """What `headline` says in a few words, and `reason` with its figures; `mpp` is None where nothing is found."""

    mpp: float | None
    headline: str
    reason: str


def recommend(table: pd.DataFrame) -> Recommendation:
    """The coarsest resolution whose AUC does not differ from the best.

    Columns: `mpp`, `auc`, `auc_low`, `auc_high`, `ranks`, `seconds_per_step`. Whether two differ is told by a paired
    test where the table has one (`p_best`, that of each row and the best; or `p`, that of the best and the row of
    `coarser` µm per pixel), and else by whether their intervals are apart, which takes more of a difference.
    """
    rows = table.dropna(subset=[AUC]).reset_index(drop=True)
    if rows.empty:
        return Recommendation(None, "There is no answer yet.", "No resolution has held-out slides of all classes.")
    best = rows.iloc[int(rows[AUC].argmax())]
    if best[LOW] <= 0.5:
        return Recommendation(
            None,
            "No resolution is told from chance.",
            f"The best AUC, {interval(best, AUC)} at {best[MPP]:g} µm per pixel, has an interval that holds 0.5, "
            "which is chance.",
        )
    coarser = rows[rows[MPP] > best[MPP]].sort_values(MPP, ascending=False)
    compared = [(row, *_differs(row, best)) for _, row in coarser.iterrows()]
    chosen, how = next(((row, how) for row, differs, how in compared if not differs), (best, None))
    headline = f"Use {chosen[MPP]:g} µm per pixel."
    if how is None:
        reason = f"Its AUC of {interval(chosen, AUC)} is the best of all"
        if compared:
            row, _, how = compared[-1]
            reason += (
                f", and {row[MPP]:g} µm per pixel does not reach it: {interval(row, AUC)}, {how}, "
                f"at {_ratio(row, best)} of the cost"
            )
        elif len(rows) > 1:
            reason += ", and no resolution is coarser"
        return Recommendation(chosen[MPP], headline, reason + ".")
    reason = (
        f"Its AUC of {interval(chosen, AUC)} is not told apart from the best, {interval(best, AUC)} at "
        f"{best[MPP]:g} µm per pixel ({how}), at {_ratio(chosen, best)} of the cost."
    )
    if PATIENTS in rows:
        reason += f" With more than these {chosen[PATIENTS]:.0f} patients a difference might be seen."
    return Recommendation(chosen[MPP], headline, reason)


def _differs(row: pd.Series, best: pd.Series) -> tuple[bool, str]:
    """Whether the AUCs of two rows differ, and how that is known."""
    p = row.get(P_BEST)
    if pd.isna(p) and best.get(COARSER) == row[MPP]:
        p = best.get(P)
    if pd.notna(p):
        return p < LEVEL, "paired test, " + p_value(p).replace(" ", "\xa0")
    if row[HIGH] < best[LOW]:
        return True, "their intervals are apart"
    return False, "their intervals overlap"


def _ratio(row: pd.Series, best: pd.Series) -> str:
    """A share as 1/8 or 0.6: of a step for each of its slides, or of a step where those are not known."""
    seconds = SECONDS_PER_SLIDE if SECONDS_PER_SLIDE in row else SECONDS_PER_STEP
    share = rank_seconds(row, seconds) / rank_seconds(best, seconds)
    if share > 0.67:
        return f"{share:.2g}"
    return f"1/{1 / share:.2g}" if share > 0.1 else f"1/{1 / share:,.0f}"
