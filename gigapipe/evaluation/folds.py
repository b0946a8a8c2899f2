"""Folds: who is trained on, who chooses the epoch, and who is only ever predicted.

No patient is in two folds, and by default no site: slides of one hospital share stains and scanners, and a network that
knows them by that scores well on the hospital's other patients, and on nobody else (Howard et al. 2021, "The impact of
site-specific digital histology signatures on deep learning model accuracy and bias", Nature Communications 12:4423).
"""

from pathlib import Path

import numpy as np
import pandas as pd

from gigapipe.configuration.folds import LEAST
from gigapipe.disks import raise_passing
from gigapipe.errors import InputError
from gigapipe.plural import counted
from gigapipe.slides.sheet import UNKNOWN
from gigapipe.slides.tables import read_table
from gigapipe.slides.written_tables import read_written

STARTS = 16  # divisions that are begun at random, of which the most even is taken
BALANCE = 2  # what the balance of classes weighs, against folds of one size


def make_folds(sheet: pd.DataFrame, folds: int, seed: int, by: str = "site") -> pd.DataFrame:
    """The sheet with columns `fold` (0 … folds − 1), in which labels have shares as even as can be, and `split`.

    `by` is what stays in one fold: a `site`, with all its patients, or a `patient`, with all slides, whatever their
    labels. Patients of unknown site stand each for themselves. `split` says which it was: `patient` where no site is
    known. Raises InputError if there are fewer than three folds, fewer patients of a label than folds, or fewer sites
    than folds.
    """
    if folds < 3:
        raise InputError(
            f"folds: {folds} is too few; one is the test set, one the validation set, and at least one is trained on: "
            "give 3 or more"
        )
    if sheet.empty:
        raise InputError("sample sheet: has no slides")
    patients = sheet.groupby("label")["patient"].nunique()
    if patients.min() < folds:
        raise InputError(
            f"label {patients.idxmin()}: {counted(patients.min(), 'patient')}, too few for {folds} folds; add patients"
            f"{_or_fewer(patients.min())}"
        )
    if by == "patient" or (sheet["site"] == UNKNOWN).all():
        from sklearn.model_selection import StratifiedGroupKFold  # slow to import, and trainings only read folds

        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        held_out = np.full(len(sheet), -1)
        for fold, (_, rows) in enumerate(splitter.split(sheet, sheet["label"], sheet["patient"])):
            held_out[rows] = fold
        return sheet.assign(fold=held_out, split="patient")
    whole = kept_whole(sheet)
    if whole.nunique() < folds:
        sites = whole.nunique()
        raise InputError(
            f"folds: {counted(sites, 'site')}, too few for {folds} folds that share none; set "
            f"folds: {{by: patient}} in the config, or remove the column site{_or_fewer(sites)}"
        )
    fold_of = pd.Series(divide(quantities(sheet, whole), folds, seed), sorted(whole.unique()))
    return sheet.assign(fold=whole.map(fold_of), split="site")


def _or_fewer(count: int) -> str:
    """The other way out, where so many patients or sites are enough for folds."""
    return f", or set folds: {{number: {count}}}" if count >= LEAST else ""


