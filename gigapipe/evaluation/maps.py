"""Which slides are worth a look, and pictures of what a network saw in them."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from gigapipe.errors import InputError
from gigapipe.evaluation.columns import NUMBER, PART, PREDICTED, PROBABILITY_OF, TEST
from gigapipe.evaluation.labels import literal
from gigapipe.evaluation.predictions import classes_of, probabilities, read_predictions
from gigapipe.pyramids.folders import OVERVIEW
from gigapipe.pyramids.maps import ActivationMap
from gigapipe.pyramids.store import Pyramid

HEIGHT, WIDEST = 6.0, 10.6  # of a picture, in inches, of 150 pixels each
CHOSEN = HIGHEST, LOWEST, MOST_WRONG, ASKED_FOR = "highest", "lowest", "most wrong", "asked for"
"""Why a slide was mapped."""
OPACITY = 0.6  # of colours over a slide


def chosen_slides(predictions: list[Path], number: int, slides: list[str] | None = None) -> pd.DataFrame:
    """The slides to map, one row each: what `read_predictions` gives of it, and in `chosen` why it was.

    By default the extremes (see there), or `slides`, or with `["all"]` all that were held out. Of a slide that several
    networks have scored, the first. Raises InputError if a slide was not held out, or the predictions are of several
    resolutions.
    """
    table = read_predictions(predictions)
    if table["mpp"].nunique() != 1:
        raise InputError(f"predictions are of {sorted(set(table['mpp']))} µm/px: give those of one resolution")
    numbers = PREDICTED in table
    classes = [] if numbers else classes_of(table)
    if len(classes) == 1:
        raise InputError(f"predictions contain only slides of {classes[0]}: give those of all folds")
    table = table[table[PART] == TEST]
    if not numbers:
        table = table.assign(**{f"{PROBABILITY_OF}{name}": of for name, of in probabilities(table, classes).items()})
    if slides is None:
        why = extremes_of_numbers(table, number) if numbers else extremes(table, number, classes)
    else:
        why = dict.fromkeys(table["slide"] if slides == ["all"] else slides, ASKED_FOR)
    if strange := set(why) - set(table["slide"]):
        raise InputError(f"slide {min(strange)}: it is no network's test slide; correct --slides")
    return table[table["slide"].isin(why)].drop_duplicates("slide").assign(chosen=lambda rows: rows["slide"].map(why))


def extremes(held_out: pd.DataFrame, number: int, classes: list[str]) -> dict[str, str]:
    """Slide to why it is one: the `number` slides each of `highest` and `lowest` score, and the `most wrong`.

    A score is the probability of the last class in alphabetical order, and of a slide that several networks have scored
    their mean. Most wrong is whose own class has the least probability, if another has more. A slide is chosen once,
    as wrong before all else.
    """
    of_class = probabilities(held_out, classes).groupby(held_out["slide"]).mean()
    label = held_out.groupby("slide")["label"].first()
    own = pd.Series(
        of_class.to_numpy()[np.arange(len(label)), of_class.columns.get_indexer(pd.Index(label))], label.index
    )
    wrong = own[of_class.idxmax(axis=1) != label].nsmallest(number).index
    return _chosen(of_class.iloc[:, -1], wrong, number)


def extremes_of_numbers(held_out: pd.DataFrame, number: int) -> dict[str, str]:
    """The same of predicted numbers: most wrong are those that are furthest from the slide's."""
    said = held_out.groupby("slide")[[PREDICTED, NUMBER]].mean()
    wrong = (said[PREDICTED] - said[NUMBER]).abs().nlargest(number).index
    return _chosen(said[PREDICTED], wrong, number)


def _chosen(score: pd.Series, wrong: pd.Index, number: int) -> dict[str, str]:
    score = score.drop(wrong)
    highest = score.nlargest(number).index
    lowest = score.drop(highest).nsmallest(number).index
    return dict.fromkeys(highest, HIGHEST) | dict.fromkeys(lowest, LOWEST) | dict.fromkeys(wrong, MOST_WRONG)


