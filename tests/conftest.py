"""Shared material and the launching of ranks."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Real slides and real histology, which are not part of this project.
SHARED = Path(os.environ.get("GIGAPIPE_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real material; without it a test is skipped, and in CI it fails."""
    if not (SHARED / "data").is_dir():
        message = f"no real slides: {SHARED}/data does not exist; set GIGAPIPE_SHARED to the folder that has data/"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return SHARED


def gigapipe(*arguments, ranks: int = 0, check: bool = True, **options) -> subprocess.CompletedProcess:
    """Run `gigapipe …` as a user does, under mpiexec if `ranks` is given; its output is text, both streams in one."""
    launcher = ["mpiexec", "-n", str(ranks)] if ranks else []
    command = [*launcher, str(Path(sys.executable).with_name("gigapipe")), *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, **options)
    assert not check or done.returncode == 0, done.stdout
    return done


def run_ranks(program: str, ranks: int, *arguments) -> list[dict]:
    """Run tests/`program` on `ranks` real ranks; rank 0 prints a JSON object a line, which are returned."""
    command = ["mpiexec", "-n", str(ranks), sys.executable, str(ROOT / "tests" / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def shown_commands(page: str) -> list[str]:
    """The commands that start with `gigapipe` or `snakemake` in the blocks of a page, without their comments."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    fenced = [of for kind, of in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) if not kind]
    indented = re.findall(r"^    ((?:gigapipe|snakemake) .*)$", text, re.MULTILINE)
    lines = [line for block in fenced for line in block.splitlines()] + indented
    found = [line.partition(" #")[0].strip() for line in lines if line.startswith(("gigapipe ", "snakemake "))]
    return list(dict.fromkeys(found))
