"""Tables that people give, as their programs save them: what is plain is read, what was assumed is said."""

import codecs
import csv
import io
import logging
import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from gigapipe.disks import raise_passing
from gigapipe.errors import InputError
from gigapipe.slides.workbook import WORKBOOK, read_workbook
from gigapipe.slides.written_tables import meant

logger = logging.getLogger(__name__)

SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}
MARKS = {  # in this order: the mark of UTF-32 begins with that of UTF-16
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
OLD_WORKBOOK = bytes.fromhex("d0cf11e0a1b11ae1")
SAVE = "save it as CSV, in UTF-8"


def separator_of(path: Path) -> str:
    """What separates the columns of a file of this name, if its writer keeps to it."""
    return "," if path.suffix.lower() == ".csv" else "\t"


def read_table(path: Path, known: Iterable[str], what: str) -> pd.DataFrame:
    """The table in a file, as `table_of` reads it. `what` it is begins each message."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise_passing(error)
        raise InputError(f"{what} {path}: cannot be read ({error.strerror or error}); correct its path") from None
    return table_of(data, separator_of(path), known, f"{what} {path}")


def table_of(data: bytes, usual: str, known: Iterable[str], where: str) -> pd.DataFrame:
    """Every column of a table, all text without spaces around it; not its empty rows, nor comments before it.

    Columns whose name is one of `known`, but for capitals and spaces, have it. The separator is the one by which the
    first row has the most of them, and the `usual` one if another has no more. UTF-8 and UTF-16 are told apart, all
    else is taken for Windows-1252; of an .xlsx workbook the first sheet is read. What was assumed is logged, after
    `where`. `attrs["seen"]` says, for another message, which columns were found.

    Raises InputError if it cannot be read, a row has more cells than there are columns, or two have one name.
    """
    names = {folded(name): name for name in known}
    if data.startswith(OLD_WORKBOOK):
        raise InputError(f"{where}: is a workbook of an old version of Excel, or has a password; {SAVE}, or as .xlsx")
    if data.startswith(WORKBOOK):
        rows, separated = _workbook(data, where), "the cells of a workbook"
    else:
        text = _without_comments(_text(data, where))
        separator = _separator(text, names, usual)
        separated = f"separated by {SEPARATORS[separator]}"
        if separator != usual:
            logger.info(f"{where}: its columns are {separated}")
        rows = _cells(text, separator, where)
    return _frame(rows, names, separated, where)


def folded(name: str) -> str:
    return " ".join(name.split()).casefold()


def _text(data: bytes, where: str) -> str:
    """What the bytes say."""
    mark = next((mark for mark in MARKS if data.startswith(mark)), b"")
    if mark:
        data, encoding = data[len(mark) :], MARKS[mark]
    else:
        even, odd = data[:1000:2].count(0), data[1:1000:2].count(0)
        encoding = "utf-8" if not even + odd else "utf-16-le" if odd > even else "utf-16-be"
        if encoding != "utf-8":
            logger.info(f"{where}: read as {encoding.upper()}")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        if encoding != "utf-8":
            raise InputError(f"{where}: cannot be read as {encoding.upper()}; {SAVE}") from None
    text = data.decode("cp1252", errors="replace")
    if "\ufffd" in text:
        text = data.decode("latin-1")
    word = re.search(r"[^\s,;|]*[^\x00-\x7f][^\s,;|]*", text)
    logger.warning(f"{where}: is not UTF-8; as Windows-1252 it reads {word and word[0]!r}: if that is wrong, {SAVE}")
    return text


def _without_comments(text: str) -> str:
    """The table, without comments, which a spreadsheet may have quoted, empty lines and Excel's `sep=;` before it."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    while text:
        line, _, rest = text.partition("\n")
        if line.strip(" \t,;|") and not re.match(r'"?(#|sep=.)', line):
            break
        text = rest
    return text


def _separator(text: str, names: dict[str, str], usual: str) -> str:
    """By which the first line has the most of the names, or, where it has none, the most cells; else the usual one."""
    line = text.partition("\n")[0]

    def columns(separator: str) -> tuple[int, int]:
        cells = [folded(_clean(cell)) for cell in next(csv.reader([line], delimiter=separator), [])]
        known = len({*cells} & {*names})
        return known, 0 if known else len(cells)

    return max([usual, *SEPARATORS], key=columns)


def _cells(text: str, separator: str, where: str) -> list[list[str]]:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        return list(rows)
    except csv.Error as error:
        raise InputError(
            f"{where}: line {rows.line_num} below the comments cannot be read ({error}); correct its quotes"
        ) from None


def _workbook(data: bytes, where: str) -> list[list[str]]:
    try:
        sheet, rows, others = read_workbook(data)
    except ValueError as error:
        raise InputError(f"{where}: cannot be read as a workbook ({error}); {SAVE}") from None
    if others:
        logger.info(f"{where}: reading {sheet!r}, the first of its sheets, and not {', '.join(map(repr, others))}")
    while rows and (not any(map(_clean, rows[0])) or rows[0][0].startswith("#")):
        rows = rows[1:]
    return rows


def _clean(cell: str) -> str:
    return meant(cell.replace("\u200b", "").replace("\ufeff", "").strip())


def _frame(rows: list[list[str]], names: dict[str, str], separated: str, where: str) -> pd.DataFrame:
    header, *rows = [[_clean(cell) for cell in row] for row in rows] or [[]]
    while header and not header[-1]:
        header.pop()
    header = [names.get(folded(name), name) for name in header]
    if twice := sorted({name for name in header if name in names.values() and header.count(name) > 1}):
        raise InputError(f"{where}: has two columns {twice[0]}; remove one")
    width, whole = len(header), list[list[str]]()
    if not {*header} & {*names.values()}:
        rows = []  # what was taken for the columns' names is something else
    for number, row in enumerate(rows, start=1):
        if any(row[width:]):
            raise InputError(
                f"{where}: row {number} has {len(row)} cells, but there are {width} columns, {separated}; put quotes "
                "around cells that contain the separator"
            )
        if any(row):
            whole.append((row + [""] * width)[:width])
    table = pd.DataFrame(whole, columns=header, dtype=str)
    columns = ", ".join(repr(name) for name in header[:12]) or "none"
    table.attrs["seen"] = f"found are the columns {columns}{', …' * (width > 12)}, {separated}"
    return table
