"""How a verb is declared, and the types of arguments that verbs share."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from gigapipe.attempts import Attempts
from gigapipe.configuration.command_line import converter
from gigapipe.configuration.values import Bytes, Count, Micrometres

Verbs = argparse._SubParsersAction  # argparse has no public name for what add_subparsers() returns


def verb(verbs: Verbs, function: Callable[[argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
    """The parser of a new verb, named after the function that it runs."""
    sub = verbs.add_parser(
        function.__name__.replace("_", "-"),
        help=help,
        description=help,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    sub.set_defaults(run=function)
    return sub


def attempts_argument(sub: argparse.ArgumentParser) -> None:
    """For a verb that starts no ranks: what it is told so that a run of the workflow tries in vain but once."""
    sub.add_argument(
        "--attempts",
        nargs=2,
        metavar=("KEY", "FOLDER"),
        help="KEY identifies these settings: an attempt with an error that a repetition cannot correct records KEY in "
        "FOLDER, and the next attempt with the same KEY ends at once; set by the workflow",
    )


def attempts_of(args: argparse.Namespace) -> Attempts:
    """Those at what a verb writes."""
    if isinstance(args.attempts, list):
        key, place = args.attempts
        return Attempts(Path(place), key, Path(place))
    return Attempts(args.output, args.attempts)


def sizes(text: str) -> tuple[int, ...]:
    """An argument of positive numbers joined by ×, as 1237x991."""
    return tuple(positive(number) for number in text.replace("×", "x").split("x"))


def minutes(text: str) -> float:
    """An argument that is a time, as 90 (minutes), 2h or 45s."""
    from dask.utils import parse_timedelta

    if not (found := parse_timedelta(text, default="minutes") / 60) > 0:
        raise ValueError
    return found


def renamed(sub: argparse.ArgumentParser, old: str, new: str) -> None:
    """Take the argument `new` by its `old` name, too, for one release, with a line that says so."""
    (action,) = (action for action in sub._actions if new in action.option_strings)  # no public way to it

    class Renamed(argparse.Action):
        def __call__(self, parser, namespace, value, option_string=None):
            print(
                f"gigapipe: {old} is now called {new}; the old name will be removed in the next release",
                file=sys.stderr,
            )
            setattr(namespace, self.dest, value)

    sub.add_argument(
        old,
        dest=action.dest,
        type=action.type or str,
        action=Renamed,
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )


positive = converter(Count)
micrometres = converter(Micrometres)
size_in_bytes = converter(Bytes)
