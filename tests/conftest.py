"""Fixtures that many tests share: real material, ranks, and what is dear to make and made once a run."""

import os
from pathlib import Path

import pytest
from cohorts import made_once, make_small_cohort
from launching import ROOT, Ranks
from projects import fresh_copy
from xdist.scheduler import LoadScopeScheduling

# Real slides and real histology, which are not part of this project.
SHARED = Path(os.environ.get("GIGAPIPE_SHARED", ROOT.parent / "shared"))

TOGETHER = {
    "test_slurm.py": "slurm",
    "test_demo.py": "demo",
    "test_exactness.py": "ranks",
    "test_spatial.py": "ranks",
    "test_zoo.py": "ranks",
    "test_simulation.py": "simulation",
    "test_contract.py": "contract",
    "test_watch.py": "watch",
    "test_docs.py": "docs",
    "test_phantom.py": "phantom",
}
"""Files whose tests share something dear, and so run in one process; the longest first, for they begin first."""
SLOW = {"demo", "link", "lsf", "own_slides", "place", "project", "ranks", "slurm", "small_cohort", "trained"}
"""Fixtures whose tests start ranks, Snakemake or trainings: `make check` has none of them but those marked `check`."""


class Together(LoadScopeScheduling):
    """Gives each process the next test, or all tests of the next group. (`--dist loadgroup` groups none: pytest 9.2
    has no place any more where it puts the group's name.)
    """

    def _split_scope(self, nodeid: str) -> str:
        return TOGETHER.get(Path(nodeid.partition("::")[0]).name, nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log) -> Together:
    config.option.loadscopereorder = False
    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes long, and put it before the rest."""
    files = list(TOGETHER)
    for item in items:
        if SLOW & set(item.fixturenames) and not item.get_closest_marker("check"):
            item.add_marker(pytest.mark.slow)

    def order(item: pytest.Item) -> tuple[int, bool]:
        place = files.index(item.path.name) if item.path.name in TOGETHER else len(files)
        return place, not item.get_closest_marker("slow")

    items.sort(key=order)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real material; without it a test is skipped, and in CI it fails."""
    if not (SHARED / "data").is_dir():
        message = f"no real slides: {SHARED}/data does not exist; set GIGAPIPE_SHARED to the folder that has data/"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return SHARED


@pytest.fixture(scope="session")
def ranks():
    """Six real ranks, on which `ranks("module.function", …, mesh=…)` runs a case of tests/ranks."""
    with Ranks() as six:
        yield six


@pytest.fixture(scope="session")
def small_cohort(tmp_path_factory) -> Path:
    """Twelve patients' pyramids at 8 µm/px, and their folds."""
    return made_once(tmp_path_factory, "small-cohort", make_small_cohort)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A fresh copy of the project, for dry runs."""
    return fresh_copy(tmp_path_factory.mktemp("project"))
