"""The comparison: one row a resolution, what it cost and what it was worth."""

import json
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from gigapipe.errors import InputError
from gigapipe.evaluation.metrics import auc_interval, fold_auc


def compare(predictions: list[Path], trainings: list[Path]) -> pd.DataFrame:
    """One row a resolution, coarsest first, from the folds' `predictions.tsv` and `training.json`.

    Columns: `mpp`, `canvas` (px a side), `mesh` (data × rows × columns), `ranks`, `slides`, `patients`, `folds`,
    `auc` with `auc_low` and `auc_high` (95 %), `seconds_per_step` (mean over folds), `peak_memory_per_rank_mb`
    (largest of the folds). The class that comes second in alphabetical order counts as positive.
    """
    costs = pd.DataFrame([json.loads(Path(path).read_text()) for path in trainings])
    costs["mpp"] = [settings["mpp"] for settings in costs["settings"]]
    names = dict.fromkeys(["slide", "patient", "site", "label"], str)  # which may look like numbers
    scores = pd.concat([pd.read_csv(path, sep="\t", dtype=names, keep_default_na=False) for path in predictions])
    if scores["label"].nunique() != 2 or set(scores["mpp"]) != set(costs["mpp"]):
        raise InputError(
            f"predictions of {scores['label'].nunique()} labels at {sorted(set(scores['mpp']))} µm/px, trainings at "
            f"{sorted(set(costs['mpp']))}: give the predictions.tsv and training.json of the same models, of two labels"
        )
    scores["positive"] = scores["label"] == sorted(scores["label"].unique())[1]
    rows = []
    for mpp, held_out in sorted(scores.groupby("mpp"), reverse=True):
        cost = costs[costs["mpp"] == mpp]
        low, high = auc_interval(held_out)
        rows.append(
            {
                "mpp": mpp,
                "canvas": cost["settings"].iloc[0]["canvas"],
                "mesh": " × ".join(str(n) for n in cost["mesh"].iloc[0]),
                "ranks": pd.Series(cost["mesh"].iloc[0]).prod(),
                "slides": len(held_out),
                "patients": held_out["patient"].nunique(),
                "folds": held_out["fold"].nunique(),
                "auc": fold_auc(held_out),
                "auc_low": low,
                "auc_high": high,
                "seconds_per_step": cost["seconds_per_step"].mean(),
                "peak_memory_per_rank_mb": cost["peak_memory_per_rank_mb"].max(),
            }
        )
    return pd.DataFrame(rows)


def as_markdown(table: pd.DataFrame) -> str:
    """The table for people."""
    lines = [
        "| µm/px | canvas, px | mesh: data × rows × columns | ranks | slides | AUC (95 % interval) "
        "| s a step | peak memory a rank, MB |",
        "|---:|---:|:---:|---:|---:|:---:|---:|---:|",
    ]
    for row in table.itertuples():
        lines.append(
            f"| {row.mpp:g} | {row.canvas}² | {row.mesh} | {row.ranks} | {row.slides} "
            f"| {row.auc:.3f} ({row.auc_low:.3f}–{row.auc_high:.3f}) | {row.seconds_per_step:.2f} "
            f"| {row.peak_memory_per_rank_mb:.0f} |"
        )
    return "\n".join(lines) + "\n"


def draw(table: pd.DataFrame, path: Path) -> None:
    """Write a PNG: AUC against resolution, and against what a step costs, side by side."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    error = [table["auc"] - table["auc_low"], table["auc_high"] - table["auc"]]
    for axes, column, label in (
        (left, "mpp", "resolution, µm per pixel (finer to the right)"),
        (right, "seconds_per_step", "cost, seconds a training step"),
    ):
        axes.errorbar(table[column], table["auc"], yerr=error, fmt="o-", capsize=4, color="#5b2a86")
        axes.axhline(0.5, linestyle=":", color="grey")
        axes.set_xscale("log")
        axes.set_xticks(table[column], [f"{v:.3g}" for v in table[column]])
        axes.minorticks_off()
        axes.margins(x=0.15)
        axes.set_xlabel(label)
        for row in table.itertuples():
            axes.annotate(
                f"{row.canvas} px",
                (getattr(row, column), row.auc),
                xytext=(6, 6),
                textcoords="offset points",
                fontsize=8,
            )
    left.invert_xaxis()
    left.set_ylim(0, 1.05)
    left.set_ylabel("AUC on held-out slides, 95 % interval")
    figure.savefig(path, dpi=150, format="png")
