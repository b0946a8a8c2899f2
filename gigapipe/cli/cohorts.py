"""The verb that divides a cohort into folds."""

import argparse
from pathlib import Path

from gigapipe.atomic import atomic_file
from gigapipe.cli.arguments import Verbs, attempts_argument, verb
from gigapipe.configuration.command_line import add_options
from gigapipe.configuration.configuration import Configuration
from gigapipe.configuration.folds import Folds


def add_verbs(verbs: Verbs) -> None:
    sub = verb(verbs, folds, "Divide a sample sheet into folds that share no site, or no patient.")
    sub.add_argument("sheet", type=Path, help="the sample sheet")
    sub.add_argument("output", type=Path, help="folder to write: folds.tsv, splits.tsv for other tools, and folds.md")
    add_options(sub, Configuration, ["source", "confirmed_labels", "target"])
    add_options(sub, Folds)
    sub.add_argument("--seed", type=int, default=0, help="random seed of the division")
    sub.add_argument("--unlabelled", dest="labelled", action="store_false", help="the slides need no labels")
    attempts_argument(sub)


def folds(args: argparse.Namespace) -> None:
    from gigapipe.evaluation.fold_report import fold_report
    from gigapipe.evaluation.folds import given_folds, make_folds, splits
    from gigapipe.slides.numbers import number_groups, numbers_of
    from gigapipe.slides.sheet import read_sheet
    from gigapipe.slides.written_tables import write_table

    labelled = args.labelled and not args.target
    sheet = read_sheet(args.sheet, args.source, labelled, args.confirmed_labels, args.target)
    if args.target:
        sheet["label"] = number_groups(sheet, numbers_of(sheet, args.target, str(args.sheet)), args.number)
    table = given_folds(sheet, Path(args.given)) if args.given else make_folds(sheet, args.number, args.seed, args.by)
    with atomic_file(args.output / "folds.tsv") as partial:
        write_table(table, partial)
    with atomic_file(args.output / "splits.tsv") as partial:
        write_table(splits(table), partial)
    report = fold_report(table, classes=not args.target)
    with atomic_file(args.output / "folds.md") as partial:
        partial.write_text(report, encoding="utf-8")
    print(report)
