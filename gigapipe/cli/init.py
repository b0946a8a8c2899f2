"""The verb that begins a project of one's own: the folder in which Snakemake runs."""

import argparse
import shlex
from pathlib import Path

from gigapipe.cli.arguments import Verbs, verb


def add_verbs(verbs: Verbs) -> None:
    sub = verb(verbs, init, "Write a folder in which the workflow runs: Snakefile, config, docs and profiles.")
    sub.add_argument("folder", type=Path, metavar="DIR", help="a new or empty folder; nothing is overwritten")


def init(args: argparse.Namespace) -> None:
    from gigapipe.workflow_folder import lay_out

    print(f"{args.folder}: wrote {', '.join(lay_out(args.folder))}")
    place = shlex.quote(str(args.folder))
    print(f"next: cd {place} && snakemake --cores 2 -n    # the plan of the demo, with generated slides")
    print("your own slides: write a sheet and a config, and add --configfile config/mine.yaml (see config/README.md)")
