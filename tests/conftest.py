"""Fixtures that many tests share: real material, ranks, and what is dear to make and made once a run."""

import os
from pathlib import Path

# Processes side by side have a core each: threads that wait for one another would take it from the others.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from cohorts import made_once, make_small_cohort
from launching import ROOT, Ranks
from projects import fresh_copy

# Real slides and real histology, which are not part of this project.
SHARED = Path(os.environ.get("GIGAPIPE_SHARED", ROOT.parent / "shared"))

LONGEST = ["slurm", "demo", "simulation", "ranks"]
"""Groups of tests, of which each runs in one process, that others should not have to wait for: they begin first."""
SLOW = {"demo", "link", "lsf", "own_slides", "place", "project", "ranks", "slurm", "small_cohort", "trained"}
"""Fixtures whose tests start ranks, Snakemake or trainings: `make check` has none of them but those marked `check`."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what shares something dear into one group, and what takes long before the rest."""
    for item in items:
        for fixture in {"slurm", "demo", "ranks"} & set(item.fixturenames):
            item.add_marker(pytest.mark.xdist_group(fixture))
        if SLOW & set(item.fixturenames) and not item.get_closest_marker("check"):
            item.add_marker(pytest.mark.slow)

    def order(item: pytest.Item) -> tuple[int, bool]:
        marker = item.get_closest_marker("xdist_group")
        group = marker.args[0] if marker else ""
        return LONGEST.index(group) if group in LONGEST else len(LONGEST), not item.get_closest_marker("slow")

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
