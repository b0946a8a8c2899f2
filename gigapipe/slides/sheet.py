"""The sample sheet: which slides there are, whose they are, and what they show."""

import json
import logging
import os
import re
import shlex
import unicodedata
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from gigapipe.atomic import atomic_file
from gigapipe.errors import InputError
from gigapipe.given_text import fault_of
from gigapipe.plural import counted
from gigapipe.slides import tables
from gigapipe.slides.numbers import numbers_of
from gigapipe.slides.written_tables import as_text

logger = logging.getLogger(__name__)

COLUMNS = ["slide", "patient", "site", "label", "source"]
OPTIONAL = ["sample_type", "kind", "mask", "tissue", "mpp", "filename", "md5", "size"]
ADDED = ["fold", "split"]
"""Columns that folds add."""
UNKNOWN = "unknown"
# Slides' names become file names: no separators, no leading dot, no surprises for a shell.
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}"
# What stands in tables where a value is missing; Excel and the archive have words of their own.
MISSING = re.compile(
    r"n/?a|#n/a|n[.]a[.]|nan|nil|null|none|undefined|unknown|missing|'?-+|[?.]+|#(value|ref|name)[!?]"
    r"|not (available|applicable|reported|specified)",
    re.IGNORECASE,
)


def read_table(path: str | Path, *more: str) -> pd.DataFrame:
    """Every column of a sample sheet, all text, as `tables.read_table` reads it; known are some `more`."""
    return tables.read_table(Path(path), [*COLUMNS, *OPTIONAL, *more], "sample sheet")


def read_sheet(
    path: str | Path,
    source: str | None = None,
    labelled: bool = True,
    confirmed: Collection[str] = (),
    target: str | None = None,
) -> pd.DataFrame:
    """The sample sheet with the columns `COLUMNS`, and of `OPTIONAL` what it has, all text, in the sheet's order.

    With a column `target`, it has that, too, and finite numbers in it.

    It is read as `read_table` reads. `source` (`"slides/{slide}.svs"`) stands in for a missing `source` column. A slide
    without a site, or with one such as NA, has that of its patient's other slides, or else `unknown`; so has `label`,
    there or not, unless the slides must be `labelled`. `~` is the home folder. Other columns are left out. What was
    assumed is logged.

    Raises InputError, naming the slide where there is one: a column or cell is missing, a name is not usable as a file
    name, a slide or a file is listed twice, or all slides have one label; or labels that are not `confirmed` differ
    only in capitals or spaces, or look as if they were missing. Labels matter only where slides must be `labelled`.
    """
    where = f"sample sheet {path}"
    if target is None:
        return _checked(read_table(path), where, source, labelled, confirmed)
    if target in (*COLUMNS, *OPTIONAL, *ADDED):
        raise InputError(f"target: {target} is a reserved column; rename the column of the numbers")
    table = read_table(path, target)
    sheet = _checked(table, where, source, labelled, confirmed)
    if target not in table:
        raise InputError(f"{where}: has no column {target}, the `target`; {table.attrs['seen']}")
    sheet[target] = numbers_of(table, target, where).astype(str)
    return sheet


def _checked(
    table: pd.DataFrame, where: str, source: str | None, labelled: bool, confirmed: Collection[str]
) -> pd.DataFrame:
    sheet = table.copy()
    if "source" not in sheet and source:
        sheet["source"] = [source.replace("{slide}", slide) for slide in sheet.get("slide", [])]
    if "site" not in sheet:
        sheet["site"] = UNKNOWN
    if not labelled:
        sheet["label"] = UNKNOWN
    missing = [column for column in COLUMNS if column not in sheet]
    if missing:
        raise InputError(
            f"{where}: has no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}; {table.attrs['seen']}"
        )
    sheet = sheet[[*COLUMNS, *(column for column in OPTIONAL if column in sheet)]].copy()
    _fill_sites(sheet, where)
    for number, row in enumerate(sheet.to_dict("records"), start=1):
        for column in COLUMNS:
            if not row[column]:
                name = f"slide {row['slide']}" if row["slide"] else f"row {number}"
                raise InputError(f"{where}: {name} has no {column}; fill it in, or remove the row")
        if MISSING.fullmatch(row["patient"]):
            raise InputError(
                f"{where}: slide {row['slide']} has the patient {row['patient']}, which looks like a missing value; "
                "give each slide a patient, if necessary a separate one"
            )
        if not re.fullmatch(NAME, row["slide"]):
            raise InputError(f"{where}: slide {row['slide']!r} names files: use letters, digits, '_', '-', '.'")
        for key, text in row.items():
            if fault := fault_of(text):
                raise InputError(f"{where}: slide {row['slide']}: {key}: {text!r} {fault}")
    for column in {"source", "mask", "tissue"} & set(sheet):
        sheet[column] = sheet[column].map(os.path.expanduser)
    if "mpp" in sheet:
        sheet["mpp"] = sheet["mpp"].str.replace(r"^(\d*),(\d+)$", r"\1.\2", regex=True)  # as half of Europe writes it
    _refuse_repeats(sheet, where)
    for column in ("slide", "patient", "site"):
        for alike in _alike(sheet[column]):
            logger.warning(
                f"{where}: {column}s {' and '.join(alike)} differ only in upper case or spaces, and are treated as "
                f"{len(alike)}; write them in the same way if they are the same"
            )
    if labelled:
        _check_labels(sheet["label"], where, confirmed)
    return sheet


