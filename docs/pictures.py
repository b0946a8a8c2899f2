"""Draws the pictures of the documentation: python docs/pictures.py"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gigapipe.spatial.window import Interval, Window, split

FOLDER = Path(__file__).with_name("pictures")
TISSUE, GLASS, LINE, OWN, HALO = "#d9a3c1", "#f7f4f6", "#5b4b66", "#4a7fb5", "#f0a35e"
STYLE = {"svg.hashsalt": "gigapipe", "svg.fonttype": "none", "font.size": 10, "font.family": "sans-serif"}
"""Drawn again, a picture has the same bytes."""


def _slide(axes: Axes, title: str) -> None:
    """A slide of 8 × 6 mm with tissue on it."""
    angle = np.linspace(0, 2 * np.pi, 200)
    radius = 1 + 0.12 * np.sin(3 * angle + 0.5) + 0.07 * np.sin(7 * angle)
    axes.add_patch(Rectangle((0, 0), 8, 6, facecolor=GLASS, edgecolor=LINE))
    axes.fill(4 + 3.1 * radius * np.cos(angle), 3 + 2.2 * radius * np.sin(angle), color=TISSUE)
    axes.set(xlim=(-0.3, 8.3), ylim=(-1.9, 6.3), aspect="equal")
    axes.axis("off")
    axes.set_title(title, fontsize=11)


def _below(axes: Axes, text: str) -> None:
    axes.text(4, -0.4, text, ha="center", va="top")


def whole_slide() -> Figure:
    """Patches, ranks and tiles."""
    figure, (patches, ranks, tiles) = plt.subplots(1, 3, figsize=(10, 3.3), layout="constrained")
    _slide(patches, "usual: patches")
    for x in range(1, 7):
        for y in range(1, 5):
            if (x - 3.5) ** 2 / 9 + (y - 2.5) ** 2 / 4.5 < 1:
                patches.add_patch(Rectangle((x, y), 0.85, 0.85, fill=False, edgecolor=LINE))
    _below(patches, "thousands of small images;\na network sees one at a time")
    _slide(ranks, "gigapipe: ranks")
    for x in (0, 4):
        for y in (0, 3):
            ranks.add_patch(Rectangle((x, y), 4, 3, fill=False, edgecolor=OWN, linewidth=2))
    ranks.add_patch(Rectangle((3.75, 0), 0.5, 6, color=HALO, alpha=0.7, linewidth=0))
    ranks.add_patch(Rectangle((0, 2.75), 8, 0.5, color=HALO, alpha=0.7, linewidth=0))
    _below(ranks, "one image over four ranks (blue), which\nexchange the pixels at their borders (orange)")
    _slide(tiles, "gigapipe: streaming")
    tiles.add_patch(Rectangle((2.75, 2.75), 2.5, 2.5, color=HALO, alpha=0.7, linewidth=0))
    tiles.add_patch(Rectangle((3, 3), 2, 2, facecolor=TISSUE, edgecolor=OWN, linewidth=2))
    for x in range(1, 8):
        tiles.plot([x, x], [0, 6], color=LINE, linewidth=0.4)
    for y in range(1, 6):
        tiles.plot([0, 8], [y, y], color=LINE, linewidth=0.4)
    _below(tiles, "one image on one machine, tile by tile;\nthe same gradients in less memory")
    return figure


LAYERS = [
    ("7 × 7, stride 2", Window(7, 2, (3, 3))),
    ("3 × 3, stride 1", Window(3, 1, (1, 1))),
    ("3 × 3, stride 2", Window(3, 2, (1, 1))),
]
"""Of the pictures of rows."""
ROWS = 45


def _rows(title: str, colors: list[list[str]]) -> Figure:
    """The rows of an image and of what each of `LAYERS` makes of it, in the colour that each row has."""
    figure, axes = plt.subplots(figsize=(10, 2.9), layout="constrained")
    for level, of_level in enumerate(colors):
        width = ROWS / len(of_level)
        for row, color in enumerate(of_level):
            axes.add_patch(Rectangle((row * width, -level), width * 0.94, 0.5, facecolor=color, edgecolor=LINE))
        says = "image" if level == 0 else "output" if level == len(LAYERS) else f"layer {level}"
        axes.text(-0.3, 0.25 - level, f"{says}, {len(of_level)} rows", ha="right", va="center")
        if level < len(LAYERS):
            axes.text(ROWS + 0.3, -level - 0.3, LAYERS[level][0], va="center")
    axes.set(xlim=(-9, ROWS + 7), ylim=(-len(LAYERS) - 0.2, 0.8))
    axes.axis("off")
    axes.set_title(title, fontsize=11)
    return figure


def _sizes() -> list[int]:
    sizes = [ROWS]
    for _, window in LAYERS:
        sizes.append(window.output_size(sizes[-1]))
    return sizes


def windows() -> Figure:
    """The rows that the second of two ranks needs of each layer's input, for its half of the output."""
    sizes, colors = _sizes(), []
    for level, size in enumerate(sizes):
        own, needed = split(size, 2, 1), Interval(0, 0)
        if level < len(LAYERS):
            needed = LAYERS[level][1].needs(split(sizes[level + 1], 2, 1))
        colors.append([OWN if row in range(*own) else HALO if row in range(*needed) else GLASS for row in range(size)])
    return _rows("second of two ranks: rows that it owns (blue), and the halo that it receives (orange)", colors)


def tile() -> Figure:
    """The rows of every earlier image that a tile of the output needs."""
    sizes, needed, colors = _sizes(), Interval(4, 7), []
    for level in reversed(range(len(sizes))):
        colors.insert(0, [OWN if row in range(*needed) else GLASS for row in range(sizes[level])])
        if level:
            needed = LAYERS[level - 1][1].needs(needed)
    return _rows("a tile of three rows of the output, and what it needs of every image before (blue)", colors)


def folds() -> Figure:
    """Patients of six hospitals in three folds, by patient and by hospital."""
    figure, axes = plt.subplots(figsize=(10, 2.6), layout="constrained")
    hospitals = np.repeat(np.arange(6), 4)
    colours = plt.colormaps["Set2"].colors
    mixed = np.random.default_rng(0).permutation(hospitals)
    for row, (says, order) in enumerate({"by patient": mixed, "by site": hospitals}.items()):
        for place, hospital in enumerate(order):
            left = place + place // 8  # a gap between folds
            axes.add_patch(Rectangle((left, -1.6 * row), 0.9, 0.9, facecolor=colours[hospital], edgecolor=LINE))
            axes.text(left + 0.45, 0.45 - 1.6 * row, "ABCDEF"[hospital], ha="center", va="center")
        axes.text(-0.4, 0.45 - 1.6 * row, says, ha="right", va="center")
    for fold in range(3):
        axes.text(9 * fold + 4, 1.15, f"fold {fold}", ha="center")
    axes.set(xlim=(-4, 27), ylim=(-1.9, 1.6))
    axes.axis("off")
    return figure


def main() -> None:
    with plt.rc_context(STYLE):
        for draw in (whole_slide, windows, tile, folds):
            path = FOLDER / f"{draw.__name__.replace('_', '-')}.svg"
            draw().savefig(path, metadata={"Date": None}, bbox_inches="tight")


if __name__ == "__main__":
    main()
