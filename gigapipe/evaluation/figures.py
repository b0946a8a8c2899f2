"""The figures of a comparison, each a function from a table to a figure; `write` writes them."""

import io
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gigapipe.atomic import atomic_file
from gigapipe.evaluation.columns import (
    FILE,
    LABEL,
    METHOD,
    METHOD_NAME,
    MPP,
    NUMBER,
    PREDICTED,
    SPLIT,
    SPLITS,
    TARGET,
    bounds,
    cost_column,
    main_figure,
    named,
    names_of,
    of_split,
    other_splits,
    rank_seconds,
    why_missing,
)
from gigapipe.evaluation.decisions import DECIDED
from gigapipe.evaluation.decisions import confusion as confusion_counts
from gigapipe.evaluation.labels import above, beside, legend, literal, said, ticks, width
from gigapipe.evaluation.predictions import score_columns

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666",
    "axes.labelcolor": "#222",
    "xtick.color": "#444",
    "ytick.color": "#444",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "svg.hashsalt": "gigapipe",  # the same figure, the same file
}
INK, FAINT = "#5b2a86", "#8a8a8a"
COLOURS = [INK, "#1b7a6b", "#c2571a", "#37618e"]

GPU_MEMORY_GB = {
    "V100 (Summit)": 16,
    "workstation": 24,
    "A100 (Perlmutter)": 40,
    "MI250X, one die (Frontier)": 64,
    "H100": 80,
    "Apple, unified": 128,
}


PANELS_IN_A_ROW = 3
"""As many as are readable on a page."""

styled = matplotlib.rc_context(STYLE)
"""Of what draws: the style, while it does."""


def as_svg(figure: Figure) -> bytes:
    file = io.BytesIO()
    write(figure, file, "svg")
    return file.getvalue()


def save(figure: Figure, svg: bytes, path: Path) -> None:
    """Write a figure, and what `as_svg` made of it, as `path` with the endings .png and .svg."""
    with atomic_file(path.with_suffix(".png")) as partial:
        write(figure, partial, "png")
    with atomic_file(path.with_suffix(".svg")) as partial:
        partial.write_bytes(svg)


@styled
def write(figure: Figure, file, kind: str) -> None:
    """Write a figure, as `png` or `svg`, to a path or an open file."""
    metadata = {"Date": None} if kind == "svg" else None
    figure.savefig(file, format=kind, dpi=150, metadata=metadata, bbox_inches="tight", pad_inches=0.05)


@styled
def auc_against_resolution(table: pd.DataFrame) -> Figure:
    """AUC, or R², with its interval at each µm per pixel. Columns: `mpp`, `canvas`, `auc`, `auc_low`, `auc_high`."""
    figure, (axes,) = _figure(1, 4.6, 3.3)
    said(figure, _auc(axes, table, table[MPP]))
    axes.set(xlabel="resolution, µm per pixel (finer to the right)", ylabel=_main(table))
    return figure


@styled
def auc_against_cost(table: pd.DataFrame) -> Figure:
    """AUC, or R², with its interval against the rank-seconds of a step, of methods a training. Also needs `ranks` and
    `cost_column`.
    """
    figure, (axes,) = _figure(1, 4.6, 3.3)
    said(figure, _auc(axes, table, rank_seconds(table, cost_column(table)), cost=True))
    what = "training" if METHOD_NAME in table else "training step"
    axes.set(xlabel=f"cost of a {what}, seconds × ranks", ylabel=_main(table))
    return figure


@styled
def comparison(table: pd.DataFrame) -> Figure:
    """The two side by side; the cost is the time of a step, of methods a training, on however many ranks."""
    figure, (left, right) = _figure(2, 4.5, 3.6, sharey=True)
    said(figure, [*_auc(left, table, table[MPP]), *_auc(right, table, table[cost_column(table)], cost=True)])
    left.set(xlabel="resolution, µm per pixel (finer to the right)", ylabel=_main(table))
    right.set_xlabel(f"cost, seconds per training{' step' * (METHOD_NAME not in table)}")
    return figure