def _fill_sites(sheet: pd.DataFrame, where: str) -> None:
    empty = sheet["site"].str.fullmatch(MISSING) | (sheet["site"] == "")
    if not empty.any():
        return
    of_patient = sheet[~empty].groupby("patient")["site"].first()
    said = set(sheet.loc[empty, "site"])
    sheet.loc[empty, "site"] = [of_patient.get(patient, UNKNOWN) for patient in sheet.loc[empty, "patient"]]
    unknown = int((sheet.loc[empty, "site"] == UNKNOWN).sum())
    if said != {UNKNOWN} or unknown < empty.sum():
        logger.info(
            f"{where}: {counted(empty.sum(), 'slide')} without a site ({', '.join(map(repr, sorted(said)))}); "
            f"{empty.sum() - unknown} get the site of their patient's other slides; for {unknown} it is unknown"
        )


def _refuse_repeats(sheet: pd.DataFrame, where: str) -> None:
    """Refuse what is there twice: a name, or a file by its place, by the place that links lead to, or by its md5."""
    for column, what in (("slide", "slide"), ("source", "file")):
        twice = sheet[column][sheet[column].duplicated()]
        if len(twice):
            raise InputError(f"{where}: {what} {twice.iloc[0]} is listed twice; remove one of its rows")
    keys = {"path": sheet["source"].map(_place)}
    if "md5" in sheet:
        keys["md5"] = sheet["md5"].map(checksum)
    for what, key in keys.items():
        several = key[key.ne("") & key.duplicated(keep=False)]
        if len(several):
            found = several.iloc[0]
            one, other = sheet[key == found].iloc[:2].to_dict("records")
            of = [row["patient"] for row in (one, other)]
            under = f", under the patients {of[0]} and {of[1]}" if of[0] != of[1] else ""
            raise InputError(
                f"{where}: slides {one['slide']} and {other['slide']} are the same file: both have the {what} "
                f"{found}{under}; remove a row, or correct it"
            )


def checksum(md5: str) -> str:
    """An md5 by which files can be compared; empty if it is not known, for which zeros stand, too."""
    return md5.lower().strip("0") and md5.lower()


def _place(source: str) -> str:
    """Where a source's file really is, if it is on a disk."""
    if source.startswith("gdc:"):
        return source.lower()
    return source if re.match("https?://", source) else os.path.realpath(source)


def _alike(words: pd.Series) -> list[list[str]]:
    """Those of different words that differ only in capitals or spaces, in groups."""
    groups = defaultdict(list)
    for word in sorted(words.unique()):
        groups["".join(unicodedata.normalize("NFKC", word).casefold().split())].append(word)
    return [group for group in groups.values() if len(group) > 1]


def _check_labels(labels: pd.Series, where: str, confirmed: Collection[str]) -> None:
    def confirm(meant: list[str]) -> str:
        options = " ".join(f"--confirmed-label {shlex.quote(label)}" for label in meant)
        listed = json.dumps(meant, ensure_ascii=False)
        return f"confirm that it is intended, by confirmed_labels: {listed} in the config, or {options}"

    for alike in _alike(labels):
        if not set(alike) <= set(confirmed):
            which = " and ".join(f"{label!r} ({counted((labels == label).sum(), 'slide')})" for label in alike)
            raise InputError(
                f"{where}: labels {which} differ only in upper case or spaces; write them in the same way, or "
                f"{confirm(alike)}"
            )
    empty = [label for label in sorted(labels.unique()) if MISSING.fullmatch(label) and label not in confirmed]
    if empty:
        count = labels.isin(empty).sum()
        raise InputError(
            f"{where}: label {', '.join(empty)} of {counted(count, 'slide')} looks like a missing value; correct it, "
            f"remove these rows, or {confirm(empty)}"
        )
    found = sorted(labels.unique())
    if len(found) < 2:
        raise InputError(f"{where}: needs two labels or more, but has {len(found)} ({', '.join(found) or 'no slides'})")


def write_sheet(sheet: pd.DataFrame, path: Path, comment: str, labelled: bool = True) -> None:
    """Write a sample sheet that begins with a comment, comma-separated if its name ends in `.csv`, else tab-separated.

    First it is read as it will be read: InputError, and nothing is written, if it is refused, or another comes out.
    Slides of one label are no reason for that.
    """
    if path.suffix.lower() == ".xlsx":
        raise InputError(f"{path}: workbooks cannot be written; give a name that ends in .tsv or .csv")
    where, separator = f"sample sheet {path}", tables.separator_of(path)
    text = f"# {' '.join(comment.split())}\n{as_text(sheet, separator)}"
    table = tables.table_of(text.encode("utf-8"), separator, [*COLUMNS, *OPTIONAL], where)
    if as_text(table) != as_text(sheet):
        raise InputError(f"{where}: could not be read back unchanged; remove unusual characters from it")
    _checked(table, where, source=None, labelled=labelled and sheet["label"].nunique() > 1, confirmed=())
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
