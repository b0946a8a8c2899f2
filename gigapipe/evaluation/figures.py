"""The figures of a comparison, each a function from a table to a figure; `save` writes them."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gigapipe.atomic import atomic_file
from gigapipe.evaluation.columns import (
    AUC,
    FILE,
    LABEL,
    METHOD,
    MPP,
    SECONDS_PER_STEP,
    SPLIT,
    SPLITS,
    bounds,
    of_split,
    other_splits,
    rank_seconds,
)
from gigapipe.evaluation.decisions import DECIDED
from gigapipe.evaluation.decisions import confusion as confusion_counts
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


def save(figure: Figure, path: Path) -> None:
    """Write `path` with the endings .png and .svg."""
    for kind in ("png", "svg"):
        with atomic_file(path.with_suffix(f".{kind}")) as partial:
            write(figure, partial, kind)


@styled
def write(figure: Figure, file, kind: str) -> None:
    """Write a figure, as `png` or `svg`, to a path or an open file."""
    metadata = {"Date": None} if kind == "svg" else None
    figure.savefig(file, format=kind, dpi=150, metadata=metadata, bbox_inches="tight", pad_inches=0.05)


@styled
def auc_against_resolution(table: pd.DataFrame) -> Figure:
    """AUC with its interval at each µm per pixel. Columns: `mpp`, `canvas`, `auc`, `auc_low`, `auc_high`."""
    figure, (axes,) = _figure(1, 4.6, 3.1)
    _auc(axes, table, table[MPP])
    axes.invert_xaxis()
    axes.set(xlabel="resolution, µm per pixel (finer to the right)", ylabel="AUC on held-out slides, 95 % interval")
    return figure


@styled
def auc_against_cost(table: pd.DataFrame) -> Figure:
    """AUC with its interval against rank-seconds a training step. Also needs `ranks` and `seconds_per_step`."""
    figure, (axes,) = _figure(1, 4.6, 3.1)
    _auc(axes, table, rank_seconds(table, SECONDS_PER_STEP), resolution=True)
    axes.set(xlabel="cost of a training step, seconds × ranks", ylabel="AUC on held-out slides, 95 % interval")
    return figure


@styled
def comparison(table: pd.DataFrame) -> Figure:
    """The two side by side; the cost is the time of a step, on however many ranks."""
    figure, (left, right) = _figure(2, 4.5, 3.6, sharey=True)
    _auc(left, table, table[MPP])
    _auc(right, table, table[SECONDS_PER_STEP])
    left.invert_xaxis()
    left.set(xlabel="resolution, µm per pixel (finer to the right)", ylabel="AUC on held-out slides, 95 % interval")
    right.set_xlabel("cost, seconds a training step")
    return figure


@styled
def roc(predictions: pd.DataFrame) -> Figure:
    """ROC curves of each resolution: a thin one a network, and their mean at each false positive rate, thick.

    Columns: `mpp`, `network`, `label`, and `score`, the probability of the label that comes second, or `score_…` of
    each of more labels: a network's curve is then the mean of those of each label against the rest. Networks whose
    slides have one label have no curve.
    """
    groups = sorted(predictions.groupby(MPP), reverse=True)
    figure, panels = _figure(len(groups), 2.5, 3.0, sharey=True)
    targets = score_columns(predictions)
    for axes, (mpp, scores) in zip(panels, groups, strict=True):
        curves = [
            np.mean(each, axis=0)
            for _, network in scores.groupby(FILE)
            if (each := [c for label, name in targets.items() if (c := _roc(network[LABEL] == label, network[name]))])
        ]
        for curve in curves:
            axes.plot(*curve, color=INK, linewidth=0.7, alpha=0.35)
        if curves:
            axes.plot(*np.mean(curves, axis=0), color=INK, linewidth=2.2)
        axes.plot([0, 1], [0, 1], linestyle=":", color=FAINT)
        axes.set(title=f"{mpp:g} µm/px", aspect="equal", xlabel="false positive rate", xlim=(-0.02, 1), ylim=(0, 1.02))
        axes.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    _name_rows(panels, "true positive rate")
    return figure


@styled
def confusion(decisions: pd.DataFrame) -> Figure:
    """How many slides of each label were taken for each. Columns: `mpp`, `label`, `decided`."""
    groups = sorted(decisions.groupby(MPP), reverse=True)
    labels = sorted(set(decisions[LABEL]) | set(decisions[DECIDED]))
    figure, panels = _figure(len(groups), 2.3, 2.5, sharey=True)
    for axes, (mpp, rows) in zip(panels, groups, strict=True):
        counts = confusion_counts(rows, labels)
        shares = counts.div(counts.sum(axis=1).clip(lower=1), axis=0).to_numpy()
        axes.imshow(shares, cmap="Purples", vmin=0, vmax=1)
        for (i, j), share in np.ndenumerate(shares):
            colour = "white" if share > 0.6 else "#222"
            axes.text(j, i, str(counts.iloc[i, j]), ha="center", va="center", color=colour, fontsize=11)
        axes.set(title=f"{mpp:g} µm/px", xlabel="taken for")
        axes.set_xticks(range(len(labels)), labels)
        axes.set_yticks(range(len(labels)), labels, rotation=90, va="center")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    _name_rows(panels, "is")
    return figure


@styled
def training_curves(history: pd.DataFrame) -> Figure:
    """Loss by epoch at each resolution: thin for a network, thick their mean; a dot where its weights were taken.

    Columns: `mpp`, `network`, `epoch`, `training_loss`, `validation_loss`, and `best_epoch` of the network.
    """
    groups = sorted(history.groupby(MPP), reverse=True)
    figure, panels = _figure(len(groups), 2.5, 2.5, sharey=True)
    for axes, (mpp, rows) in zip(panels, groups, strict=True):
        for column, name, colour in (
            ("training_loss", "training", FAINT),
            ("validation_loss", "validation", INK),
        ):
            for _, network in rows.groupby(FILE):
                axes.plot(network["epoch"], network[column], color=colour, linewidth=0.7, alpha=0.35)
            mean = rows.groupby("epoch")[column].mean()
            axes.plot(mean.index, mean, color=colour, linewidth=2.2, label=name)
        best = rows[rows["epoch"] == rows["best_epoch"]]
        axes.plot(best["epoch"], best["validation_loss"], "o", color=INK, markersize=3, label="weights taken")
        axes.set(title=f"{mpp:g} µm/px", xlabel="epoch")
        axes.locator_params(axis="x", integer=True)
    _name_rows(panels, "loss (cross-entropy)")
    panels[-1].legend(fontsize=8)
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
    for name, gigabytes in GPU_MEMORY_GB.items():
        axes.axhline(gigabytes, color="#d9a441", linewidth=0.8, zorder=0)
        place = axes.get_yaxis_transform()
        axes.text(1.01, gigabytes, f"{gigabytes} GB  {name}", transform=place, va="center", fontsize=7.5, color="#555")
    axes.legend(fontsize=8, loc="upper left")
    return figure


@styled
def scaling(table: pd.DataFrame) -> Figure:
    """Efficiency against ranks, strong and weak: measured points, and what a model says as a dashed line.

    Columns: `mode` (`strong` or `weak`), `source` (`measured`, `model`), `ranks`, `efficiency` (1 is ideal), `seconds`
    of a step, which measured points are marked with.
    """
    modes = [mode for mode in ("strong", "weak") if (table["mode"] == mode).any()]
    figure, panels = _figure(len(modes), 4.2, 3.2, sharey=True)
    titles = {"strong": "strong: one image over more ranks", "weak": "weak: as many more images as ranks"}
    for axes, mode in zip(panels, modes, strict=True):
        rows = table[table["mode"] == mode].sort_values("ranks")
        measured, model = (rows[rows["source"] == source] for source in ("measured", "model"))
        axes.axhline(1, linestyle=":", color=FAINT)
        axes.plot(model["ranks"], model["efficiency"], "--", color=FAINT, label="model")
        axes.plot(measured["ranks"], measured["efficiency"], "o", color=INK, label="measured")
        for row in measured.itertuples():
            axes.annotate(
                f"{row.seconds:.3g} s", (row.ranks, row.efficiency), (4, 5), textcoords="offset points", fontsize=7.5
            )
        ranks = sorted(set(rows["ranks"]))
        axes.set_xscale("log", base=2)
        axes.set_xticks(ranks[:: max(1, len(ranks) // 8)], [f"{n:,}" for n in ranks[:: max(1, len(ranks) // 8)]])
        axes.minorticks_off()
        axes.set(title=titles[mode], xlabel="ranks", ylim=(0, max(1.1, rows["efficiency"].max() * 1.05)))
    panels[0].set_ylabel("efficiency")
    panels[-1].legend(fontsize=8, loc="lower left")
    return figure


def _figure(panels: int, width: float, height: float, **options) -> tuple[Figure, Sequence[Axes]]:
    """A figure of panels side by side, each so many inches, and in rows if they are more than a page is wide."""
    columns = min(panels, PANELS_IN_A_ROW)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    found = figure.subplots(rows, columns, squeeze=False, **options).flatten()
    for unused in found[panels:]:
        unused.remove()
    return figure, found[:panels]


def _name_rows(panels: Sequence[Axes], name: str) -> None:
    for first in panels[::PANELS_IN_A_ROW]:
        first.set_ylabel(name)


def _auc(axes: Axes, table: pd.DataFrame, places: pd.Series, resolution: bool = False) -> None:
    """AUC and interval at these places on a logarithmic axis, each with its canvas, or with its resolution.

    Where a resolution was computed by several methods (`method`, if the table has it) each has its colour; AUCs of
    folds that were made otherwise (`…_split_auc`) stand beside it, dashed.
    """
    several = METHOD in table and table[MPP].duplicated().any()
    ways = table[METHOD] if several else pd.Series("", table.index)
    others = other_splits(table)
    for (way, rows), colour in zip(table.groupby(ways, sort=False), itertools.cycle(COLOURS), strict=False):
        kinds = [("o-", AUC, SPLITS[rows[SPLIT].iloc[0]] if others else "")]
        kinds += [("s--", of_split(split, AUC), SPLITS[split]) for split in others]
        for form, auc, folds in kinds:
            low, high = bounds(auc)
            error = [rows[auc] - rows[low], rows[high] - rows[auc]]
            label = ", ".join(filter(None, (way, folds)))
            faint: dict[str, Any] = {"alpha": 0.6, "linewidth": 1} if form == "s--" else {}
            axes.errorbar(places[rows.index], rows[auc], error, fmt=form, capsize=4, color=colour, label=label, **faint)
    if others or several:
        axes.legend(fontsize=8, loc="lower right")
    axes.axhline(0.5, linestyle=":", color=FAINT)
    axes.set_xscale("log")
    ticks = sorted(set(places))
    if any(b / a < 1.3 for a, b in itertools.pairwise(ticks)):  # they would lie on one another
        decades = range(*np.floor(np.log10([ticks[0], ticks[-1] * 100])).astype(int))
        round_ones = [n * 10.0**decade for decade in decades for n in (1, 2, 5)]
        within = [tick for tick in round_ones if ticks[0] / 1.5 < tick < ticks[-1] * 1.5]
        ticks = within if len(within) > 1 else [ticks[0], ticks[-1]]
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.minorticks_off()
    low, high = np.log10([places.min(), places.max()])
    room = max(0.15 * (high - low), 0.1)
    axes.set_xlim(10 ** (low - room), 10 ** (high + 1.7 * room))
    axes.set_ylim(0, 1.05)
    before, down = -math.inf, 11  # points
    for row, place in sorted(zip(table.itertuples(), places, strict=True), key=lambda pair: pair[1]):
        text = f"{row.mpp:g} µm/px" if resolution else f"{row.canvas:,} px"
        down = 22 if down == 11 and np.log10(place) - before < 0.2 * (high - low) else 11  # or they lie on one another
        before = np.log10(place)
        axes.annotate(text, (place, row.auc), xytext=(7, -down), textcoords="offset points", fontsize=8)


def _roc(truth: pd.Series, score: pd.Series) -> tuple[np.ndarray, np.ndarray] | None:
    """False positive rates from 0 to 1, the same for any slides, and the highest true positive rate at each."""
    from sklearn.metrics import roc_curve  # slow to import

    if truth.nunique() < 2:
        return None
    false, true, _ = roc_curve(truth, score)
    grid = np.linspace(0, 1, 1001)
    return np.array([0, *grid]), np.array([0, *np.interp(grid, false, np.maximum.accumulate(true))])
