"""The sample sheet: which slides there are, whose they are, and what they show."""

import re
from pathlib import Path

import pandas as pd

from gigapipe.errors import InputError

COLUMNS = ["slide", "patient", "site", "label", "source"]
OPTIONAL = ["mask", "mpp", "filename", "md5", "size"]
# Slides' names become file names: no separators, no leading dot, no surprises for a shell.
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}"


def read_table(path: str | Path) -> pd.DataFrame:
    """Every column of a sample sheet, all text, without the comments (`# …`) that it may begin with.

    Tab-separated, or comma-separated if its name ends in `.csv`. Raises InputError if it cannot be read.
    """
    path = Path(path)
    try:
        # utf-8-sig: spreadsheet programs put a byte order mark before the first column's name.
        with open(path, encoding="utf-8-sig") as file:
            begin = 0
            while file.readline().startswith("#"):
                begin = file.tell()
            file.seek(begin)
            separator = "," if path.suffix.lower() == ".csv" else "\t"
            # index_col: a separator too many at the end of each line must not move every cell by one.
            return pd.read_csv(file, sep=separator, dtype=str, keep_default_na=False, index_col=False)
    except (OSError, ValueError) as error:
        raise InputError(f"sample sheet {path}: cannot be read ({' '.join(str(error).split())})") from None


def read_sheet(path: str | Path, source: str | None = None, labelled: bool = True) -> pd.DataFrame:
    """The sample sheet with the columns `COLUMNS`, and of `OPTIONAL` what it has, all text, in the sheet's order.

    It is read as `read_table` reads. `source` (`"slides/{slide}.svs"`) stands in for a missing `source` column; a
    missing `site` column means that the site is unknown, and is filled with `unknown`, and so is `label`, there or not,
    unless the slides must be `labelled`. Other columns are left out.

    Raises InputError, naming the slide where there is one: a column or cell is missing, a name is not usable as a
    file name, a slide or a file is listed twice, a patient has two labels, or all have one; labels matter
    only where the slides must be `labelled`.
    """
    sheet = read_table(path)
    if "source" not in sheet and source:
        sheet["source"] = [source.replace("{slide}", slide) for slide in sheet.get("slide", [])]
    if "site" not in sheet:
        sheet["site"] = "unknown"
    if not labelled:
        sheet["label"] = "unknown"
    missing = [column for column in COLUMNS if column not in sheet]
    if missing:
        raise InputError(f"sample sheet {path}: has no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
    sheet = sheet[[*COLUMNS, *(column for column in OPTIONAL if column in sheet)]].apply(
        lambda column: column.str.strip()
    )
    for number, row in enumerate(sheet.to_dict("records"), start=1):
        for column in COLUMNS:
            if not row[column]:
                name = f"slide {row['slide']}" if row["slide"] else f"row {number}"
                raise InputError(f"sample sheet {path}: {name} has no {column}; fill it in, or remove the row")
        if not re.fullmatch(NAME, row["slide"]):
            raise InputError(
                f"sample sheet {path}: slide {row['slide']!r} names files: use letters, digits, '_', '-', '.'"
            )
    for column, what in (("slide", "slide"), ("source", "file")):
        twice = sheet[column][sheet[column].duplicated()]
        if len(twice):
            raise InputError(f"sample sheet {path}: {what} {twice.iloc[0]} is listed twice; remove one of its rows")
    labels_of = sheet.groupby("patient")["label"].unique()
    for patient, labels in labels_of.items():
        if len(labels) > 1:
            raise InputError(
                f"sample sheet {path}: patient {patient} has labels {' and '.join(sorted(labels))}; give one"
            )
    labels = sorted(sheet["label"].unique())
    if labelled and len(labels) < 2:
        raise InputError(
            f"sample sheet {path}: needs two labels or more, but has {len(labels)} ({', '.join(labels) or 'no slides'})"
        )
    return sheet
