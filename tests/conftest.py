"""Fixtures that many tests share: real material, ranks, and what is dear to make and made once a run.

Fixtures import what they need: the process that hands out tests imports this file, too, and no torch.
"""

import fcntl
import gc
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import ROOT, Ranks
from requirements import missing
from xdist.scheduler import LoadScopeScheduling

# Real slides and real histology, which are not part of this project.
SHARED = Path(os.environ.get("GIGAPIPE_SHARED", ROOT.parent / "shared"))

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

TOGETHER = {
    "test_slurm_road.py": "road",
    "test_slurm.py": "slurm",
    "test_demo.py": "demo",
    "test_spatial.py": "ranks",
    "test_loss_scale.py": "ranks",
    "test_exactness.py": "ranks",
    "test_operations.py": "ranks",
    "test_contract.py": "ranks",
    "test_zoo.py": "ranks",
    "test_simulation.py": "simulation",
    "test_watch.py": "watch",
    "test_changes.py": "changes",
    "test_docs.py": "docs",
    "test_phantom.py": "phantom",
    "test_recommendation.py": "recommendation",
    "test_adding.py": "adding",
}
"""Files whose tests share something dear, and so run in one process; the longest first, for they begin first."""
SLOW = {
    "demo",
    "link",
    "lsf",
    "own_slides",
    "place",
    "project",
    "ranks",
    "regions",
    "slurm",
    "small_cohort",
    "tables",
    "trained",
}
"""Fixtures whose tests start ranks, Snakemake or trainings, or simulate: `make check` has none of them but those marked
`check`.
"""


class Together(LoadScopeScheduling):
    """Gives each process the next test, or all tests of the next group. (`--dist loadgroup` groups none: pytest 9.2
    has no place any more where it puts the group's name.)
    """

    def _split_scope(self, nodeid: str) -> str:
        return TOGETHER.get(Path(nodeid.partition("::")[0]).name, nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log) -> Together:
    config.option.loadscopereorder = False
    return Together(config, log)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers each time, whichever tests ran before in this process."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes long, and put it before the rest."""
    files = list(TOGETHER)
    for item in items:
        if SLOW & set(item.fixturenames) and not item.get_closest_marker("check"):
            item.add_marker(pytest.mark.slow)

    def order(item: pytest.Item) -> tuple[int, bool]:
        place = files.index(item.path.name) if item.path.name in TOGETHER else len(files)
        return place, not (item.get_closest_marker("slow") or item.get_closest_marker("check"))

    items.sort(key=order)


def pytest_sessionstart() -> None:
    """What is imported and collected is no garbage, and need not be searched again and again for some."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real material; without it a test is skipped, and in CI it fails."""
    if not (SHARED / "data").is_dir():
        missing(f"no real slides: {SHARED}/data does not exist; set GIGAPIPE_SHARED to the folder that has data/")
    return SHARED


@pytest.fixture(scope="session")
def ranks():
    """Six real ranks, on which `ranks("module.function", …, mesh=…)` runs a case of tests/ranks."""
    with Ranks() as six:
        yield six


@pytest.fixture(scope="session")
def small_cohort(tmp_path_factory) -> Path:
    """Twelve patients' pyramids at 8 µm/px, and their folds."""
    from cohorts import made_once, make_small_cohort

    return made_once(tmp_path_factory, "small-cohort", make_small_cohort)


@pytest.fixture(scope="session")
def regions(tmp_path_factory) -> Path:
    """Twelve patients' phantoms with regions, their pyramids, label images and folds."""
    from cohorts import made_once, make_regions

    return made_once(tmp_path_factory, "regions", make_regions)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A fresh copy of the project, for dry runs."""
    from projects import fresh_copy, with_few_patients

    return with_few_patients(fresh_copy(tmp_path_factory.mktemp("project")))


@pytest.fixture(scope="session")
def browser() -> str:
    """The path of a browser; where there is none, one is installed if that is possible."""

    def installed() -> str | None:
        return next(filter(None, map(shutil.which, BROWSERS)), None)

    failed = ""
    if not installed() and os.geteuid() == 0 and shutil.which("apt-get"):
        with open("/var/lock/gigapipe-tests-packages", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one at a time, as slurm/up.sh does
            steps = ["update"], ["install", "-y", "--no-install-recommends", "chromium"]
            for step in steps if not installed() else ():
                environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
                done = subprocess.run(["apt-get", *step], env=environment, capture_output=True, text=True)
                failed = f" (apt-get {step[0]}: {done.stderr.strip()})" if done.returncode else failed
    found = installed()
    return found or missing(f"no browser: none of {', '.join(BROWSERS)} is installed{failed}, so no page is opened")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory) -> Callable[..., str]:
    """What a command prints that is run where this Slurm is.

    `slurm.before` starts any command there, `slurm.set` sets what slurm.conf says, and `slurm.folder` has its logs.
    """
    folder = tmp_path_factory.mktemp("slurm")
    environment = os.environ | {"KILL_WAIT": "5"}  # seconds from SIGTERM to SIGKILL
    up = subprocess.run([ROOT / "tests/slurm/up.sh", folder], stderr=subprocess.PIPE, text=True, env=environment)
    try:
        if up.returncode:
            missing(f"no Slurm: {up.stderr.strip()}")
        before = [str(ROOT / "tests/slurm/enter.sh"), str(folder)]

        def run(*command: str, check: bool = True) -> str:
            return subprocess.run([*before, *command], stdout=subprocess.PIPE, text=True, check=check).stdout

        def set_option(name: str, value: object) -> None:
            file = folder / "etc/slurm.conf"
            file.write_text(re.sub(rf"^{name}=.*$", f"{name}={value}", file.read_text(), flags=re.MULTILINE))
            run("scontrol", "reconfigure")

        run.before, run.set, run.folder = before, set_option, folder
        yield run
    finally:
        subprocess.run([ROOT / "tests/slurm/down.sh", folder], check=True)
