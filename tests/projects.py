"""A copy of the project, as a user has it, and Snakemake in it."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.util import cache_from_source
from pathlib import Path

import psutil
import yaml
from forks import PROGRAMS, with_forks
from launching import ROOT, ended, gigapipe

from gigapipe.configuration.command_line import arguments
from gigapipe.configuration.sources import Phantom
from gigapipe.pyramids.build import build_pyramid


def fresh_copy(folder: Path) -> Path:
    """What a clone of the project would hold."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    folder.mkdir(exist_ok=True)
    for name in filter(None, listed.stdout.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("gigapipe/") and name.endswith(".py"):  # with its date, for what was compiled has it, too
            shutil.copy2(ROOT / name, folder / name)
            compiled = cache_from_source(name)
            if (ROOT / compiled).exists():
                (folder / compiled).parent.mkdir(exist_ok=True)
                shutil.copy(ROOT / compiled, folder / compiled)
        else:
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)  # profiles are links
    return folder


def with_few_patients(project: Path) -> Path:
    """The project, which makes phantoms of twelve patients by default: what is only planned is planned sooner."""
    config = project / "config/config.yaml"
    config.write_text(re.sub(r"^( +patients): \d+$", r"\1: 12", config.read_text(), flags=re.MULTILINE))
    return project


def make_results(project: Path, mpps: Sequence[float], leave: int = 2, results: str = "results", **phantom) -> None:
    """Make a project's phantoms and their pyramids in this process; the last `leave` slides are left to Snakemake."""
    options = shlex.split(arguments(Phantom(**phantom), Phantom))
    gigapipe("phantom", f"{results}/phantom", *options, cwd=project)
    slides = sorted((project / results / "phantom").glob("*.svs"))
    made = len(slides) - leave
    for slide in slides[made:]:
        slide.unlink()
    for slide in slides[:made]:
        build_pyramid(slide, project / results / "pyramids" / slide.stem, list(mpps))


def configured(project: Path, **config) -> list[str]:
    """The arguments that give Snakemake a config of one's own."""
    (project / "own.yaml").write_text(yaml.safe_dump(config))
    return ["--configfile", "own.yaml"]


def activated() -> dict[str, str]:
    """The variables of an activated environment: its programs come first."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def start(folder: Path, *arguments, before: Sequence[str] = (), forked: Sequence[str] = PROGRAMS) -> subprocess.Popen:
    """Start `snakemake …` in a project; `before` is what starts it in a place of its own, where trainings are processes
    of their own.
    """
    processes = {"GIGAPIPE_TESTS_PROCESSES": "train"} if before else {}
    return subprocess.Popen(
        [*before, "snakemake", *map(str, arguments)],
        cwd=folder,
        env=with_forks(activated(), *forked) | processes,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def snakemake(folder: Path, *arguments, check: bool = True, **how) -> tuple[int, str]:
    """The exit status and the output of `snakemake …`, started as `start` does."""
    with ended(start(folder, *arguments, **how)) as process:
        output, _ = process.communicate(timeout=1500)
    assert not check or process.returncode == 0, output[-5000:]  # where it says what was wrong
    return process.returncode, output


def watched(process: subprocess.Popen, act: Callable[[], None]) -> str:
    """What a process prints until it ends, while `act` is called five times a second."""
    output = []
    reader = threading.Thread(target=lambda: output.append(process.stdout.read()))
    with ended(process):
        reader.start()
        while process.poll() is None:
            act()
            time.sleep(0.2)
    reader.join()
    return output[0]


def plan(folder: Path, *arguments, **how) -> dict[str, int]:
    """How many jobs of each rule a dry run announces."""
    _, output = snakemake(folder, "-n", "--cores", 2, *arguments, **how)
    table = output.partition("Job stats:")[2].partition("total")[0]
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


def shown_commands(page: str) -> list[str]:
    """The commands that start with `gigapipe` or `snakemake` in the blocks of a page, without their comments."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    fenced = [of for kind, of in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) if not kind]
    indented = re.findall(r"^    ((?:gigapipe|snakemake) .*)$", text, re.MULTILINE)
    lines = [line for block in fenced for line in block.splitlines()] + indented
    found = [line.partition(" #")[0].strip() for line in lines if line.startswith(("gigapipe ", "snakemake "))]
    return list(dict.fromkeys(found))


def processes_of(folder: Path, *words: str) -> list[psutil.Process]:
    """The processes that work in `folder` and whose command holds all `words`, the oldest first."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # one that has just ended
            command = process.cmdline()
            if process.cwd() == str(folder) and all(word in command for word in words):
                found.append(process)
    return sorted(found, key=lambda process: process.create_time())
