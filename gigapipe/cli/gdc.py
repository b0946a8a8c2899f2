"""Verbs that ask the Genomic Data Commons: `gigapipe gdc VERB`."""

import argparse
import sys
from pathlib import Path
from typing import get_args

from gigapipe.cli.arguments import Verbs, verb
from gigapipe.configuration.command_line import add_options
from gigapipe.configuration.configuration import Archive, Cohort, Label


def add_verbs(verbs: Verbs) -> None:
    what = "Sample sheets of the Genomic Data Commons' slides."
    ours = verbs.add_parser("gdc", help=what, description=what).add_subparsers(required=True, metavar="VERB")
    add_query(ours)
    add_sheet(ours)
    add_refresh(ours)


def add_query(verbs: Verbs) -> None:
    sub = verb(verbs, query, "Ask which slides some projects have, and write their sample sheet.")
    sub.add_argument("output", type=Path, help="the sample sheet to write")
    sub.add_argument("--project", action="append", required=True, help="as TCGA-LUAD; may be repeated")
    add_options(sub, Cohort, ["strategy", "label"])
    sub.add_argument(
        "--class",
        dest="classes",
        action="append",
        type=named,
        metavar="NAME=VALUE",
        help="take only slides of this value, under this name; may be repeated",
    )
    add_options(sub, Archive, ["api"])


def query(args: argparse.Namespace) -> None:
    from gigapipe.gdc.client import Client
    from gigapipe.gdc.cohort import query, write_sheet

    classes = {value: name for name, value in args.classes or []}
    sheet = query(Client(args.api), args.project, args.strategy, args.label, classes)
    asked = f"{args.api} was asked for each open {args.strategy} of {', '.join(args.project)}, labels by {args.label}"
    write_sheet(sheet, args.output, asked)
    print(f"{args.output}: {len(sheet)} slides of {sheet['patient'].nunique()} patients", file=sys.stderr)


def add_sheet(verbs: Verbs) -> None:
    sub = verb(verbs, sheet, "Make a sample sheet of what the GDC's portal gives: manifests, or its sample sheets.")
    sub.add_argument("output", type=Path, help="the sample sheet to write")
    given = sub.add_mutually_exclusive_group(required=True)
    given.add_argument("--manifest", action="append", metavar="LABEL=FILE", type=named, help="may be repeated")
    given.add_argument("--portal-sheet", action="append", metavar="FILE", type=Path, help="may be repeated")
    known = get_args(Label)[:2]
    sub.add_argument("--label", choices=known, default=known[0], help="with --portal-sheet: what the class is")
    sub.add_argument("--sites", type=Path, help="table of institutions, with columns site, and code or patient")


def sheet(args: argparse.Namespace) -> None:
    from gigapipe.gdc.cohort import from_manifests, from_portal_sheets, write_sheet

    if args.manifest:
        files = [Path(path) for _, path in args.manifest]
        made = from_manifests({label: Path(path) for label, path in args.manifest}, args.sites)
    else:
        made, files = from_portal_sheets(args.portal_sheet, args.label, args.sites), args.portal_sheet
    write_sheet(made, args.output, f"made of {', '.join(path.name for path in files)}")
    print(f"{args.output}: {len(made)} slides of {made['patient'].nunique()} patients", file=sys.stderr)


def add_refresh(verbs: Verbs) -> None:
    sub = verb(verbs, refresh, "Bring a sample sheet to the archive's latest release: ids and checksums, by file name.")
    sub.add_argument("sheet", type=Path, help="the sample sheet, which is written anew")
    add_options(sub, Archive, ["api"])


def refresh(args: argparse.Namespace) -> None:
    from gigapipe.gdc.client import Client
    from gigapipe.gdc.cohort import refresh, write_sheet
    from gigapipe.slides.sheet import read_table

    table, changed, gone = refresh(Client(args.api), read_table(args.sheet))
    for slide in gone:
        print(f"slide {slide}: the archive has no file of its name any more; its row is as it was", file=sys.stderr)
    if changed:
        write_sheet(table, args.sheet, f"refreshed from {args.api}")
    print(f"{args.sheet}: {len(changed)} of {len(table)} slides were re-released", file=sys.stderr)


def named(text: str) -> tuple[str, str]:
    """An argument as NAME=VALUE."""
    name, separator, value = text.partition("=")
    if not (name and separator and value):
        raise ValueError
    return name, value
