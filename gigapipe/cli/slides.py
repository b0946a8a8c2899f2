"""Verbs that generate or download slides."""

import argparse
from pathlib import Path

from gigapipe.atomic import atomic_file
from gigapipe.cli.arguments import Verbs, attempts_argument, positive, verb
from gigapipe.configuration.command_line import add_options, values
from gigapipe.configuration.sources import Archive, Phantom
from gigapipe.errors import InputError


def add_verbs(verbs: Verbs) -> None:
    add_phantom(verbs)
    add_download(verbs)


def add_phantom(verbs: Verbs) -> None:
    sub = verb(verbs, phantom, "Generate phantoms: slides for which the correct answer is known.")
    sub.add_argument(
        "folder", type=Path, help="where to write the slides, their masks, and their sample sheet, slides.tsv"
    )
    add_options(sub, Phantom)
    sub.add_argument("--only", metavar="FILE", help="write only this file of the folder: slides.tsv, or one slide")


def phantom(args: argparse.Namespace) -> None:
    from gigapipe.progress import Progress
    from gigapipe.slides.phantom import cohort, region_labels, render, sheet_row, write_labels, write_slide

    slides = cohort(**values(Phantom, args), folder=str(args.folder))
    if args.only in (None, "slides.tsv"):
        import pandas as pd

        from gigapipe.slides.written_tables import write_table

        with atomic_file(args.folder / "slides.tsv") as partial:
            write_table(pd.DataFrame(map(sheet_row, slides)), partial)
    files = {Path(path).name: slide for slide in slides for path in (slide.source, slide.mask) if path}
    if args.only:
        files = {name: slide for name, slide in files.items() if name == args.only}
        if not files and args.only != "slides.tsv":
            raise InputError(f"{args.only}: is not a slide of this cohort; slides.tsv lists them")
    for name, slide in Progress(files.items(), what="phantom", unit="files"):
        if name == Path(slide.source).name:
            write_slide(Path(slide.source), render(slide))
        else:
            write_labels(Path(slide.mask), region_labels(slide))


def add_download(verbs: Verbs) -> None:
    sub = verb(verbs, download, "Download a slide; an interrupted download is resumed.")
    sub.add_argument("source", help="an http(s) address, or gdc:UUID")
    sub.add_argument("output", type=Path, help="the file to write")
    sub.add_argument("--md5", help="the expected checksum; without it an interrupted download starts again")
    sub.add_argument("--size", type=positive, help="the expected size, in bytes")
    sub.add_argument("--filename", default="", help="for gdc:UUID, the file's name in the archive")
    add_options(sub, Archive)
    sub.add_argument(
        "--tries", type=positive, default=8, help="number of consecutive attempts without new data after which it fails"
    )
    attempts_argument(sub)


def download(args: argparse.Namespace) -> None:
    from gigapipe.gdc.client import Client, Session, addresses_of, read_token
    from gigapipe.slides.download import NotThere, download

    archive = Archive.of(values(Archive, args))
    session = Session(read_token(Path(archive.token)) if archive.token else None, archive.api)
    addresses = addresses_of(args.source, args.filename, archive.api, archive.mirrors)
    try:
        download(addresses, args.output, args.md5, args.size, session, args.tries, args.timeout)
    except NotThere as error:
        if not args.source.startswith("gdc:"):
            raise
        raise InputError(Client(args.api).why_absent(args.source, args.filename) or str(error)) from None
