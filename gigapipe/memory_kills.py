"""Whether a process was killed because no memory was left: nobody tells it, but several keep count."""

import os
import re
import subprocess
from pathlib import Path

KILLED = {9, 137}
"""Exit statuses by which launchers and shells say that SIGKILL came."""

SAID = re.compile(
    r".*(?:oom[-_ ]kill|out[-_ ]of[-_ ]memory|outofmemory|TERM_MEMLIMIT|can't allocate memory|MemoryError).*",
    re.IGNORECASE,
)
"""A line of a log in which Slurm, LSF, PBS, a GPU's driver or Python says so."""

COUNTERS = (
    Path("/proc/vmstat"),
    *(Path(f"/sys/fs/cgroup/{name}") for name in ("memory.events", "memory/memory.oom_control")),
)
"""Where Linux counts them, as `oom_kill N`: of the host, and of a container that sees itself alone."""

ASKED = {
    "SLURM_JOB_ID": ["sacct", "--noheader", "--parsable2", "--format=State", "--jobs"],
    "LSB_JOBID": ["bjobs", "-l"],
}
"""What asks a scheduler how a job has ended, by the variable that has the job's number."""

ASKING = 20.0
"""Seconds that a scheduler has to answer in."""


def counted() -> dict[str, int]:
    """How often this host's kernel has done it, by what counts."""
    found = {}
    for path in COUNTERS:
        try:
            said = re.search(r"^oom_kill (\d+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        except OSError:
            continue
        if said:
            found[str(path)] = int(said[1])
    return found


def since(before: dict[str, int]) -> str | None:
    """What says that it was done since there were `before`, if something does."""
    for path, number in counted().items():
        if number > before.get(path, number):
            return f"{path} counts {number - before[path]} more since it began"
    return None


def in_log(text: str) -> str | None:
    """The first line of a log that says it."""
    found = SAID.search(text)
    return found[0].strip()[:200] if found else None


def job() -> dict[str, str]:
    """What this process's scheduler calls its job: what a later one may ask it by."""
    return {name: os.environ[name] for name in ASKED if name in os.environ}


def by_scheduler(job: dict[str, str]) -> str | None:
    """What the scheduler says of a `job`, of an earlier process, if it says that it ended for memory."""
    for name, command in ASKED.items():
        if (number := job.get(name, "")).isdigit():
            try:
                said = subprocess.run([*command, number], capture_output=True, text=True, timeout=ASKING, check=False)
            except (OSError, subprocess.TimeoutExpired):
                return None
            found = in_log(said.stdout)
            return f"{command[0]} says {found}" if found else None
    return None
