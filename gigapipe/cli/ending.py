"""The verb that runs after the ranks of a job have ended abnormally, to find out what killed them."""

import argparse
import sys
from pathlib import Path

from gigapipe import exit_status, memory_kills
from gigapipe.cli.arguments import Verbs, verb
from gigapipe.errors import InputError

TAIL = 1 << 20
"""Bytes of a log's end that are read."""


def add_verbs(verbs: Verbs) -> None:
    sub = verb(
        verbs,
        explain,
        "Report whether ranks were killed because memory ran out, after their launcher has ended; exits with the "
        f"launcher's status, or with {exit_status.NEVER} if a retry would fail in the same way.",
    )
    sub.add_argument("status", type=int, help="the launcher's exit status")
    sub.add_argument("--output", type=Path, required=True, help="the file that the ranks should have written")
    sub.add_argument("--log", type=Path, required=True, help="the log of launcher and ranks")
    sub.add_argument("--attempts", dest="key", metavar="KEY", help="the KEY that the ranks were started with")


def explain(args: argparse.Namespace) -> None:
    from gigapipe.attempts import Attempts

    attempts = Attempts(args.output, args.key)
    with open(args.log, "rb") as file:
        file.seek(max(0, args.log.stat().st_size - TAIL))
        log = file.read().decode(errors="replace")
    if said := attempts.why_killed(args.status, log):
        print(f"gigapipe: {attempts.killed_for_memory(said)}", file=sys.stderr)
    elif args.status == exit_status.USAGE:  # which the verb itself, being given no key, could not note
        attempts.note(InputError(log.strip().rpartition("\n")[2]))
    elif args.status in memory_kills.KILLED:
        print(
            "gigapipe: a rank was killed (SIGKILL) for an unknown reason; there is no sign that memory ran out",
            file=sys.stderr,
        )
    raise SystemExit(exit_status.NEVER if attempts.verdict else args.status)
