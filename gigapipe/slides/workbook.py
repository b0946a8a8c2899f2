"""The first sheet of an .xlsx workbook, as text."""

import io
import zipfile

WORKBOOK = b"PK\x03\x04"


def read_workbook(data: bytes) -> tuple[str, list[list[str]], list[str]]:
    """The name of the first sheet that is shown, its rows of cells, and the names of the other sheets that are shown.

    Numbers are as short as they can be, formulas what they came to when the workbook was saved. Raises ValueError,
    which says why, if it is no such workbook.
    """
    import openpyxl  # here, for every job of the workflow reads its sheet, and few sheets are workbooks

    try:
        book = openpyxl.load_workbook(io.BytesIO(data), data_only=True)
    except (zipfile.BadZipFile, EOFError, OSError):
        raise ValueError("it is truncated or damaged") from None
    except Exception:  # of a zip that holds something else it raises whatever it stumbles over
        raise ValueError("it is not an Excel workbook") from None
    sheet, *others = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]
    rows = [[_text(cell) for cell in row] for row in sheet.iter_rows(values_only=True)]
    return sheet.title, rows, [other.title for other in others]


def _text(cell: object) -> str:
    if cell is None:
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
