"""Which slides are worth a look, and pictures of what a network saw in them."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from gigapipe.errors import InputError
from gigapipe.evaluation.columns import PART, TEST
from gigapipe.evaluation.predictions import probabilities, read_predictions
from gigapipe.pyramids.maps import ActivationMap
from gigapipe.pyramids.store import OVERVIEW, Pyramid

HEIGHT, WIDEST = 2.7, 12.0  # of a picture, in inches


def chosen_slides(predictions: list[Path], number: int, slides: list[str] | None = None) -> pd.DataFrame:
    """The slides to map, one row each: what `read_predictions` gives of it, and in `chosen` why it was.

    By default the extremes (see there), or `slides`, or with `["all"]` all that were held out. Of a slide that several
    networks have scored, the first. Raises InputError if a slide was not held out, or the predictions are of several
    resolutions.
    """
    table = read_predictions(predictions)
    if table["mpp"].nunique() != 1:
        raise InputError(f"predictions are of {sorted(set(table['mpp']))} µm/px: give those of one resolution")
    table = table[table[PART] == TEST]
    table = table.assign(**probabilities(table).add_prefix("probability of "))
    if slides is None:
        why = extremes(table, number)
    else:
        why = dict.fromkeys(table["slide"] if slides == ["all"] else slides, "asked for")
    if strange := set(why) - set(table["slide"]):
        raise InputError(f"slide {min(strange)}: no network has held it out; correct --slides")
    return table[table["slide"].isin(why)].drop_duplicates("slide").assign(chosen=lambda rows: rows["slide"].map(why))


def extremes(held_out: pd.DataFrame, number: int) -> dict[str, str]:
    """Slide to why it is one: the `number` slides each of `highest` and `lowest` score, and the `most wrong`.

    A score is the probability of the last class in alphabetical order, and of a slide that several networks have scored
    their mean. Most wrong is whose own class has the least probability, if another has more. A slide is chosen once,
    as wrong before all else.
    """
    of_class = probabilities(held_out).groupby(held_out["slide"]).mean()
    label = held_out.groupby("slide")["label"].first()
    own = pd.Series(
        of_class.to_numpy()[np.arange(len(label)), of_class.columns.get_indexer(pd.Index(label))], label.index
    )
    wrong = own[of_class.idxmax(axis=1) != label].nsmallest(number).index
    score = of_class.iloc[:, -1].drop(wrong)
    highest = score.nlargest(number).index
    lowest = score.drop(highest).nsmallest(number).index
    return dict.fromkeys(highest, "highest") | dict.fromkeys(lowest, "lowest") | dict.fromkeys(wrong, "most wrong")


def draw_map(path: Path, found: ActivationMap, pyramid: Pyramid, label: str) -> None:
    """A PNG: the slide and what was mapped of it, and the evidence over it, around zero, with its legend.

    The evidence is that for the second of two classes, and for `label` if there are more.
    """
    classes = found.classes
    label = classes[1] if len(classes) == 2 else label
    picture = Image.open(pyramid.folder / OVERVIEW).convert("RGB")
    pale = Image.blend(picture.convert("L").convert("RGB"), Image.new("RGB", picture.size, "white"), 0.5)
    # In mm: the slide, the canvas on it, and the map's places, which reach past the canvas.
    high, wide = (n * mpp / 1000 for n, mpp in zip(pyramid.source["shape"], pyramid.source["mpp"], strict=True))
    top, left = (start / 1000 for start in found.corner_um)
    side = found.canvas * found.mpp / 1000
    first_row, first_column = (start / 1000 for start in found.first_um)
    evidence = found.evidence(label)
    rows, columns = (n * found.place_um / 1000 for n in evidence.shape)
    most = max(float(np.abs(evidence).max()), 1e-6)

    xlim, ylim = (min(left, 0), max(left + side, wide)), (max(top + side, high), min(top, 0))
    shape = (xlim[1] - xlim[0]) / (ylim[0] - ylim[1])
    high_in = min(HEIGHT, (WIDEST - 1) / (2 * shape))
    figure = Figure(figsize=(2 * high_in * shape + 1, high_in + 0.4), layout="constrained")
    for axes, image in zip(figure.subplots(1, 2), (picture, pale), strict=True):
        axes.imshow(image, extent=(0, wide, high, 0))
        axes.set(xlim=xlim, ylim=ylim, xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    slide, mapped = figure.axes
    slide.add_patch(Rectangle((left, top), side, side, fill=False, color="0.4", linewidth=0.8))
    drawn = mapped.imshow(
        evidence,
        extent=(first_column, first_column + columns, first_row + rows, first_row),
        cmap="RdBu_r",
        norm=TwoSlopeNorm(0, -most, most),
        alpha=0.6,
        interpolation="nearest",
    )
    drawn.set_clip_path(Rectangle((left, top), side, side, transform=mapped.transData))
    mapped.set(xlim=xlim, ylim=ylim)
    others = classes[0] if len(classes) == 2 else f"not {label}"
    bar = figure.colorbar(drawn, ax=mapped, shrink=0.9, label=f"log-odds:   {others}  ←    →  {label}")
    bar.outline.set_visible(False)
    _scale_bar(slide, wide)
    figure.savefig(path, dpi=150, format="png")


def _scale_bar(axes, wide: float) -> None:
    """A bar of a round number of mm below the picture, about a quarter of it long."""
    exponent = 10 ** np.floor(np.log10(wide / 4))
    length = max(step * exponent for step in (1, 2, 5) if step * exponent <= wide / 4)
    text = f"{length:g} mm" if length >= 1 else f"{length * 1000:g} µm"
    below = axes.get_xaxis_transform()
    axes.plot([0, length], [-0.03, -0.03], "k", linewidth=3, transform=below, clip_on=False, solid_capstyle="butt")
    axes.text(length * 1.1, -0.03, text, va="center", fontsize=9, transform=below)
