"""Labels of figures where nothing else lies: beside the panels, in rows if they are many, or else left out."""

import textwrap
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

SMALL, SMALLER = 8, 7.5  # of letters, in points
GREY = "#555"
PANEL = 0.75
"""Share of a panel's side, at least, that is left to its axes by what is written beside them."""
A_LINE = 95  # letters of the smaller size across a figure


def literal(text: str) -> str:
    """A text in which matplotlib finds no formula."""
    return text.replace("$", r"\$")


def width(text: str, size: float) -> float:
    """Of a text in letters of this size, in points."""
    return TextPath((0, 0), literal(text), size=size).get_extents().width if text.strip() else 0.0


def points(axes: Axes) -> tuple[float, float]:
    """How wide and how high axes are, about and at most so much more, in points."""
    figure, grid = axes.get_figure(), axes.get_gridspec()
    assert isinstance(figure, Figure) and grid is not None
    wide, high = figure.get_size_inches()
    return 72 * PANEL * wide / grid.ncols, 72 * PANEL * high / grid.nrows


def above(axes: Axes, places: Iterable[float], texts: Iterable[str], share: Callable[[float], float]) -> int:
    """Write texts above the axes, each over its place, in as many rows as they need side by side; how many those are.

    `share` is how far a place is along the axis, from 0 to 1.
    """
    ends: list[float] = []
    wide, _ = points(axes)
    for place, text in sorted(set(zip(places, texts, strict=True)), key=lambda one: share(one[0])):
        middle, half = share(place) * wide, width(text, SMALL) / 2 + 3
        row = next((row for row, end in enumerate(ends) if end <= middle - half), len(ends))
        ends[row:] = [middle + half, *ends[row + 1 :]]
        axes.annotate(
            literal(text), (place, 1), (0, 3 + 11 * row), xycoords=axes.get_xaxis_transform(),
            textcoords="offset points", ha="center", va="bottom", fontsize=SMALL, annotation_clip=False,
        )  # fmt: skip
    return len(ends)


def beside(axes: Axes, shares: Sequence[float], texts: Sequence[str]) -> None:
    """Write texts right of the axes, each at its share of the height or as near as they have room, led to it."""
    from scipy.optimize import isotonic_regression  # slow to import

    _, high = points(axes)
    order = np.argsort(shares, kind="stable")
    apart = (SMALLER + 2.5) / high * np.arange(len(shares))
    found = isotonic_regression(np.asarray(shares)[order] - apart).x + apart
    for i, place in zip(order, found, strict=True):
        axes.plot([1, 1.02], [shares[i], place], transform=axes.transAxes, color=GREY, linewidth=0.5, clip_on=False)
        axes.text(1.025, place, texts[i], transform=axes.transAxes, va="center", fontsize=SMALLER, color=GREY)


def ticks(
    axes: Axes, values: Iterable[float], share: Callable[[float], float], name: Callable[[float], str], exact: bool
) -> None:
    """Name these values on the horizontal axis, which is logarithmic; round ones if not all have room, unless `exact`.

    Those that have no room are left out. `share` is as in `above`.
    """
    values = sorted(set(values))
    shown = _with_room(axes, values, share, name)
    if len(shown) < len(values) and not exact:
        decades = range(*np.floor(np.log10([values[0] / 10, values[-1] * 100])).astype(int))
        within = [n * 10.0**decade for decade in decades for n in (1, 2, 5) if 0 <= share(n * 10.0**decade) <= 1]
        round_ones = _with_room(axes, within, share, name)
        shown = round_ones if len(round_ones) > 1 else shown
    axes.set_xticks(shown, [name(value) for value in shown])
    axes.minorticks_off()


def _with_room(
    axes: Axes, values: Sequence[float], share: Callable[[float], float], name: Callable[[float], str]
) -> list[float]:
    wide, _ = points(axes)
    kept: list[float] = []
    end = -np.inf
    for value in sorted(values, key=share):
        half = width(name(value), 10) / 2 + 3
        if share(value) * wide - half >= end:
            kept.append(value)
            end = share(value) * wide + half
    return kept


def legend(figure: Figure, axes: Axes) -> None:
    """What lines and points are, below all panels."""
    handles, texts = axes.get_legend_handles_labels()
    across = 72 * figure.get_figwidth() / (max(width(text, SMALL) for text in texts) + 45)
    columns = max(1, min(len(texts), int(across)))
    figure.legend(handles, texts, loc="outside lower center", ncols=columns, fontsize=SMALL)


def said(figure: Figure, lines: Sequence[str]) -> None:
    """What is not in the figure, and why, above all panels."""
    if lines:
        a_line = int(A_LINE * figure.get_figwidth() / 4.6 * 0.85)
        text = "\n".join(part for line in dict.fromkeys(lines) for part in textwrap.wrap(line, a_line))
        figure.suptitle(literal(text), x=0.01, ha="left", fontsize=SMALLER, color=GREY)
