"""The command line: one verb for each rule of the workflow, each usable without it.

A module for each stage declares its verbs, each above the function that it runs. That function imports what it needs
when it runs: `gigapipe --help` should not wait for torch.
"""

import argparse
import sys

import gigapipe
from gigapipe.cli import check, classification, cohorts, gdc, plan, pyramids, results, segmentation, slides
from gigapipe.cli.messages import log_to_stderr
from gigapipe.errors import InputError
from gigapipe.training.stopping import UNFINISHED, Unfinished


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="gigapipe", description=gigapipe.__doc__)
    top.add_argument("--version", action="version", version=gigapipe.__version__)
    verbs = top.add_subparsers(required=True, metavar="VERB")
    for stage in (gdc, slides, pyramids, cohorts, classification, segmentation, results, check, plan):
        stage.add_verbs(verbs)
    return top


def main(arguments: list[str] | None = None) -> int:
    log_to_stderr()
    try:
        args = parser().parse_args(arguments)
        args.run(args)
    except InputError as error:
        print(f"gigapipe: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("gigapipe"):
            raise
        print(f"gigapipe: {error.name} is not installed; pip install 'gigapipe[workflow]' brings it", file=sys.stderr)
        return 1
    except Unfinished:  # which the first rank has told
        return UNFINISHED
    return 0
