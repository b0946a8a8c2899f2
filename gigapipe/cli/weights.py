"""The verb that fetches pretrained weights."""

import argparse
import shutil
from pathlib import Path

from gigapipe.atomic import atomic_file
from gigapipe.cli.arguments import Verbs, attempts_argument, verb
from gigapipe.published_weights import OFFICIAL


def add_verbs(verbs: Verbs) -> None:
    sub = verb(verbs, weights, "Fetch the official ImageNet weights of a network, once for a machine.")
    sub.add_argument("network", choices=list(OFFICIAL), help="the network")
    sub.add_argument("--output", type=Path, metavar="FILE", help="also copy them here")
    sub.add_argument("--server", metavar="URL", help="fetch from this address, a mirror of the folder with their file")
    attempts_argument(sub)


def weights(args: argparse.Namespace) -> None:
    from gigapipe.models.pretrained import fetch
    from gigapipe.training.weight_files import load_foreign

    found = fetch(args.network, args.server)
    load_foreign(found)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(args.output) as partial:
            shutil.copyfile(found, partial)
    print(f"{args.output or found}: official ImageNet weights of {args.network}, {OFFICIAL[args.network].licence}")