@styled
def roc(predictions: pd.DataFrame) -> Figure:
    """ROC curves of each resolution: a thin one a network, and their mean at each false positive rate, thick.

    Columns: `mpp`, `network`, `label`, and `score`, the probability of the label that comes second, or `score_…` of
    each of more labels: a network's curve is then the mean of those of each label against the rest. Networks whose
    slides have one label have no curve.
    """
    groups = _groups(predictions)
    figure, panels = _figure(len(groups), 2.5, 3.0, sharey=True)
    targets = score_columns(predictions)
    for axes, (name, colour, scores) in zip(panels, groups, strict=True):
        curves = [
            np.mean(each, axis=0)
            for _, network in scores.groupby(FILE)
            if (each := [c for label, name in targets.items() if (c := _roc(network[LABEL] == label, network[name]))])
        ]
        for curve in curves:
            axes.plot(*curve, color=colour, linewidth=0.7, alpha=0.35)
        if curves:
            axes.plot(*np.mean(curves, axis=0), color=colour, linewidth=2.2)
        axes.plot([0, 1], [0, 1], linestyle=":", color=FAINT)
        axes.set(title=name, aspect="equal", xlabel="false positive rate", xlim=(-0.02, 1), ylim=(0, 1.02))
        axes.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    _name_rows(panels, "true positive rate")
    return figure


@styled
def confusion(decisions: pd.DataFrame) -> Figure:
    """How many slides of each label were taken for each. Columns: `mpp`, `label`, `decided`."""
    groups = _groups(decisions)
    labels = sorted(set(decisions[LABEL]) | set(decisions[DECIDED]))
    side = max(2.3, 0.4 * len(labels))  # inches
    cell, longest = 72 * 0.7 * side / len(labels), max(width(label, 10) for label in labels)  # points
    flat = longest < cell - 4
    more = 0 if flat else longest / 72
    figure, panels = _figure(
        len(groups), side + more / min(len(groups), PANELS_IN_A_ROW), side + 0.2 + more, "compressed", sharey=True
    )
    for axes, (name, _, rows) in zip(panels, groups, strict=True):
        counts = confusion_counts(rows, labels)
        size = min(11, 1.5 * cell / len(str(counts.to_numpy().max())))
        shares = counts.div(counts.sum(axis=1).clip(lower=1), axis=0).to_numpy()
        axes.imshow(shares, cmap="Purples", vmin=0, vmax=1)
        for (i, j), share in np.ndenumerate(shares):
            colour = "white" if share > 0.6 else "#222"
            axes.text(j, i, str(counts.iloc[i, j]), ha="center", va="center", color=colour, fontsize=size)
        axes.set(title=name, xlabel="predicted class")
        names = [literal(label) for label in labels]
        axes.set_xticks(range(len(labels)), names, rotation=0 if flat else 90)
        axes.set_yticks(range(len(labels)), names, rotation=90 if flat else 0, va="center")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    _name_rows(panels, "true class")
    return figure


@styled
def predicted(predictions: pd.DataFrame) -> Figure:
    """What was predicted of each slide, against what it is. Columns: `mpp`, `target`, `number`, `predicted`."""
    groups = _groups(predictions)
    figure, panels = _figure(len(groups), 2.5, 2.8, sharey=True)
    both = predictions[[NUMBER, PREDICTED]]
    ends = both.min().min(), both.max().max()
    for axes, (name, colour, rows) in zip(panels, groups, strict=True):
        axes.plot(ends, ends, linestyle=":", color=FAINT)
        axes.plot(rows[NUMBER], rows[PREDICTED], "o", color=colour, markersize=3, alpha=0.6, markeredgewidth=0)
        axes.set(title=name, xlabel=literal(predictions[TARGET].iloc[0]))
        axes.locator_params(axis="x", nbins=4)
    _name_rows(panels, "predicted")
    return figure


@styled
def training_curves(history: pd.DataFrame, loss: str = "cross-entropy") -> Figure:
    """Loss by epoch at each resolution: thin for a network, thick their mean; a dot where its weights were taken.

    Columns: `mpp`, `network`, `epoch`, `training_loss`, `validation_loss`, and `best_epoch` of the network.
    """
    groups = _groups(history)
    figure, panels = _figure(len(groups), 2.5, 2.5, sharey=True)
    for axes, (title, ink, rows) in zip(panels, groups, strict=True):
        for column, name, colour in (
            ("training_loss", "training", FAINT),
            ("validation_loss", "validation", ink),
        ):
            for _, network in rows.groupby(FILE):
                axes.plot(network["epoch"], network[column], color=colour, linewidth=0.7, alpha=0.35)
            mean = rows.groupby("epoch")[column].mean()
            axes.plot(mean.index, mean, color=colour, linewidth=2.2, label=name)
        best = rows[rows["epoch"] == rows["best_epoch"]]
        axes.plot(best["epoch"], best["validation_loss"], "o", color=ink, markersize=3, label="saved epoch")
        axes.set(title=title, xlabel="epoch")
        axes.locator_params(axis="x", integer=True)
    _name_rows(panels, f"loss ({loss})")
    legend(figure, panels[-1])
    return figure


