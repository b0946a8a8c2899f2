"""The comparison's table for people: in Markdown, and as a page of HTML that needs nothing beside it."""

from html import escape
from math import isnan, nan

import pandas as pd

UNKNOWN = "unknown"

NOTES = [
    "AUC is the mean over networks (one for each fold and seed), each on held-out slides that it has never seen; scores"
    " of different networks are not ranked against each other. In brackets are 95 % intervals, DeLong's, in which the"
    " slides of a patient count together; ± is the standard deviation over seeds.",
    "Δ is against the next coarser resolution on the same slides and folds, with DeLong's paired p, which is not"
    " corrected for the number of comparisons. Intervals and p are about other patients; how much another training"
    " would change, only several seeds tell.",
    "Balanced accuracy, sensitivity and specificity are at a threshold fixed on each network's validation slides. A"
    " Brier score is 0 at best; the calibration error is how far probabilities are from what came true, in ten bins.",
    "A slide-step is a training step divided by its slides. Exchanged is what all ranks sent in a step. Energy is that"
    " of all processors of the machines (RAPL), whatever else ran on them.",
]

SPLIT_NAMES = {"site": "folds by site", "patient": "folds by patient", "given": "given folds"}

STYLE = """
body {font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; color: #222}
table {border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums}
th, td {padding: .35rem .5rem; border-bottom: 1px solid #ccc; text-align: right; vertical-align: bottom}
td {white-space: nowrap}
th {border-bottom: 2px solid #5b2a86}
.notes {color: #555; font-size: .9em}
"""


def as_markdown(table: pd.DataFrame) -> str:
    """Three tables, of worth, decisions and cost, with a row for each of `compare`, and what their columns mean."""
    lines = []
    for title, columns in _tables(table).items():
        lines += [f"**{title}**", "", _line(columns), "|" + "---:|" * len(columns)]
        lines += [_line(row) for row in zip(*columns.values(), strict=True)]
        lines.append("")
    return "\n".join(lines) + "\n" + "\n\n".join(NOTES) + "\n"


def as_html(table: pd.DataFrame, title: str = "Comparison of resolutions") -> str:
    """The same as a whole page."""
    parts = [f"<h1>{escape(title)}</h1>"]
    for name, columns in _tables(table).items():
        rows = "".join(_row(row, "td") for row in zip(*columns.values(), strict=True))
        head = f"<thead>{_row(columns, 'th')}</thead>"
        parts.append(f"<h2>{escape(name)}</h2>\n<table>{head}<tbody>{rows}</tbody></table>")
    parts += [f'<p class="notes">{escape(note)}</p>' for note in NOTES]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _tables(table: pd.DataFrame) -> dict[str, dict[str, list[str]]]:
    """Of each table's title its columns: of each heading its cells."""
    rows = table.to_dict("records")
    row_names = {"µm/px": [f"{row['mpp']:g}" for row in rows], "computed": [row["arm"] for row in rows]}
    if table["start"].nunique() > 1:
        row_names["begun with"] = [row["start"] for row in rows]
    split = SPLIT_NAMES[rows[0]["split"]]
    worth = row_names | {
        "slides (patients)": [f"{row['slides']} ({row['patients']})" for row in rows],
        "seeds × folds": [_networks(row) for row in rows],
        f"AUC, {split}": [_auc(row, "") for row in rows],
    }
    for other, name in SPLIT_NAMES.items():
        if f"{other}_split_auc" in table:
            worth[f"AUC, {name}"] = [_auc(row, f"{other}_split_") for row in rows]
    worth |= {
        "AUC of patients": [_interval(row, "patient_auc") for row in rows],
        "Δ AUC to the next coarser": [_gain(row) for row in rows],
    }
    decisions = row_names | {
        "average precision": [_number(row["average_precision"]) for row in rows],
        "balanced accuracy": [_number(row["balanced_accuracy"]) for row in rows],
        "sensitivity": [_number(row["sensitivity"]) for row in rows],
        "specificity": [_number(row["specificity"]) for row in rows],
        "Brier score": [_number(row["brier"]) for row in rows],
        "calibration error": [_number(row["calibration_error"]) for row in rows],
    }
    cost = row_names | {
        "canvas, px": [f"{row['canvas']}²" for row in rows],
        "mesh: data × rows × columns": [row["mesh"] for row in rows],
        "ranks": [f"{row['ranks']}" for row in rows],
        "memory limit, GB": [f"{row['memory'] / 1e9:.3g}" if row["memory"] else "none" for row in rows],
        "parameters": [_number(row["parameters"], ",.0f") for row in rows],
        "s a slide-step": [_number(row["seconds_per_slide"], ".3g") for row in rows],
        "images a second": [_number(row["images_per_second"], ".3g") for row in rows],
        "peak memory a rank, MB": [_number(row["peak_memory_per_rank_mb"], ".0f") for row in rows],
        "exchanged a step, MB": [_number(row["sent_bytes_per_step"] / 1e6, ".3g") for row in rows],
        "energy a step, J": [_number(row["joules_per_step"], ".3g") for row in rows],
    }
    return {
        "What resolution is worth": worth,
        f"Decisions and probabilities, {split}": decisions,
        "What it costs": cost,
    }


def _networks(row: dict) -> str:
    without = f", {row['folds_without_auc']} of one class" if row["folds_without_auc"] else ""
    return f"{row['seeds']} × {row['folds']}{without}"


def _auc(row: dict, prefix: str) -> str:
    return _interval(row, f"{prefix}auc", row[f"{prefix}auc_sd_seeds"])


def _interval(row: dict, name: str, spread: float = nan) -> str:
    if isnan(row[name]):
        return UNKNOWN
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    around = "" if isnan(spread) else f" ± {spread:.3f}"
    return f"{row[name]:.3f}{around} ({UNKNOWN if isnan(low) else f'{low:.3f}–{high:.3f}'})"


def _gain(row: dict) -> str:
    if isnan(row["coarser"]):
        return "–"
    if isnan(row["delta"]):
        return UNKNOWN
    p = "p < 0.001" if row["p"] < 0.001 else f"p = {_number(row['p'])}"
    return f"{row['delta']:+.3f} ({p})".replace("-", "−")


def _number(value: float, form: str = ".3f") -> str:
    return UNKNOWN if isnan(value) else format(value, form)


def _line(cells) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _row(cells, tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