def draw_map(path: Path, found: ActivationMap, pyramid: Pyramid, label: str) -> None:
    """A PNG: the slide and what was mapped of it, and the evidence over it, around zero, with its legend.

    The evidence is that for the second of two classes, and for `label` if there are more; of a number, for a higher
    one. What of the canvas lies beside the slide has no colour.
    """
    classes = found.classes
    label = label if len(classes) > 2 else classes[-1]
    picture = np.asarray(Image.open(pyramid.folder / OVERVIEW).convert("RGB"))
    evidence = found.evidence(label)
    most = max(float(np.abs(evidence).max()), 1e-6)
    colours = ScalarMappable(Normalize(-most, most), "RdBu_r")
    coloured = overlay(picture, found, colours.to_rgba(evidence)[:, :, :3], pyramid)
    # In mm: the picture, and the canvas on it.
    high, wide = (n * um / 1000 for n, um in zip(picture.shape, picture_um(picture, pyramid), strict=False))
    top, left = (start / 1000 for start in found.corner_um)
    side = found.canvas * found.mpp / 1000

    xlim, ylim = (min(left, 0), max(left + side, wide)), (max(top + side, high), min(top, 0))
    shape = (xlim[1] - xlim[0]) / (ylim[0] - ylim[1])
    high_in = min(HEIGHT, (WIDEST - 1) / (2 * shape))
    figure = Figure(figsize=(2 * high_in * shape + 1, high_in + 0.4), layout="constrained")
    for axes, image in zip(figure.subplots(1, 2), (picture, coloured), strict=True):
        axes.imshow(image, extent=(0, wide, high, 0))
        axes.set(xlim=xlim, ylim=ylim, xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.add_patch(Rectangle((left, top), side, side, fill=False, color="0.4", linewidth=0.8))
    slide, mapped = figure.axes
    others = classes[0] if len(classes) == 2 else f"not {label}"
    text = f"log-odds:   {others}  ←    →  {label}" if len(classes) > 1 else f"{label}, from the mean"
    bar = figure.colorbar(colours, ax=mapped, shrink=0.9, label=literal(text), alpha=OPACITY)
    bar.outline.set_visible(False)
    _scale_bar(slide, wide)
    figure.savefig(path, dpi=150, format="png", pil_kwargs={"compress_level": 1})  # tissue hardly gets any smaller


def picture_um(picture: np.ndarray, pyramid: Pyramid) -> tuple[float, float]:
    """µm of a row and a column of a pyramid's picture, (row, column, …), which is smaller by one ratio down and across.

    Its sides are rounded, so that it may end half a pixel beside the slide.
    """
    ratio = max(pyramid.source["shape"]) / max(picture.shape)
    down, across = pyramid.source["mpp"]
    return ratio * down, ratio * across


def overlay(picture: np.ndarray, found: ActivationMap, colours: np.ndarray, pyramid: Pyramid) -> np.ndarray:
    """A pyramid's picture (row, column, 3), uint8, pale, with the colour of each place of a map (row, column, 3), from
    0 to 1, on the pixels of the canvas whose centres lie in it; an outermost one reaches to the canvas's border, which
    the network sees from there.
    """
    grey = picture @ np.array([0.299, 0.587, 0.114])
    pale = np.repeat((grey[:, :, None] + 255) / 2, 3, axis=2)
    places, inside = [], []
    sides = zip(
        picture.shape, picture_um(picture, pyramid), found.first_um, found.corner_um, colours.shape, strict=False
    )
    for pixels, um, first, corner, count in sides:
        centres = (np.arange(pixels) + 0.5) * um
        place = np.floor((centres - first) / found.place_um).astype(int)
        inside.append((centres >= corner) & (centres < corner + found.canvas * found.mpp))
        places.append(place[inside[-1]].clip(0, count - 1))
    where = np.ix_(*inside)
    pale[where] = (1 - OPACITY) * pale[where] + OPACITY * 255 * colours[np.ix_(*places)]
    return pale.round().astype(np.uint8)


def _scale_bar(axes, wide: float) -> None:
    """A bar of a round number of mm below the picture, about a quarter of it long."""
    exponent = 10 ** np.floor(np.log10(wide / 4))
    length = max(step * exponent for step in (1, 2, 5) if step * exponent <= wide / 4)
    text = f"{length:g} mm" if length >= 1 else f"{length * 1000:g} µm"
    below = axes.get_xaxis_transform()
    axes.plot([0, length], [-0.03, -0.03], "k", linewidth=3, transform=below, clip_on=False, solid_capstyle="butt")
    axes.text(length * 1.1, -0.03, text, va="center", fontsize=9, transform=below)
