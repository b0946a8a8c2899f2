"""How a verb is declared, and the types of arguments that verbs share."""

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path

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


def sizes(text: str) -> tuple[int, ...]:
    """An argument of positive numbers joined by ×, as 1237x991."""
    return tuple(positive(number) for number in text.replace("×", "x").split("x"))


def size_in_bytes(text: str) -> int:
    """An argument as 6GiB or 500MB."""
    from dask.utils import parse_bytes

    return parse_bytes(text)


def minutes(text: str) -> float:
    """An argument that is a time, as 90 (minutes), 2h or 45s."""
    from dask.utils import parse_timedelta

    if not (found := parse_timedelta(text, default="minutes") / 60) > 0:
        raise ValueError
    return found


def folder_of_variables(text: str) -> Path:
    """An argument that is a folder, with variables of the environment that the process finds itself in."""
    folder = os.path.expandvars(text)
    if "$" in folder:
        raise ValueError
    return Path(folder)


def device(text: str) -> str:
    """An argument that names a kind of device, or one of them."""
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", text):
        raise ValueError
    return text


def micrometres(text: str) -> float:
    """An argument that is µm per pixel."""
    if not 0 < float(text) < float("inf"):
        raise ValueError
    return float(text)


def positive(text: str) -> int:
    """An argument that counts something."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def share(text: str) -> float:
    """An argument from 0 to less than 1."""
    if not 0 <= float(text) < 1:
        raise ValueError
    return float(text)
