"""How well found tissue agrees with what it should be: Dice of each slide, and pictures to look at."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import zarr
from PIL import Image
from scipy import ndimage

from gigapipe.errors import InputError
from gigapipe.evaluation.columns import PEAK_MEMORY, SECONDS_PER_STEP, read

LONGEST = 1600  # px of a picture
FOUND, MISSED, EXTRA = (0, 150, 60), (255, 140, 0), (200, 0, 200)  # outline, and what should and should not be in it


def dice(found: np.ndarray, mask: np.ndarray) -> float:
    """Overlap of two masks, twice their intersection over the sum of their areas; 1 if both are empty."""
    total = int(found.sum()) + int(mask.sum())
    return 2 * int(np.logical_and(found, mask).sum()) / total if total else 1.0


def draw_overlay(path: Path, image: zarr.Array, found: np.ndarray, mask: np.ndarray) -> None:
    """A PNG of a slide (channel, row, column): the outline of `found`, and what it misses of `mask` or adds, tinted."""
    step = max(1, -(-max(found.shape) // LONGEST))
    picture = np.asarray(image[:, ::step, ::step]).transpose(1, 2, 0).astype(np.float32)
    found, mask = found[::step, ::step].astype(bool), mask[::step, ::step].astype(bool)
    for colour, where in ((MISSED, mask & ~found), (EXTRA, found & ~mask)):
        picture[where] = (picture[where] + np.array(colour)) / 2
    thick = max(1, max(found.shape) // 400)
    outline = ndimage.binary_dilation(found, iterations=thick) & ~found
    picture[outline] = FOUND
    Image.fromarray(picture.round().astype(np.uint8)).save(path, "PNG")


def overlaps(tables: list[Path]) -> pd.DataFrame:
    """One row a slide and resolution: what `gigapipe segment` wrote for the folds, together."""
    names = dict.fromkeys(["slide", "patient", "site"], str)
    try:
        found = pd.concat([pd.read_csv(table, sep="\t", dtype=names, keep_default_na=False) for table in tables])
    except (OSError, ValueError) as error:
        raise InputError(f"dice: cannot be read ({error}); make it with `gigapipe segment`") from None
    return found.sort_values(["mpp", "slide"], ascending=[False, True]).reset_index(drop=True)


def as_markdown(table: pd.DataFrame, trainings: list[Path]) -> str:
    """The table for people: mean and standard deviation over slides, at each resolution, and what training cost."""
    costs = pd.DataFrame([json.loads(Path(path).read_text(encoding="utf-8")) for path in trainings])
    costs["mpp"] = [settings["mpp"] for settings in costs["settings"]]
    step, memory = (column.heading for column in read(SECONDS_PER_STEP, PEAK_MEMORY))
    lines = [
        f"| µm/px | slides | Dice: mean ± sd | lowest | {step} | {memory} |",
        "|---:|---:|:---:|:---|---:|---:|",
    ]
    for mpp, rows in sorted(table.groupby("mpp"), reverse=True):
        worst, cost = rows.iloc[int(rows["dice"].argmin())], costs[costs["mpp"] == mpp]
        lines.append(
            f"| {mpp:g} | {len(rows)} | {rows['dice'].mean():.4f} ± {rows['dice'].std(ddof=0):.4f} "
            f"| {worst['dice']:.4f} ({worst['slide']}) | {cost[SECONDS_PER_STEP].mean():.2f} "
            f"| {cost[PEAK_MEMORY].max():.0f} |"
        )
    return "\n".join(lines) + "\n"
