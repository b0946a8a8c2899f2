"""The comparison's table for people: in Markdown, and as a page of HTML that needs nothing beside it."""

from html import escape

import pandas as pd

from gigapipe.evaluation.columns import (
    AUC,
    CANVAS,
    COSTS,
    DECISIONS_AND_PROBABILITIES,
    FLAGGED,
    MEMORY,
    MESH,
    METHOD,
    MPP,
    RANKS,
    SECONDS_PER_STEP,
    SEEDS,
    SLIDES,
    SPLIT,
    SPLITS,
    START,
    TARGET,
    Column,
    aucs,
    gains,
    more_figures,
    read,
)
from gigapipe.evaluation.learning import flags_of

NOTES_OF_NUMBERS = [
    "R² and the mean absolute error are of all held-out slides of a seed together, averaged over seeds: R² is 0 of who"
    " always says the mean. Spearman's ρ is the mean over networks (one for each fold and seed), for ranks of different"
    " networks are not mixed. In brackets are 95 % intervals, BCa's, of cohorts of patients drawn with replacement; ±"
    " is the standard deviation over seeds.",
    "Δ is R² above that of the next coarser resolution on the same slides and folds; p is that of the same drawn"
    " cohorts, and not corrected for the number of comparisons. Intervals and p are about other patients; how much"
    " another training would change, only several seeds tell.",
]

NOTES = [
    "AUC is the mean over networks (one for each fold and seed), each on held-out slides that it has never seen; scores"
    " of different networks are not ranked against each other. In brackets are 95 % intervals, DeLong's, in which the"
    " slides of a patient count together; ± is the standard deviation over seeds.",
    "Δ is against the next coarser resolution on the same slides and folds, with DeLong's paired p, which is not"
    " corrected for the number of comparisons. Intervals and p are about other patients; how much another training"
    " would change, only several seeds tell.",
    "Δ to the best other is against the highest AUC of the other resolutions, with one-sided 95 % limits that hold for"
    " all resolutions together. A resolution is recommended if its AUC is above 0.5 by its interval, and the lower of"
    " these limits above minus the margin.",
    "Balanced accuracy, sensitivity and specificity are at a threshold fixed on each network's validation slides. A"
    " Brier score is 0 at best; the calibration error is how far probabilities are from what came true, in ten bins.",
]

NOTE_OF_COSTS = (
    "A slide-step is a training step divided by its slides. Exchanged is what all ranks sent in a step. Energy is that"
    " of all processors of the machines (RAPL), whatever else ran on them."
)

NOTE_OF_FLAGS = (
    "Flagged is a network that was best in validation after its first epoch, or whose loss in validation is not below"
    " that of the best guess, an answer that is the same for every slide."
)

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
    return "\n".join(lines) + "\n" + "\n\n".join(_notes(table)) + "\n"


def as_html(table: pd.DataFrame, title: str = "Comparison of resolutions") -> str:
    """The same as a whole page."""
    parts = [f"<h1>{escape(title)}</h1>"]
    for name, columns in _tables(table).items():
        rows = "".join(_row(row, "td") for row in zip(*columns.values(), strict=True))
        head = f"<thead>{_row(columns, 'th')}</thead>"
        parts.append(f"<h2>{escape(name)}</h2>\n<table>{head}<tbody>{rows}</tbody></table>")
    parts += [f'<p class="notes">{escape(note)}</p>' for note in _notes(table)]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _notes(table: pd.DataFrame) -> list[str]:
    flags = flags_of(table)
    of_flags = [f"{NOTE_OF_FLAGS} {'. '.join(flags) if flags else 'There is none'}."]
    return [*(NOTES if AUC in table else NOTES_OF_NUMBERS), *of_flags, NOTE_OF_COSTS]


def _of_what(table: pd.DataFrame) -> str:
    return f": {table[TARGET].iloc[0]}" if TARGET in table else ""


def _tables(table: pd.DataFrame) -> dict[str, dict[str, list[str]]]:
    """Of each table's title its columns: of each heading its cells."""
    row_names = read(MPP, METHOD, *([START] if table[START].nunique() > 1 else []))
    worth = [*read(SLIDES, SEEDS, FLAGGED), *aucs(table, deviation=True), *more_figures(table), *gains(table)]
    costs = read(CANVAS, MESH, RANKS, MEMORY, *(cost for cost in COSTS if cost != SECONDS_PER_STEP))
    parts = {f"What resolution is worth{_of_what(table)}": worth}
    if AUC in table:
        parts[f"Decisions and probabilities, {SPLITS[table[SPLIT].iloc[0]]}"] = read(*DECISIONS_AND_PROBABILITIES)
    parts["What it costs"] = costs
    return {title: _cells(table, row_names + columns) for title, columns in parts.items()}


def _cells(table: pd.DataFrame, columns: list[Column]) -> dict[str, list[str]]:
    return {column.heading: [column.text(row) for row in table.to_dict("records")] for column in columns}


def _line(cells) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _row(cells, tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
