"""Snakemake for dry runs, which start nothing: imported once, with what the workflow's files import, and then forked.

dry_runs.py is told in each line of standard input where to run, with which environment, arguments and file for its
output, and answers with the exit status.
"""

import gc
import importlib
import json
import os
import re
import sys
from pathlib import Path

from snakemake.cli import main

RULES = Path(__file__).parent.parent / "workflow"


def import_what_rules_import() -> None:
    for file in sorted(RULES.rglob("*.smk")):
        for module in re.findall(r"^(?:from|import) ([\w.]+)", file.read_text(encoding="utf-8"), re.MULTILINE):
            importlib.import_module(module)
    importlib.import_module("gigapipe.evaluation.weaknesses")  # which they need later
    gc.collect()
    gc.freeze()


def become(folder: str, environment: dict[str, str], arguments: list[str], output: str) -> None:
    """Make this process what a shell would have started."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["snakemake", *arguments]
    sys.path[0] = str(Path(sys.executable).parent)  # instead of the folder of tests
    written = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(written, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


import_what_rules_import()
for line in sys.stdin:
    if (child := os.fork()) == 0:
        become(*json.loads(line))
        sys.exit(main())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
