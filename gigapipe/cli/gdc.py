"""Verbs that ask the Genomic Data Commons: `gigapipe gdc VERB`."""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import gigapipe
from gigapipe.cli.arguments import Verbs, attempts_argument, verb
from gigapipe.configuration.command_line import add_options
from gigapipe.configuration.sources import Archive, Cohort, Label
from gigapipe.errors import InputError
from gigapipe.plural import counted


def add_verbs(verbs: Verbs) -> None:
    what = "Write sample sheets for slides of the Genomic Data Commons."
    ours = verbs.add_parser("gdc", help=what, description=what).add_subparsers(required=True, metavar="VERB")
    add_query(ours)
    add_sheet(ours)
    add_refresh(ours)


def add_query(verbs: Verbs) -> None:
    sub = verb(verbs, query, "Query the slides of projects, and write their sample sheet.")
    sub.add_argument("output", type=Path, help="the sample sheet to write")
    sub.add_argument("--project", action="append", required=True, help="project, as TCGA-LUAD; may be repeated")
    add_options(sub, Cohort, ["strategy", "samples", "label"])
    sub.add_argument(
        "--class",
        dest="classes",
        action="append",
        type=named,
        metavar="NAME=VALUE",
        help="use only slides with this value, as a class of this name; may be repeated",
    )
    add_options(sub, Archive, ["api"])
    attempts_argument(sub)


def query(args: argparse.Namespace) -> None:
    from gigapipe.gdc.client import Client
    from gigapipe.gdc.cohort import query

    classes = {value: name for name, value in args.classes or []}
    for name, value in args.classes or []:
        if classes[value] != name:
            raise InputError(f"--class: {value} has two names, {name} and {classes[value]}; give one")
    sheet = query(Client(args.api), args.project, args.strategy, args.label, classes, args.samples)
    asked = f"{args.api} was queried for the slides of {', '.join(args.project)}, strategy {args.strategy}"
    write(sheet, args.output, f"{asked}, samples {args.samples}, labels by {args.label}")


def write(sheet, path: Path, how: str) -> None:
    """Write a cohort's sheet, which begins with when and how it was made and what is not in it, and say the same."""
    import pandas as pd

    from gigapipe.slides.sheet import write_sheet

    size = pd.to_numeric(sheet["size"], errors="coerce").sum() / 1e9
    said = [f"{made_now()}: {how}", f"{counted(len(sheet), 'slide')}, {size:.1f} GB", *sheet.attrs["notes"]]
    write_sheet(sheet, path, "; ".join(said))
    labels = ", ".join(f"{number} {label}" for label, number in sheet["label"].value_counts().items())
    of = f"{counted(len(sheet), 'slide')} of {counted(sheet['patient'].nunique(), 'patient')}"
    print(f"{path}: {of}: {labels}", file=sys.stderr)
    if sheet["label"].nunique() < 2:
        print("All have the same label, but task classes needs two: query more, or edit the sheet", file=sys.stderr)


def made_now() -> str:
    return f"gigapipe {gigapipe.__version__}, {datetime.now(UTC).strftime('%Y-%m-%dT%H:%MZ')}"


def add_sheet(verbs: Verbs) -> None:
    sub = verb(verbs, sheet, "Write a sample sheet from files of the GDC portal: manifests, or its sample sheets.")
    sub.add_argument("output", type=Path, help="the sample sheet to write")
    given = sub.add_mutually_exclusive_group(required=True)
    given.add_argument("--manifest", action="append", metavar="LABEL=FILE", type=named, help="may be repeated")
    given.add_argument("--portal-sheet", action="append", metavar="FILE", type=Path, help="may be repeated")
    add_options(sub, Cohort, ["strategy", "samples"])
    known = get_args(Label)[:2]
    sub.add_argument("--label", choices=known, default=known[0], help="with --portal-sheet: what defines the class")
    sub.add_argument("--sites", type=Path, help="table of institutions, with columns site, and code or patient")
    attempts_argument(sub)


def sheet(args: argparse.Namespace) -> None:
    from gigapipe.gdc.cohort import from_manifests, from_portal_sheets

    choice = {"sites": args.sites, "strategy": args.strategy, "samples": args.samples}
    if args.manifest:
        files = [Path(path) for _, path in args.manifest]
        made = from_manifests([(label, Path(path)) for label, path in args.manifest], **choice)
    else:
        made, files = from_portal_sheets(args.portal_sheet, args.label, **choice), args.portal_sheet
    how = f"made of {', '.join(path.name for path in files)}, strategy {args.strategy}, samples {args.samples}"
    write(made, args.output, how)


def add_refresh(verbs: Verbs) -> None:
    sub = verb(
        verbs, refresh, "Update a sample sheet to the archive's latest release: ids and checksums, by file name."
    )
    sub.add_argument("sheet", type=Path, help="the sample sheet, which is overwritten")
    add_options(sub, Archive, ["api"])


def refresh(args: argparse.Namespace) -> None:
    from gigapipe.gdc.client import Client
    from gigapipe.gdc.cohort import refresh
    from gigapipe.slides.sheet import read_table, write_sheet

    table, changed, gone = refresh(Client(args.api), read_table(args.sheet))
    for slide in gone:
        print(f"slide {slide}: the archive no longer has a file of this name; its row is unchanged", file=sys.stderr)
    if changed:
        write_sheet(table, args.sheet, f"{made_now()}: refreshed from {args.api}", labelled=False)
    print(f"{args.sheet}: {len(changed)} of {len(table)} slides were re-released", file=sys.stderr)


def named(text: str) -> tuple[str, str]:
    """An argument as NAME=VALUE."""
    name, separator, value = text.partition("=")
    if not (name and separator and value):
        raise ValueError
    return name, value
