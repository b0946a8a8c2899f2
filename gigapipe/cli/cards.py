"""The verb by which jobs of one machine share its GPUs; the workflow puts it before what starts their ranks."""

import argparse
import logging
import os

from gigapipe.cli.arguments import Verbs, positive, verb
from gigapipe.errors import InputError

logger = logging.getLogger(__name__)


def add_verbs(verbs: Verbs) -> None:
    sub = verb(
        verbs,
        cards,
        "Run a command that sees so many of this machine's GPUs, which no other command started in this way has; waits "
        "until they are free.",
    )
    sub.add_argument("number", type=positive, help="number of GPUs")
    sub.add_argument("command", nargs=argparse.REMAINDER, help="the command with its arguments")


def cards(args: argparse.Namespace) -> None:
    from gigapipe import cards

    names = cards.cards()
    if not args.command:
        raise InputError("cards: no command; give it after the number of GPUs")
    if len(names) < args.number:
        raise InputError(f"cards: {args.number} GPUs are needed, but {len(names) or 'none'} can be seen here")
    taken = ",".join(cards.take(args.number, names))
    logger.info(f"GPUs: {taken} of {','.join(names)}")
    os.execvpe("env", ["env", *args.command], {**os.environ, cards.visible(): taken})
