"""The comparison's table for people: in Markdown, and as a page of HTML that needs nothing beside it."""

from html import escape

import pandas as pd

from gigapipe.evaluation import between_methods
from gigapipe.evaluation.columns import (
    AUC,
    CANVAS,
    COSTS,
    DECISIONS_AND_PROBABILITIES,
    FLAGGED,
    MEMORY,
    MESH,
    METHOD,
    PRECISION,
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
    main_figure,
    more_figures,
    names_of,
    read,
)
from gigapipe.evaluation.learning import flags_of

NOTES_OF_NUMBERS = [
    "R² and the mean absolute error are computed on all held-out slides of a seed together, and averaged over seeds: "
    "R² is 0 for a prediction that is always the mean. Spearman's ρ is averaged over networks (one for each fold and "
    "seed), because ranks of different networks must not be mixed. Brackets show 95 % confidence intervals (BCa "
    "bootstrap over patients); ± is the standard deviation over seeds.",
    "Δ is the difference in R² to the next coarser resolution on the same slides and folds; p is from the same "
    "bootstrap, and not corrected for multiple comparisons. Intervals and p describe the variation between patients; "
    "the variation between trainings is known only with several seeds.",
]

NOTES = [
    "AUC is averaged over networks (one for each fold and seed), each tested on its held-out slides; scores of "
    "different networks are never ranked together. Brackets show 95 % confidence intervals (DeLong, with slides "
    "clustered by patient); ± is the standard deviation over seeds.",
    "Δ is the difference to the next coarser resolution on the same slides and folds, with the p value of DeLong's "
    "paired test, which is not corrected for multiple comparisons. Intervals and p describe the variation between "
    "patients; the variation between trainings is known only with several seeds.",
    "Δ to the best other is the difference to the highest AUC of the other resolutions, with one-sided simultaneous 95 "
    "% limits for all resolutions. A resolution is recommended if the interval of its AUC is above 0.5 and the lower "
    "one of these limits is above minus the margin.",
    "Balanced accuracy, sensitivity and specificity use a threshold chosen on each network's validation slides. The "
    "Brier score is 0 at best; the calibration error is the mean difference between predicted probabilities and "
    "observed frequencies, in ten bins.",
]

NOTE_OF_COSTS = (
    "The step time per slide is the time of a training step divided by its number of slides. Data sent is the sum over "
    "all ranks. Energy is that of all processors of the machines (RAPL), of the GPUs that ranks used (as their drivers "
    "count it), or of both, as stated, including other programs."
)

NOTE_OF_FLAGS = (
    "A network is flagged if its validation loss was lowest after the first epoch, or is not below that of the best "
    "constant prediction (the same answer for every slide)."
)

STYLE = """
body {font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; color: #222}
table {border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums}
th, td {padding: .35rem .5rem; border-bottom: 1px solid #ccc; text-align: right; vertical-align: bottom}
td {white-space: nowrap}
th {border-bottom: 2px solid #5b2a86}
.notes {color: #555; font-size: .9em}
"""


def as_markdown(table: pd.DataFrame, between: pd.DataFrame | None = None) -> str:
    """Three tables, of worth, decisions and cost, with a row for each of `compare`, and what their columns mean.

    `between` has the differences between methods, which are a table more.
    """
    lines = []
    for title, columns in _tables(table, between).items():
        lines += [f"**{title}**", "", *in_markdown(columns), ""]
    return "\n".join(lines) + "\n" + "\n\n".join(_notes(table, between)) + "\n"


def as_html(table: pd.DataFrame, between: pd.DataFrame | None = None, title: str = "Comparison of resolutions") -> str:
    """The same as a whole page."""
    parts = [f"<h1>{escape(title)}</h1>"]
    for name, columns in _tables(table, between).items():
        rows = "".join(_row(row, "td") for row in zip(*columns.values(), strict=True))
        head = f"<thead>{_row(columns, 'th')}</thead>"
        parts.append(f"<h2>{escape(name)}</h2>\n<table>{head}<tbody>{rows}</tbody></table>")
    parts += [f'<p class="notes">{escape(note)}</p>' for note in _notes(table, between)]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def _notes(table: pd.DataFrame, between: pd.DataFrame | None) -> list[str]:
    flags = flags_of(table)
    of_flags = [f"{NOTE_OF_FLAGS} {'. '.join(flags) if flags else 'No network is flagged'}."]
    of_methods = [between_methods.NOTE] if between is not None else []
    return [*(NOTES if AUC in table else NOTES_OF_NUMBERS), *of_methods, *of_flags, NOTE_OF_COSTS]


def _of_what(table: pd.DataFrame) -> str:
    return f": {table[TARGET].iloc[0]}" if TARGET in table else ""


def _tables(table: pd.DataFrame, between: pd.DataFrame | None) -> dict[str, dict[str, list[str]]]:
    """Of each table's title its columns: of each heading its cells."""
    row_names = read(*names_of(table), METHOD, *([START] if table[START].nunique() > 1 else []))
    worth = [*read(SLIDES, SEEDS, FLAGGED), *aucs(table, deviation=True), *more_figures(table), *gains(table)]
    costs = read(CANVAS, MESH, RANKS, MEMORY, PRECISION, *(cost for cost in COSTS if cost != SECONDS_PER_STEP))
    parts = {f"Performance by resolution{_of_what(table)}": worth}
    if AUC in table:
        parts[f"Decisions and probabilities, {SPLITS[table[SPLIT].iloc[0]]}"] = read(*DECISIONS_AND_PROBABILITIES)
    parts["Cost"] = costs
    found = {title: cells(table, row_names + columns) for title, columns in parts.items()}
    if between is not None:
        found["Methods at the same resolution"] = cells(between, between_methods.columns(main_figure(table).heading))
    return found


def cells(table: pd.DataFrame, columns: list[Column]) -> dict[str, list[str]]:
    """Of each column's heading what stands in its rows."""
    return {column.heading: [column.text(row) for row in table.to_dict("records")] for column in columns}


def in_markdown(columns: dict[str, list[str]]) -> list[str]:
    """The lines of a table: of each heading its cells."""
    rows = [_line(row) for row in zip(*columns.values(), strict=True)]
    return [_line(columns), "|" + "---:|" * len(columns), *rows]


def _line(cells) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _row(cells, tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
