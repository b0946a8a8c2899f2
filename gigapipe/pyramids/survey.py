"""What became of every slide of a cohort: a table, and a contact sheet."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from gigapipe.pyramids.store import OVERVIEW, Pyramid, at_pixels, left_out

PICTURE, CAPTION = 192, 14  # px a side of a slide on the contact sheet, and of the line below it
OUTLINE = (0, 140, 0)


def table(slides: list[str], pyramids: Path) -> pd.DataFrame:
    """One row a slide: its fate, `whole` or why it was left out, and what its pyramid says of it."""
    rows: list[dict[str, object]] = []
    for slide in slides:
        if reason := left_out(pyramids / slide):
            rows.append({"slide": slide, "fate": reason})
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
                "damaged_tiles": len(source["damaged_tiles"]),
                "md5": source["md5"],
            }
        )
    return pd.DataFrame(rows).convert_dtypes()


def contact_sheet(slides: list[str], pyramids: Path) -> Image.Image:
    """Every slide's overview with the outline of its tissue, and its name; those that were left out have no picture."""
    across = int(np.ceil(np.sqrt(len(slides))))
    down = -(-len(slides) // across)
    sheet = Image.new("RGB", (across * PICTURE, down * (PICTURE + CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, slide in enumerate(slides):
        left, top = i % across * PICTURE, i // across * (PICTURE + CAPTION)
        if left_out(pyramids / slide):
            draw.text((left + 4, top + PICTURE // 2), "left out", fill="red")
        else:
            sheet.paste(_outlined(pyramids / slide), (left + 2, top + 2))
        draw.text((left + 4, top + PICTURE), slide[-PICTURE // 7 :], fill="black")
    return sheet


def _outlined(folder: Path) -> Image.Image:
    picture = Image.open(folder / OVERVIEW)
    picture.thumbnail((PICTURE - 4, PICTURE - 4))
    pixels = np.asarray(picture).copy()
    shape = pixels.shape[:2]
    inside = np.pad(at_pixels(Pyramid(folder).outline, (0, shape[0]), (0, shape[1]), shape), 1)
    middle = inside[1:-1, 1:-1]
    surrounded = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    pixels[middle & ~surrounded] = OUTLINE
    return Image.fromarray(pixels)
