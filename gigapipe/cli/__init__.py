"""The command line: one verb for each rule of the workflow; each can be used without it.

A module for each stage declares its verbs, each above the function that it runs. That function imports what it needs
when it runs, so that `gigapipe --help` does not wait for torch.
"""

import argparse
import gc
import os
import sys
import traceback

import gigapipe
from gigapipe import exit_status
from gigapipe.attempts import InVain
from gigapipe.cli import (
    applying,
    cards,
    check,
    classification,
    cohorts,
    ending,
    external,
    gdc,
    init,
    plan,
    pyramids,
    results,
    segmentation,
    slides,
    weights,
)
from gigapipe.cli.arguments import attempts_of
from gigapipe.cli.guard import run_apart
from gigapipe.cli.messages import log_to_stderr
from gigapipe.errors import line_of
from gigapipe.given_text import refuse_unreadable
from gigapipe.left_jobs import end_with_run
from gigapipe.training.launched import abort_mpi, begin_mpi
from gigapipe.training.stopping import Unfinished


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="gigapipe", description=gigapipe.__doc__)
    top.add_argument("--version", action="version", version=f"gigapipe {gigapipe.__version__}")
    verbs = top.add_subparsers(required=True, metavar="VERB")
    learning = (classification, segmentation, weights, applying, external)
    for stage in (init, gdc, slides, pyramids, cohorts, *learning, results, check, plan, cards, ending):
        stage.add_verbs(verbs)
    return top


def program() -> int:
    """The process `gigapipe`: `main`, ended sooner.

    What imports made, 160,000 objects for torch alone, is no garbage: at the end of the process it need not be searched
    for some, which takes half a second.
    """
    status = main()
    gc.freeze()
    return status


def main(arguments: list[str] | None = None) -> int:
    """The exit status of a verb, as `exit_status` has them. A defect is raised, if another program calls this."""
    log_to_stderr()
    attempts = None
    try:
        refuse_unreadable([os.getcwd(), *(sys.argv if arguments is None else arguments)])
        args = parser().parse_args(arguments)
        if getattr(args, "attempts", None):
            attempts = attempts_of(args)
            attempts.refuse()
        # Called by another program, it may have threads, and is as safe as that program.
        crash = run_apart() if arguments is None and "crashed" in args else None
        if crash:
            args.crashed(args, crash.name)
        else:
            if arguments is None:
                end_with_run()
                if "transport" in args:
                    begin_mpi(args.transport)
            args.run(args)
        sys.stdout.flush()  # here, where it can be said that there is no room for it
        if attempts and attempts.place:  # those of ranks do so by themselves, the first alone
            attempts.forget()
    except Unfinished:  # which the first rank has told
        return exit_status.UNFINISHED
    except Exception as error:
        if isinstance(error, OSError) and _output_failed():
            error.filename = error.filename or "standard output"
        if isinstance(error, InVain) and error.said_by_another:
            pass
        elif line := line_of(error):
            print(f"gigapipe: {line}", file=sys.stderr)
        elif arguments is not None:
            raise
        else:
            traceback.print_exc()
        if attempts:
            attempts.note(error)
        if arguments is None:
            abort_mpi(exit_status.of(error))
        return exit_status.of(error)
    return 0


def _output_failed() -> bool:
    """Whether standard output takes no more. It is then given up: Python would try it again at its end, and tell."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
