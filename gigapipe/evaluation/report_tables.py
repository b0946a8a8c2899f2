"""The report's tables, as headings and rows of text; the columns that the comparison lacks are left out."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

UNKNOWN = "unknown"
SPLITS = {"site": "folds by site", "patient": "folds by patient", "given": "given folds"}


class Table(NamedTuple):
    headings: list[str]
    rows: list[list[str]]


def worth(table: pd.DataFrame) -> Table:
    """What each resolution is worth."""
    main = SPLITS.get(table["split"].iloc[0], "") if "split" in table else ""
    columns = _names(table) | {
        "slides (patients)": (["slides", "patients"], lambda r: f"{r['slides']} ({r['patients']})"),
        "seeds × folds": (["seeds", "folds"], lambda r: f"{r['seeds']} × {r['folds']}"),
        f"AUC{main and ', ' + main} (95 % interval)": (["auc"], lambda r: _interval(r, "auc")),
    }
    for split, name in SPLITS.items():
        if (auc := f"{split}_split_auc") in table:
            columns[f"AUC, {name} (95 % interval)"] = ([auc], lambda r, auc=auc: _interval(r, auc))
    columns |= {
        "AUC of patients": (["patient_auc"], lambda r: _interval(r, "patient_auc")),
        "Δ to the next coarser": (["delta", "p"], _gain),
    }
    return _table(table, columns)


def decisions(table: pd.DataFrame) -> Table | None:
    """What its decisions and probabilities are worth, if the comparison has any of that."""
    figures = {
        "average precision": _number("average_precision"),
        "balanced accuracy": _number("balanced_accuracy"),
        "sensitivity": _number("sensitivity"),
        "specificity": _number("specificity"),
        "Brier score": _number("brier"),
        "calibration error": _number("calibration_error"),
    }
    there = any(set(needed) <= set(table) for needed, _ in figures.values())
    return _table(table, _names(table) | figures) if there else None


def costs(table: pd.DataFrame) -> Table:
    """What each costs."""
    return _table(
        table,
        _names(table)
        | {
            "canvas, px": (["canvas"], lambda r: f"{r['canvas']:,}²"),
            "mesh: data × rows × columns": (["mesh"], lambda r: r["mesh"]),
            "ranks": (["ranks"], lambda r: f"{r['ranks']:,}"),
            "parameters": _number("parameters", ",.0f"),
            "s a step": _number("seconds_per_step", ".3g"),
            "s a slide": _number("seconds_per_slide", ".3g"),
            "images a second": _number("images_per_second", ".3g"),
            "peak memory a rank, MB": _number("peak_memory_per_rank_mb", ",.0f"),
            "exchanged a step, MB": _number("sent_bytes_per_step", ".3g", 1e-6),
            "energy a step, J": _number("joules_per_step", ".3g"),
        },
    )


def runtimes(benchmarks: Path) -> Table | None:
    """What the jobs of each rule took, from what Snakemake measured; the longest first."""
    jobs = []
    for path in sorted(benchmarks.rglob("*.tsv")):
        measured = pd.read_csv(path, sep="\t", na_values="-")
        jobs.append(measured.assign(rule=path.relative_to(benchmarks).parts[0].removesuffix(".tsv")))
    if not jobs:
        return None
    rules = (
        pd.concat(jobs)
        .groupby("rule")
        .agg(jobs=("s", "size"), total=("s", "sum"), longest=("s", "max"), mb=("max_rss", "max"))
    )
    rows = [
        [
            rule,
            f"{of.jobs:.0f}",
            _duration(of.total),
            _duration(of.longest),
            UNKNOWN if pd.isna(of.mb) else f"{of.mb:,.0f}",
        ]
        for rule, of in rules.sort_values("total", ascending=False).iterrows()
    ]
    return Table(["rule", "jobs", "all together", "the longest", "most memory, MB"], rows)


def blocks(markdown: str) -> list[dict]:
    """The paragraphs (`strong`, `text`) and tables (`table`) of Markdown as `gigapipe folds` writes it."""
    found = []
    for block in markdown.strip().split("\n\n"):
        if block.startswith("|"):
            headings, _, *rows = [
                [cell.strip().replace("\0", "|") for cell in line.replace("\\|", "\0").strip("|").split("|")]
                for line in block.splitlines()
            ]
            found.append({"table": Table(headings, rows)})
        else:
            lead, strong, rest = block.partition("**")[2].partition("**") if block.startswith("**") else ("", "", block)
            found.append({"strong": lead, "text": rest})
    return found


Column = tuple[list[str], Callable[[dict], str]]


def _names(table: pd.DataFrame) -> dict[str, Column]:
    """What tells rows apart."""
    columns: dict[str, Column] = {"µm/px": (["mpp"], lambda r: f"{r['mpp']:g}")}
    for name, heading in (("arm", "computed"), ("start", "begun with")):
        if name in table and table[name].nunique() > 1:
            columns[heading] = ([name], lambda r, name=name: r[name])
    return columns


def _table(table: pd.DataFrame, columns: dict[str, Column]) -> Table:
    there = {heading: cell for heading, (needed, cell) in columns.items() if set(needed) <= set(table)}
    rows = [[cell(row) for cell in there.values()] for row in table.to_dict("records")]
    return Table(list(there), rows)


def _number(name: str, form: str = ".3f", scale: float = 1) -> Column:
    return [name], lambda row: UNKNOWN if pd.isna(row[name]) else format(row[name] * scale, form)


def _interval(row: dict, name: str) -> str:
    if pd.isna(row[name]):
        return UNKNOWN
    low, high = (row.get(f"{name}_{end}") for end in ("low", "high"))
    return f"{row[name]:.3f}" + ("" if pd.isna(low) else f" ({low:.3f}–{high:.3f})")


def _gain(row: dict) -> str:
    if pd.isna(row["delta"]):
        return "–" if pd.isna(row.get("coarser")) else UNKNOWN
    return f"{row['delta']:+.3f} (p ".replace("-", "−") + ("< 0.001)" if row["p"] < 0.001 else f"= {row['p']:.3f})")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
