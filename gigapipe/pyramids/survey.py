"""What became of every slide of a cohort: a table, and a contact sheet."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from gigapipe.plural import counted
from gigapipe.pyramids.folders import OVERVIEW, left_out
from gigapipe.pyramids.store import Pyramid, at_pixels
from gigapipe.slides.verdicts import DOUBTFUL, FINE, NO_TISSUE, NONE

PICTURE, CAPTION, GAP, EDGE = 192, 14, 12, 4
"""Px on the contact sheet: a side of a slide's place, its name's height, what is below that, and beside a picture."""
ROW = PICTURE + CAPTION + GAP
NAMED = 5  # slides of a kind, at most, in a line about all
OUTLINES = {FINE: (0, 140, 0), DOUBTFUL: (230, 110, 0)}


def table(slides: list[str], pyramids: Path) -> pd.DataFrame:
    """One row a slide: its fate, `whole` or why it was left out, and what its pyramid says of it and of its tissue."""
    rows: list[dict[str, object]] = []
    for slide in slides:
        if reason := left_out(pyramids / slide):
            rows.append({"slide": slide, "fate": reason, "verdict": NONE if NO_TISSUE in reason else None})
            continue
        pyramid = Pyramid(pyramids / slide)
        source = pyramid.source
        rows.append(
            {
                "slide": slide,
                "fate": "whole",
                "rows": source["shape"][0],
                "columns": source["shape"][1],
                "mpp": max(source["mpp"]),
                "vendor": source["vendor"],
                "tissue": round(pyramid.tissue["fraction"], 4),
                "verdict": pyramid.tissue["verdict"],
                "why": pyramid.tissue["why"],
                "damaged_tiles": len(source["damaged_tiles"]),
                "unused_levels": len(source.get("unused_levels", [])),
                "md5": source["md5"],
            }
        )
    return pd.DataFrame(rows).convert_dtypes()


def summary(table: pd.DataFrame) -> str:
    """One line about all slides of such a table: how many have tissue, and which have faults."""
    verdict = table["verdict"].fillna("") if "verdict" in table else pd.Series("", table.index)
    kept = table["fate"] == "whole"
    kinds = {
        "with tissue": kept & ~verdict.isin([DOUBTFUL, NONE]),
        "with doubtful tissue": kept & (verdict == DOUBTFUL),
        "kept without tissue": kept & (verdict == NONE),
        "left out without tissue": ~kept & (verdict == NONE),
        "left out for another reason": ~kept & (verdict != NONE),
        "with levels that are not used": _count(table, "unused_levels") > 0,
        "with damaged tiles": _count(table, "damaged_tiles") > 0,
    }
    parts = []
    for what, those in kinds.items():
        names = list(table["slide"][those])
        which = f" ({', '.join(names[:NAMED])}{', …' if len(names) > NAMED else ''})" * (what != "with tissue")
        if names:
            parts.append(f"{len(names)} {what}{which}")
    return f"{counted(len(table), 'slide')}: " + ", ".join(parts)


def _count(table: pd.DataFrame, column: str) -> pd.Series:
    """A column of numbers, of which a slide that was left out, and an older table, has none."""
    return table[column].fillna(0).astype(int) if column in table else pd.Series(0, table.index)


def contact_sheet(slides: list[str], pyramids: Path) -> Image.Image:
    """Every slide's overview with the outline of its tissue, and its name right below it; of those that were left out
    that they were.

    What is doubtful is orange, and so is the name of a slide that is kept without tissue.
    """
    across = int(np.ceil(np.sqrt(len(slides))))
    down = -(-len(slides) // across)
    sheet = Image.new("RGB", (across * PICTURE, down * ROW), "white")
    draw = ImageDraw.Draw(sheet)
    for i, slide in enumerate(slides):
        left, below = i % across * PICTURE, i // across * ROW + PICTURE
        colour = (0, 0, 0)
        if reason := left_out(pyramids / slide):
            what = "left out: no tissue" if NO_TISSUE in reason else "left out"
            draw.text((left + EDGE, below - CAPTION), what, fill="red")
        else:
            pyramid = Pyramid(pyramids / slide)
            picture = outlined(pyramid)
            sheet.paste(picture, (left + EDGE, below - picture.height))
            if pyramid.tissue["verdict"] in (DOUBTFUL, NONE):
                colour = OUTLINES[DOUBTFUL]
        draw.text((left + EDGE, below), _fitting(slide, draw), fill=colour)
    return sheet


def _fitting(name: str, draw: ImageDraw.ImageDraw) -> str:
    """A name, without its middle if it is wider than a picture: how it begins and ends tells slides apart."""
    shown, cut = name, 0
    while draw.textlength(shown) > PICTURE - 2 * EDGE:
        cut += 1
        shown = f"{name[: (len(name) - cut + 1) // 2]}...{name[len(name) - (len(name) - cut) // 2 :]}"
    return shown


def same_files(table: pd.DataFrame) -> str:
    """Which slides of such a table are one file, as their md5 tells now that they were read; empty if none are."""
    if "md5" not in table:
        return ""
    read = table[table["md5"].notna() & table["md5"].duplicated(keep=False)]
    pairs = [" and ".join(slides) for _, slides in read.groupby("md5", sort=False)["slide"]]
    return f"slides {'; '.join(pairs)} are the same file: keep only one of them in the sample sheet" if pairs else ""


def outlined(pyramid: Pyramid) -> Image.Image:
    """A slide in small, with the outline of its tissue in the colour of its verdict."""
    picture = Image.open(pyramid.folder / OVERVIEW)
    picture.thumbnail((PICTURE - 2 * EDGE, PICTURE - 2 * EDGE))
    pixels = np.asarray(picture).copy()
    shape = pixels.shape[:2]
    inside = np.pad(at_pixels(pyramid.outline, (0, shape[0]), (0, shape[1]), shape), 1)
    middle = inside[1:-1, 1:-1]
    surrounded = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    pixels[middle & ~surrounded] = OUTLINES.get(pyramid.tissue["verdict"], OUTLINES[FINE])
    return Image.fromarray(pixels)
