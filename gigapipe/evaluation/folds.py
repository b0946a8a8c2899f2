"""Folds: who is trained on, who chooses the epoch, and who is only ever predicted."""

import pandas as pd

from gigapipe.errors import InputError


def make_folds(sheet: pd.DataFrame, folds: int, seed: int) -> pd.DataFrame:
    """The sheet with a column `fold` (0 … folds − 1): no patient in two, labels in even shares.

    Raises InputError if a label has fewer patients than there are folds, or there are fewer than three folds.
    """
    if folds < 3:
        raise InputError(
            f"folds: {folds} is too few; one tests, one chooses the epoch, and at least one trains: give 3 or more"
        )
    if sheet.empty:
        raise InputError("sample sheet: has no slides")
    patients = sheet.drop_duplicates("patient").groupby("label").size()
    if patients.min() < folds:
        raise InputError(
            f"label {patients.idxmin()}: {patients.min()} patients are too few for {folds} folds; add some"
        )
    from sklearn.model_selection import StratifiedGroupKFold  # slow to import, and trainings only read folds

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    sheet = sheet.assign(fold=-1)
    for fold, (_, rows) in enumerate(splitter.split(sheet, sheet["label"], sheet["patient"])):
        sheet.iloc[rows, sheet.columns.get_loc("fold")] = fold
    return sheet


def roles(table: pd.DataFrame, fold: int) -> dict[str, pd.DataFrame]:
    """The slides for `training`, `validation` and `test` when `fold` is held out; the next fold validates."""
    count = table["fold"].max() + 1
    if not 0 <= fold < count:
        raise InputError(f"fold {fold}: there are folds 0 to {count - 1}")
    test = table["fold"] == fold
    validation = table["fold"] == (fold + 1) % count
    return {"training": table[~test & ~validation], "validation": table[validation], "test": table[test]}


def read_folds(path) -> pd.DataFrame:
    """The table that `gigapipe folds` wrote."""
    try:
        # As text: a slide may be called 001.
        return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False).astype({"fold": int})
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"folds {path}: cannot be read ({error}); make them with `gigapipe folds`") from None
