"""How well found tissue, or regions, agree with what they should be: Dice of each slide, and pictures to look at."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import zarr
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from gigapipe.disks import raise_passing
from gigapipe.errors import InputError
from gigapipe.evaluation.columns import PEAK_MEMORY, SECONDS_PER_STEP, read
from gigapipe.evaluation.dice_recommendation import CLASS, DICE, OF_ALL, recommend_by_dice
from gigapipe.pyramids.masks import class_colour
from gigapipe.slides.written_tables import read_written

BAR = "\\|"  # in a cell of Markdown
LONGEST = 1600  # px of a picture
FOUND, MISSED, EXTRA = (0, 150, 60), (255, 140, 0), (200, 0, 200)  # outline, and what should and should not be in it


def dice(found: np.ndarray, mask: np.ndarray) -> float:
    """Overlap of two masks, twice their intersection over the sum of their areas; 1 if both are empty."""
    total = int(found.sum()) + int(mask.sum())
    return 2 * int(np.logical_and(found, mask).sum()) / total if total else 1.0


def compared(found: np.ndarray, mask: np.ndarray, classes: Sequence[str]) -> pd.DataFrame:
    """A row with the Dice of two masks, in the column `dice`; of several `classes` one of each, in the order of values.
    Beside it in `dice_of_all` that of who says the same everywhere.

    NaN is that of a class that is neither there nor found: it says nothing.
    """
    if not classes:
        return pd.DataFrame({DICE: [dice(found, mask)], OF_ALL: [dice(np.ones_like(mask), mask)]})
    pairs = [(found == value, mask == value) for value in range(1, len(classes) + 1)]
    figures = [dice(*pair) if any(of.any() for of in pair) else np.nan for pair in pairs]
    of_all = [dice(np.ones(mask.shape), of_class) for _, of_class in pairs]
    return pd.DataFrame({CLASS: list(classes), DICE: figures, OF_ALL: of_all})


def draw(path: Path, image: zarr.Array, found: np.ndarray, mask: np.ndarray, classes: Sequence[str]) -> None:
    """A PNG of a slide (channel, row, column), and of what was found on it and should have been.

    Of one class the outline of `found`, and what it misses of `mask` or adds, tinted. Of several `classes`, left what
    was found and right what should have been, each class in its colour, and their names below.
    """
    step = max(1, -(-max(found.shape) // LONGEST))
    picture = np.asarray(image[:, ::step, ::step]).transpose(1, 2, 0).astype(np.float32)
    found, mask = found[::step, ::step], mask[::step, ::step]
    if classes:
        drawn = _tinted(picture, found, mask, classes)
    else:
        drawn = _outlined(picture, found.astype(bool), mask.astype(bool))
    Image.fromarray(drawn.round().astype(np.uint8)).save(path, "PNG")


def _outlined(picture: np.ndarray, found: np.ndarray, mask: np.ndarray) -> np.ndarray:
    for colour, where in ((MISSED, mask & ~found), (EXTRA, found & ~mask)):
        picture[where] = (picture[where] + np.array(colour)) / 2
    thick = max(1, max(found.shape) // 400)
    larger = Image.fromarray(found.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * thick + 1))
    outline = np.asarray(larger).astype(bool) & ~found
    picture[outline] = FOUND
    return picture


def _tinted(picture: np.ndarray, found: np.ndarray, mask: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    halves = []
    for values in (found, mask):
        half = picture.copy()
        for value in range(1, len(classes) + 1):
            where = values == value
            half[where] = (half[where] + np.array(class_colour(value))) / 2
        halves.append(half)
    gap = np.full((len(picture), max(2, picture.shape[1] // 50), 3), 255, np.float32)
    pair = np.concatenate([halves[0], gap, halves[1]], axis=1)
    return np.concatenate([pair, _legend(pair.shape[1], classes)])


def _legend(width: int, classes: Sequence[str]) -> np.ndarray:
    """Each class beside its colour, on lines of this width: (rows, columns, 3)."""
    size = max(11, width // 60)
    font = ImageFont.load_default(size)
    line, lines = 2 * size, len(classes)
    picture = Image.new("RGB", (width, line * lines), "white")
    pen = ImageDraw.Draw(picture)
    for value, name in enumerate(classes, start=1):
        top = (value - 1) * line + size // 2
        pen.rectangle((0, top, size, top + size), fill=class_colour(value))
        pen.text((size + size // 2, top - size // 8), name, fill="black", font=font)
    return np.asarray(picture)


def overlaps(tables: list[Path]) -> pd.DataFrame:
    """One row a slide and resolution, and class: what `gigapipe segment` wrote for the folds, together."""
    names = dict.fromkeys(["slide", "patient", "site", CLASS], str)
    empty = {DICE: [""]}
    try:
        found = pd.concat(
            [read_written(table, dtype=names, keep_default_na=False, na_values=empty) for table in tables]
        )
    except (OSError, ValueError) as error:
        raise_passing(error)
        raise InputError(f"dice: cannot be read ({error}); make it with `gigapipe segment`") from None
    found = found.sort_values(["mpp", "slide"], ascending=[False, True], kind="stable").reset_index(drop=True)
    if CLASS not in found:
        return found
    values = {name: value for value, name in enumerate(found[CLASS].unique())}
    order = np.lexsort([found[CLASS].map(values).to_numpy(), -found["mpp"].to_numpy()])  # is stable
    return found.iloc[order].reset_index(drop=True)


def as_markdown(table: pd.DataFrame, trainings: list[Path], margin: float) -> str:
    """A recommendation, and the table for people: mean and standard deviation over slides, at each resolution, and what
    training cost.

    Of several classes, there is a row for each; slides count that have it, or in which it was found.
    """
    costs = pd.DataFrame([json.loads(Path(path).read_text(encoding="utf-8")) for path in trainings])
    costs["mpp"] = [settings["mpp"] for settings in costs["settings"]]
    step, memory = (column.heading for column in read(SECONDS_PER_STEP, PEAK_MEMORY))
    several = CLASS in table
    recommended = recommend_by_dice(table, margin)
    lines = [
        f"**{recommended.headline}** {recommended.reason}",
        "",
        f"| µm/px |{' class |' * several} slides | Dice: mean ± sd | lowest | {step} | {memory} |",
        f"|---:|{':---|' * several}---:|:---:|:---|---:|---:|",
    ]
    for mpp, at_mpp in sorted(table.groupby("mpp"), reverse=True):
        cost = costs[costs["mpp"] == mpp]
        for name, rows in at_mpp.groupby(CLASS, sort=False) if several else [("", at_mpp)]:
            counted = rows.dropna(subset=[DICE])
            figures = "absent, and not predicted | –"
            if len(counted):
                worst = counted.iloc[int(counted[DICE].argmin())]
                figures = (
                    f"{counted[DICE].mean():.4f} ± {counted[DICE].std(ddof=0):.4f} "
                    f"| {worst[DICE]:.4f} ({worst['slide']})"
                )
            label = f" {str(name).replace('|', BAR)} |" * several
            lines.append(
                f"| {mpp:g} |{label} {len(counted)} | {figures} | {_measured(cost[SECONDS_PER_STEP].mean(), '.2f')} "
                f"| {_measured(cost[PEAK_MEMORY].max(), '.0f')} |"
            )
    return "\n".join(lines) + "\n"


def _measured(value: float, form: str) -> str:
    return "not measured" if pd.isna(value) else format(value, form)