def given_folds(sheet: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The sheet with the folds of a published table: columns `fold` (0, 1, …), and `slide` or `patient`.

    Its column `split` is `given`, whatever they share.
    Raises InputError, naming the slide or patient, if one has no fold, or a patient two.
    """
    given = read_table(Path(path), ["fold", "slide", "patient"], "folds")
    key = "slide" if "slide" in given else "patient"
    if not {key, "fold"} <= set(given):
        raise InputError(f"folds {path}: needs columns fold, and slide or patient; {given.attrs['seen']}")
    if not given["fold"].str.fullmatch("[0-9]+").all():
        raise InputError(f"folds {path}: column fold must contain only whole numbers, 0, 1, …")
    several = given.groupby(key)["fold"].nunique()
    if several.max() > 1:
        raise InputError(f"folds {path}: {key} {several.idxmax()} is listed with {several.max()} folds; give one")
    folds = dict(zip(given[key], given["fold"].astype(int), strict=True))
    for name in sheet[key]:
        if name not in folds:
            raise InputError(f"folds {path}: {key} {name} has no fold; add it, or remove its slides from the sheet")
    table = sheet.assign(fold=sheet[key].map(folds), split="given")
    if sorted(table["fold"].unique()) != list(range(table["fold"].max() + 1)):
        raise InputError(f"folds {path}: folds must be 0, 1, … without a gap")
    torn = table.groupby("patient")["fold"].nunique()
    if torn.max() > 1:
        raise InputError(f"folds {path}: patient {torn.idxmax()} is in {torn.max()} folds; give one")
    return table


def kept_whole(sheet: pd.DataFrame) -> pd.Series:
    """Of each slide, the site that stays in one fold, or the patient where the site is not known.

    Raises InputError if a patient has slides of two sites.
    """
    sites = sheet.groupby("patient")["site"].nunique()
    if sites.max() > 1:
        raise InputError(f"sample sheet: patient {sites.idxmax()} has slides of {sites.max()} sites; give one")
    return ("patient " + sheet["patient"]).where(sheet["site"] == UNKNOWN, "site " + sheet["site"])


def quantities(sheet: pd.DataFrame, whole: pd.Series) -> np.ndarray:
    """What each fold should have an even part of, for each group in alphabetical order: shape (groups, quantities).

    These are the slides and the patients of each label, as a share of all of that label; and how far a label's share
    is above the others', which is the balance of the classes, and weighs most.
    """
    kinds = [pd.crosstab(whole, sheet["label"])]
    # Patients too: some sites sent many slides of each.
    kinds.append(pd.crosstab(whole, sheet["label"], sheet["patient"], aggfunc="nunique").fillna(0))
    shares = [(kind / kind.sum()).to_numpy() for kind in kinds]
    return np.hstack(shares + [BALANCE * (share - share.mean(axis=1, keepdims=True)) for share in shares])


def divide(parts: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each group, such that every fold has about the same sum of each quantity.

    `parts` has shape (groups, quantities). The sum of the squared differences from an even share is made small: from
    random beginnings, the best move of a group, or exchange of two, is made until none helps. No fold is empty.
    """
    for may_empty in (True, False):  # of few groups each division may be most even with an empty fold
        rng = np.random.default_rng(seed)
        divisions = []
        for _ in range(STARTS):
            fold = rng.permutation(len(parts)) % folds
            uneven = improve(parts, fold, folds, may_empty)
            if len(set(fold)) == folds:
                divisions.append((uneven, fold))
        if divisions:
            break
    return min(divisions, key=lambda division: division[0])[1]


def improve(parts: np.ndarray, fold: np.ndarray, folds: int, may_empty: bool = True) -> float:
    """Change `fold` until no move and no exchange makes it more even; how uneven it is then.

    If no fold may become empty, a group that is alone in one only changes places.
    """
    excess = np.stack([parts[fold == f].sum(axis=0) for f in range(folds)]) - parts.sum(axis=0) / folds
    groups = np.arange(len(parts))
    products = parts @ parts.T
    squares = products.diagonal()
    while True:
        # Taking x from fold a to fold b changes the sum of squares by 2 x·(e_b − e_a) + 2 x·x; an exchange takes x − y.
        along = parts @ excess.T
        gain = along - along[groups, fold][:, None]
        move = gain + squares[:, None]
        exchange = gain[:, fold] + gain[:, fold].T + squares[:, None] + squares - 2 * products
        move[groups, fold] = exchange[fold[:, None] == fold] = 0
        if not may_empty:
            move[np.bincount(fold, minlength=folds)[fold] == 1] = 0
        if min(move.min(), exchange.min()) > -1e-12:
            return float((excess**2).sum())
        if move.min() <= exchange.min():
            group, target = np.unravel_index(move.argmin(), move.shape)
            changes = [(group, target)]
        else:
            one, other = np.unravel_index(exchange.argmin(), exchange.shape)
            changes = [(one, fold[other]), (other, fold[one])]
        for group, target in changes:
            excess[fold[group]] -= parts[group]
            excess[target] += parts[group]
            fold[group] = target


def roles(table: pd.DataFrame, fold: int) -> dict[str, pd.DataFrame]:
    """The slides for `training`, `validation` and `test` when `fold` is held out; the next fold validates."""
    count = table["fold"].max() + 1
    if not 0 <= fold < count:
        raise InputError(f"fold {fold}: there are folds 0 to {count - 1}")
    test = table["fold"] == fold
    validation = table["fold"] == (fold + 1) % count
    return {"training": table[~test & ~validation], "validation": table[validation], "test": table[test]}


def splits(table: pd.DataFrame) -> pd.DataFrame:
    """For other tools: a row for each held-out fold and slide, with the slide's role there."""
    parts = [
        part[["slide", "patient", "site", "label"]].assign(held_out=fold, role=role)
        for fold in range(table["fold"].max() + 1)
        for role, part in roles(table, fold).items()
    ]
    return pd.concat(parts)[["held_out", "role", "slide", "patient", "site", "label"]]


def read_folds(path) -> pd.DataFrame:
    """The table that `gigapipe folds` wrote."""
    try:
        # As text: a slide may be called 001.
        return read_written(path, dtype=str, keep_default_na=False).astype({"fold": int})
    except (OSError, ValueError, KeyError) as error:
        raise_passing(error)
        raise InputError(f"folds {path}: cannot be read ({error}); make them with `gigapipe folds`") from None
