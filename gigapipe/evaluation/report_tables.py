"""The report's tables, as headings and rows of text; the columns that the comparison lacks are left out."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from gigapipe.evaluation import between_methods
from gigapipe.evaluation import external as external_cohorts
from gigapipe.evaluation.columns import (
    CANVAS,
    COSTS,
    DECISIONS_AND_PROBABILITIES,
    FLAGGED,
    MESH,
    METHOD,
    METHOD_NAME,
    MPP,
    RANKS,
    SEEDS,
    SLIDES,
    START,
    Column,
    aucs,
    gains,
    main_figure,
    more_figures,
    names_of,
    read,
)
from gigapipe.slides.written_tables import read_written

NOT_MEASURED = "not measured"


class Table(NamedTuple):
    headings: list[str]
    rows: list[list[str]]


def worth(table: pd.DataFrame) -> Table:
    """What each resolution is worth."""
    of_slides = [column._replace(heading=f"{column.heading} (95 % interval)") for column in aucs(table)]
    return _table(table, [*read(SLIDES, SEEDS, FLAGGED), *of_slides, *more_figures(table), *gains(table)])


def decisions(table: pd.DataFrame) -> Table | None:
    """What its decisions and probabilities are worth, if the comparison has any of that."""
    there = set(DECISIONS_AND_PROBABILITIES) & set(table)
    return _table(table, read(*DECISIONS_AND_PROBABILITIES)) if there else None


def costs(table: pd.DataFrame) -> Table:
    """What each costs."""
    return _table(table, read(CANVAS, MESH, RANKS, *COSTS))


def between(results: Path, table: pd.DataFrame) -> Table | None:
    """The differences between methods, of a folder of results, if the comparison has several."""
    path = results / between_methods.FILE
    if METHOD_NAME not in table or table[METHOD_NAME].nunique() < 2 or not path.exists():
        return None
    columns = between_methods.columns(main_figure(table).heading)
    rows = read_written(path).to_dict("records")
    return Table([column.heading for column in columns], [[column.text(row) for column in columns] for row in rows])


def external(results: Path, table: pd.DataFrame) -> Table | None:
    """What the networks are worth on other cohorts, of a folder of results, if they were asked."""
    path = results / external_cohorts.FILE
    if not path.exists():
        return None
    rows = read_written(path)
    rows = rows[rows[MPP].isin(table[MPP])]
    columns = external_cohorts.columns(rows)
    cells = [[column.text(row) for column in columns] for row in rows.to_dict("records")]
    return Table([column.heading for column in columns], cells)


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
        .agg(jobs=("s", "size"), total=("s", _sum), longest=("s", "max"), mb=("max_rss", "max"))
    )
    rows = [
        [
            str(rule),
            f"{of.jobs:.0f}",
            _duration(of.total),
            _duration(of.longest),
            NOT_MEASURED if pd.isna(of.mb) else f"{of.mb:,.0f}",
        ]
        for rule, of in rules.sort_values("total", ascending=False).iterrows()
    ]
    return Table(["rule", "jobs", "total time", "longest job", "peak memory, MB"], rows)


def blocks(markdown: str) -> list[dict]:
    """The paragraphs (`strong`, `text`) and tables (`table`) of Markdown as `gigapipe folds` writes it."""
    found: list[dict] = []
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


def _table(table: pd.DataFrame, columns: list[Column]) -> Table:
    """After what tells rows apart, those of the columns that the comparison has."""
    row_names = [*names_of(table), *(name for name in (METHOD, START) if name in table and table[name].nunique() > 1)]
    there = [column for column in read(*row_names) + columns if set(column.needs) <= set(table)]
    rows = [[column.text(row) for column in there] for row in table.to_dict("records")]
    return Table([column.heading for column in there], rows)


def _sum(seconds: pd.Series) -> float:
    """NaN if none is known."""
    return seconds.sum(min_count=1)


def _duration(seconds: float) -> str:
    if pd.isna(seconds):
        return NOT_MEASURED
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
