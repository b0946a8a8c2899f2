"""The verb that divides a cohort."""

import argparse
from pathlib import Path

from gigapipe.atomic import atomic_file
from gigapipe.cli.arguments import Verbs, verb
from gigapipe.configuration.command_line import add_options
from gigapipe.configuration.configuration import Configuration, Folds


def add_verbs(verbs: Verbs) -> None:
    sub = verb(verbs, folds, "Divide a sample sheet into folds that share no site, or no patient.")
    sub.add_argument("sheet", type=Path, help="the sample sheet")
    sub.add_argument("output", type=Path, help="folder to write: folds.tsv, splits.tsv for other tools, and folds.md")
    add_options(sub, Configuration, ["source"])
    add_options(sub, Folds)
    sub.add_argument("--seed", type=int, default=0, help="another seed, another division")
    sub.add_argument(
        "--unlabelled", dest="labelled", action="store_false", help="the slides need no label; any number may do"
    )


def folds(args: argparse.Namespace) -> None:
    from gigapipe.evaluation.fold_report import fold_report
    from gigapipe.evaluation.folds import given_folds, make_folds, splits
    from gigapipe.slides.sheet import read_sheet

    sheet = read_sheet(args.sheet, args.source, args.labelled)
    table = given_folds(sheet, Path(args.given)) if args.given else make_folds(sheet, args.number, args.seed, args.by)
    with atomic_file(args.output / "folds.tsv") as partial:
        table.to_csv(partial, sep="\t", index=False)
    with atomic_file(args.output / "splits.tsv") as partial:
        splits(table).to_csv(partial, sep="\t", index=False)
    report = fold_report(table)
    with atomic_file(args.output / "folds.md") as partial:
        partial.write_text(report)
    print(report)
