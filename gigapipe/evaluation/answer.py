"""Which resolution to use, as a sentence that a table of the comparison bears out."""

from dataclasses import dataclass

import pandas as pd

LEVEL = 0.05
"""A p below which two AUCs differ."""


@dataclass(frozen=True)
class Answer:
    """What `headline` says in a few words, and `reason` with its figures; `mpp` is None where nothing is found."""

    mpp: float | None
    headline: str
    reason: str


def answer(table: pd.DataFrame) -> Answer:
    """The coarsest resolution whose AUC does not differ from the best.

    Columns: `mpp`, `auc`, `auc_low`, `auc_high`, `ranks`, `seconds_per_step`. Whether two differ is told by a paired
    test where the table has one (`p_best`, that of each row and the best; or `p`, that of the best and the row of
    `coarser` µm per pixel), and else by whether their intervals are apart, which takes more of a difference.
    """
    rows = table.dropna(subset=["auc"]).reset_index(drop=True)
    if rows.empty:
        return Answer(None, "There is no answer yet.", "No resolution has held-out slides of all classes.")
    best = rows.loc[rows["auc"].idxmax()]
    if best["auc_low"] <= 0.5:
        return Answer(
            None,
            "No resolution is told from chance.",
            f"The best AUC, {_auc(best)} at {best['mpp']:g} µm per pixel, has an interval that holds 0.5, which is "
            "chance.",
        )
    coarser = rows[rows["mpp"] > best["mpp"]].sort_values("mpp", ascending=False)
    compared = [(row, *_differs(row, best)) for _, row in coarser.iterrows()]
    chosen, how = next(((row, how) for row, differs, how in compared if not differs), (best, None))
    headline = f"Use {chosen['mpp']:g} µm per pixel."
    if how is None:
        reason = f"Its AUC of {_auc(chosen)} is the best of all"
        if compared:
            row, _, how = compared[-1]
            reason += (
                f", and {row['mpp']:g} µm per pixel does not reach it: {_auc(row)}, {how}, at {_ratio(row, best)} of "
                "the cost"
            )
        elif len(rows) > 1:
            reason += ", and no resolution is coarser"
        return Answer(chosen["mpp"], headline, reason + ".")
    reason = (
        f"Its AUC of {_auc(chosen)} is not told apart from the best, {_auc(best)} at {best['mpp']:g} µm per pixel "
        f"({how}), at {_ratio(chosen, best)} of the cost."
    )
    if "patients" in rows:
        reason += f" With more than these {chosen['patients']:.0f} patients a difference might be seen."
    return Answer(chosen["mpp"], headline, reason)


def cost(row: pd.Series) -> float:
    """Seconds × ranks of a training step for each of its slides, or of a step where that is not known."""
    return row["ranks"] * row.get("seconds_per_slide", row["seconds_per_step"])


def _differs(row: pd.Series, best: pd.Series) -> tuple[bool, str]:
    """Whether the AUCs of two rows differ, and how that is known."""
    p = row.get("p_best")
    if pd.isna(p) and best.get("coarser") == row["mpp"]:
        p = best.get("p")
    if pd.notna(p):
        return p < LEVEL, "paired test, " + (f"p\xa0=\xa0{p:.3f}" if p >= 0.001 else "p\xa0<\xa00.001")
    if row["auc_high"] < best["auc_low"]:
        return True, "their intervals are apart"
    return False, "their intervals overlap"


def _auc(row: pd.Series) -> str:
    return f"{row['auc']:.3f} ({row['auc_low']:.3f}–{row['auc_high']:.3f})"


def _ratio(row: pd.Series, best: pd.Series) -> str:
    """A share as 1/8 or 0.6."""
    share = cost(row) / cost(best)
    if share > 0.67:
        return f"{share:.2g}"
    return f"1/{1 / share:.2g}" if share > 0.1 else f"1/{1 / share:,.0f}"