@styled
def memory(table: pd.DataFrame) -> Figure:
    """What a rank takes, against the side of the image, with the memory of known GPUs as lines.

    Columns: `side` (px), `gigabytes`, `kind` (`measured`: points, `model`: a dashed line), `what` (its legend).
    """
    figure, (axes,) = _figure(1, 7.6, 4.2)
    for what, rows in table.groupby("what", sort=False):
        rows = rows.sort_values("side")
        if rows["kind"].iloc[0] == "measured":
            axes.plot(rows["side"], rows["gigabytes"], "o", color=INK, label=what)
        else:
            axes.plot(rows["side"], rows["gigabytes"], "--", color=FAINT, label=what)
    axes.set(xscale="log", yscale="log", xlabel="side of the image, px", ylabel="memory of one rank, GB")
    sides = [4**i for i in range(10) if table["side"].min() / 2 <= 4**i <= table["side"].max() * 2]
    axes.set_xticks(sides, [f"{side:,}" for side in sides])
    axes.minorticks_off()
    axes.set_ylim(
        min(table["gigabytes"].min(), 10) / 2, max(table["gigabytes"].max(), max(GPU_MEMORY_GB.values())) * 1.6
    )
    axes.yaxis.set_major_formatter("{x:g}")
    low, high = np.log10(axes.get_ylim())
    for gigabytes in GPU_MEMORY_GB.values():
        axes.axhline(gigabytes, color="#d9a441", linewidth=0.8, zorder=0)
    shares = [(np.log10(gigabytes) - low) / (high - low) for gigabytes in GPU_MEMORY_GB.values()]
    beside(axes, shares, [f"{gigabytes} GB  {name}" for name, gigabytes in GPU_MEMORY_GB.items()])
    legend(figure, axes)
    return figure


@styled
def scaling(table: pd.DataFrame) -> Figure:
    """Efficiency against ranks, strong and weak: measured points, and what a model says as a dashed line.

    Columns: `mode` (`strong` or `weak`), `source` (`measured`, `model`), `ranks`, `efficiency` (1 is ideal), `seconds`
    of a step, which measured points are marked with.
    """
    modes = [mode for mode in ("strong", "weak") if (table["mode"] == mode).any()]
    figure, panels = _figure(len(modes), 4.2, 3.2, sharey=True)
    titles = {
        "strong": "strong scaling: one image over more ranks",
        "weak": "weak scaling: more images with more ranks",
    }
    for axes, mode in zip(panels, modes, strict=True):
        rows = table[table["mode"] == mode].sort_values("ranks")
        measured, model = (rows[rows["source"] == source] for source in ("measured", "model"))
        axes.axhline(1, linestyle=":", color=FAINT)
        axes.plot(model["ranks"], model["efficiency"], "--", color=FAINT, label="model")
        axes.plot(measured["ranks"], measured["efficiency"], "o", color=INK, label="measured")
        ranks = sorted(set(rows["ranks"]))
        axes.set_xscale("log", base=2)
        share = _log_axis(axes, ranks[0], ranks[-1])
        ticks(axes, ranks, share, "{:,.0f}".format, exact=True)
        lines = above(
            axes, measured["ranks"], [f"{s:.3g} s" if s < 1000 else f"{s:,.0f} s" for s in measured["seconds"]], share
        )
        axes.set_title(titles[mode], pad=6 + 11 * lines)
        axes.set(xlabel="ranks", ylim=(0, max(1.1, rows["efficiency"].max() * 1.05)))
    panels[0].set_ylabel("efficiency")
    legend(figure, panels[-1])
    return figure


def _groups(table: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """Of each resolution, coarsest first, and each method there, its name, colour and rows."""
    colours = _colours(table[METHOD_NAME]) if METHOD_NAME in table else {}
    groups: list[tuple[Any, pd.DataFrame]] = list(table.groupby(names_of(table), sort=False))
    groups.sort(key=lambda group: -group[0][0])
    return [(named(of), colours[of[1]] if colours else INK, rows) for of, rows in groups]


def _colours(names: pd.Series) -> dict[str, str]:
    """Of each name its colour, the same in all figures."""
    return dict(zip(sorted(set(names)), itertools.cycle(COLOURS), strict=False))


def _figure(
    panels: int, width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained", **options
) -> tuple[Figure, Sequence[Axes]]:
    """A figure of panels side by side, each so many inches, and in rows if they are more than a page is wide."""
    columns = min(panels, PANELS_IN_A_ROW)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(columns * width, rows * height), layout=layout)
    found = figure.subplots(rows, columns, squeeze=False, **options).flatten()
    for unused in found[panels:]:
        unused.remove()
    return figure, found[:panels]


