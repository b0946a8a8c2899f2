"""The numbers of slides in a table, which are to be learnt, and groups of them that folds are balanced by."""

import numpy as np
import pandas as pd

from gigapipe.errors import InputError

MOST_GROUPS = 4


def numbers_of(table: pd.DataFrame, column: str, where: str) -> pd.Series:
    """The column's numbers, float64, of a table with the column `slide`, in which they are texts.

    A comma may stand for the point. Raises InputError that begins with `where`, and names the slide where there is one:
    there is no such column, or a cell is no finite number.
    """
    if column not in table:
        raise InputError(f"{where}: has no column {column}; correct `target`, the column of the numbers to predict")
    texts = table[column].astype(str).str.strip()
    numbers = pd.to_numeric(texts.str.replace(r"^([-+]?\d*),(\d+)$", r"\1.\2", regex=True), errors="coerce")
    wrong = ~np.isfinite(numbers.astype(float))
    if wrong.any():
        slide, text = table.loc[wrong, "slide"].iloc[0], texts[wrong].iloc[0]
        more = f" ({wrong.sum() - 1} more such slides)" if wrong.sum() > 1 else ""
        raise InputError(
            f"{where}: slide {slide}: {column} is {text or 'empty'}, not a number{more}; correct it, or remove the row"
        )
    return numbers.astype(float)


def number_groups(table: pd.DataFrame, numbers: pd.Series, folds: int) -> pd.Series:
    """The name of each slide's group, as `1 of 4: 0.12–0.25`: by its patient's mean number, low to high.

    Groups have about as many patients, and no fewer than there are folds; at most `MOST_GROUPS`. Raises InputError if
    all numbers are the same.
    """
    if numbers.nunique() == 1:
        raise InputError(
            f"sample sheet: {numbers.name} is {numbers.iloc[0]:g} for all slides: there is nothing to learn"
        )
    patients = numbers.groupby(table["patient"]).mean()
    for count in range(min(MOST_GROUPS, max(1, len(patients) // folds)), 0, -1):
        group = pd.qcut(patients.rank(method="average"), count, labels=False, duplicates="drop").fillna(0).astype(int)
        sizes = group.value_counts()
        if sizes.min() >= folds:
            break
    order = {old: new for new, old in enumerate(sorted(sizes.index), start=1)}
    spans = patients.groupby(group).agg(["min", "max"])
    names = {
        old: f"{new} of {len(order)}: {spans.loc[old, 'min']:.4g}–{spans.loc[old, 'max']:.4g}"
        for old, new in order.items()
    }
    return table["patient"].map(group.map(names))
