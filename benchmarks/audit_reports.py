"""How the audit's processes are told their cases, and what they say of each."""

import pickle
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from audit_cases import Case

Found = dict[str, np.ndarray]
"""loss, output, image (its gradient), and the gradients of weights by their names."""


class Failure(NamedTuple):
    """An error that a rank raised: refused by a `raise` or an `assert` in Python, or else crashed."""

    kind: str
    words: str


def report(library: Callable[[Case], tuple[Found, list[str]]], folder: Path, rank: int) -> None:
    """Run the cases of folder/cases and write what `library` found of each; after one that raises, wait to be killed.

    `library` returns what it found, and what a layer left whole on this rank. Every rank's process calls this, and
    writes folder/NUMBER-RANK.
    """
    for number, case in enumerate(pickle.loads((folder / "cases").read_bytes())):
        try:
            answer = library(case)
        except Exception as raised:
            traceback.print_exc()
            line = traceback.extract_tb(raised.__traceback__)[-1].line
            kind = "refused" if line.startswith(("raise ", "assert ")) else "crashed"
            answer = Failure(kind, f"{type(raised).__name__}: {raised}")
        path = folder / f"{number}-{rank}"
        part = path.with_suffix(".part")
        part.write_bytes(pickle.dumps(answer))
        part.rename(path)
        while isinstance(answer, Failure):  # its end would fail the others, who must show what they do
            time.sleep(60)
