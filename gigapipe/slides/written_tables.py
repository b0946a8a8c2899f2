"""Tables that gigapipe writes, for programs and for spreadsheets: text in them is text, and no formula."""

import re
from pathlib import Path
from typing import Any

import pandas as pd

# What spreadsheets compute when they open a table, or hand on to the cell after it; and the same with an apostrophe, by
# which a spreadsheet, and the archive's own tables, mark a text.
FORMULA = re.compile(r"'*[=+@\t\r＝＋－＠-].", re.DOTALL)
NUMBER = re.compile(r"[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)(e[+-]?[0-9]+)?|[+-]?inf", re.IGNORECASE)


def disarmed(cell: Any) -> Any:
    """A cell in which a spreadsheet finds no formula: an apostrophe is put before it. Numbers, too as text, stay."""
    if isinstance(cell, str) and FORMULA.match(cell) and not NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell


def meant(cell: Any) -> Any:
    """The cell that `disarmed` made this one of."""
    return cell[1:] if isinstance(cell, str) and cell.startswith("'") and FORMULA.match(cell) else cell


def as_text(table: pd.DataFrame, separator: str = "\t", **options) -> str:
    """The table as text, its columns' names first, without its index; `options` are those of `DataFrame.to_csv`."""
    return _each_text(table, disarmed).to_csv(sep=separator, index=False, **options)


def write_table(table: pd.DataFrame, path: Path, **options) -> None:
    """The same, tab-separated, in a file."""
    path.write_text(as_text(table, **options), encoding="utf-8")


def read_written(path: Path, **options) -> pd.DataFrame:
    """A table that `write_table` wrote, as it was; `options` are those of `pandas.read_csv`, whose errors it raises."""
    return _each_text(pd.read_csv(path, sep="\t", **options), meant)


def _each_text(table: pd.DataFrame, change) -> pd.DataFrame:
    changed = table.set_axis([change(name) for name in table.columns], axis=1)
    for name, column in table.items():
        if not pd.api.types.is_numeric_dtype(column.dtype):
            changed[change(name)] = column.map(change)
    return changed