def _name_rows(panels: Sequence[Axes], name: str) -> None:
    for first in panels[::PANELS_IN_A_ROW]:
        first.set_ylabel(name)


def _main(table: pd.DataFrame) -> str:
    return f"{main_figure(table).heading} on held-out slides, 95 % interval"


def _auc(axes: Axes, table: pd.DataFrame, places: pd.Series, cost: bool = False) -> list[str]:
    """The main figure and interval at these places on a logarithmic axis: resolutions, finer to the right, each with
    its canvas, or what each cost, with the resolution.

    Each method has its colour (`method_name`, or `method` where a resolution was computed in several ways); figures of
    folds that were made otherwise (`…_split_auc`) stand beside it, dashed. What has no figure, interval or place is
    returned, in words.
    """
    main, _, chance = main_figure(table)
    low = bounds(main)[0]
    absent = [(row, main) for _, row in table[table[main].isna()].iterrows()]
    absent += [(row, low) for _, row in table[table[main].notna() & table[low].isna()].iterrows()]
    of_names = names_of(table)
    lacking = [
        f"{named(row[of_names])}: {'no interval, ' * (name != main)}{why_missing(row, name)}" for row, name in absent
    ]
    lacking += [f"{named(of)}: cost not measured" for of in table.loc[places.isna(), of_names].itertuples(index=False)]
    table = table[table[main].notna() & places.notna()]
    places = places[table.index]
    if table.empty:
        axes.set_xscale("log")
        axes.set(ylim=(0, 1.05), xticks=[])
        axes.minorticks_off()
        return lacking
    way_of = next((name for name in (METHOD_NAME, METHOD) if name in table), "")
    several = bool(way_of) and bool(table[MPP].duplicated().any())
    ways = table[way_of] if several else pd.Series("", table.index)
    others = other_splits(table)
    colours = _colours(ways)
    for way, rows in table.groupby(ways, sort=False):
        colour = colours[str(way)]
        kinds = [("o-", main, SPLITS[rows[SPLIT].iloc[0]] if others else "")]
        kinds += [("s--", of_split(split, main), SPLITS[split]) for split in others]
        for form, name, folds in kinds:
            low, high = bounds(name)
            error = [rows[name] - rows[low], rows[high] - rows[name]]
            label = ", ".join(filter(None, (way, folds)))
            faint: dict[str, Any] = {"alpha": 0.6, "linewidth": 1} if form == "s--" else {}
            axes.errorbar(
                places[rows.index], rows[name], error, fmt=form, capsize=4, color=colour, label=label, **faint
            )
    figure = axes.get_figure()
    if (others or several) and isinstance(figure, Figure) and not figure.legends:
        legend(figure, axes)
    axes.axhline(chance, linestyle=":", color=FAINT)
    axes.set_xscale("log")
    share = _log_axis(axes, *((places.min(), places.max()) if cost else (places.max(), places.min())))
    ticks(axes, places, share, "{:.3g}".format, exact=not cost)
    for place in places:
        axes.axvline(place, color="#eee", linewidth=0.8, zorder=0)
    names = [f"{row.mpp:g} µm/px" if cost else f"{row.canvas:,} px" for row in table.itertuples()]
    above(axes, places, names, share)
    least = table[[main, bounds(main)[0]]].min().min()
    axes.set_ylim(min(0, least - 0.05), 1.05)  # R² may be below what a guess reaches
    return lacking


def _log_axis(axes: Axes, first: float, last: float) -> Callable[[float], float]:
    """Let a logarithmic axis go from `first` to `last`, with some room; how far along it a value is, from 0 to 1."""
    begin, end = np.log10([first, last])
    room = max(0.15 * abs(end - begin), 0.1) * (1 if end >= begin else -1)
    begin, end = begin - room, end + room
    axes.set_xlim(10**begin, 10**end)
    return lambda value: float((np.log10(value) - begin) / (end - begin))


def _roc(truth: pd.Series, score: pd.Series) -> tuple[np.ndarray, np.ndarray] | None:
    """False positive rates from 0 to 1, the same for any slides, and the highest true positive rate at each."""
    from sklearn.metrics import roc_curve  # slow to import

    if truth.nunique() < 2:
        return None
    false, true, _ = roc_curve(truth, score)
    grid = np.linspace(0, 1, 1001)
    return np.array([0, *grid]), np.array([0, *np.interp(grid, false, np.maximum.accumulate(true))])
