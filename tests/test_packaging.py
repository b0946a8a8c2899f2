"""What a user has who installs a release and not the repository: a wheel, and the folder that it writes."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from importlib.metadata import distributions
from pathlib import Path

import pytest
import requests
import yaml
from launching import ROOT, gigapipe
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from projects import fresh_copy, plan

import gigapipe as package
from gigapipe.slides.phantom import cohort

CONDA = {"torch": "pytorch", "dask": "dask-core", "matplotlib": "matplotlib-base", "snakemake": "snakemake-minimal"}
"""What packages are called on conda-forge and bioconda, where that is not their name on PyPI."""
SHIPPED = ("workflow", "config", "profiles", "envs", "docs")


def python(code: str, *arguments: object, cwd: Path) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def build(kind: str, source: Path, into: Path) -> Path:
    """What `python -m build` does, with the setuptools that is here."""
    python(f"import sys; from setuptools.build_meta import build_{kind} as b; b(sys.argv[1])", into, cwd=source)
    return next(into.glob("*.whl" if kind == "wheel" else "*.tar.gz"))


@pytest.mark.slow
def test_a_wheel_made_of_the_sdist_writes_a_folder_in_which_the_demo_is_planned(tmp_path, monkeypatch):
    clone = fresh_copy(tmp_path / "clone")
    files = {path.relative_to(clone) for folder in SHIPPED for path in (clone / folder).rglob("*") if path.is_file()}
    (unpacked := tmp_path / "sdist").mkdir()
    with tarfile.open(build("sdist", clone, tmp_path)) as archive:
        archive.extractall(unpacked, filter="data")
    wheel = build("wheel", next(unpacked.iterdir()), tmp_path)
    assert wheel.name == f"gigapipe-{package.__version__}-py3-none-any.whl"
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("gigapipe/")}
    assert held >= {f"gigapipe/workflow_folder/{file}" for file in files}
    assert held >= {str(path.relative_to(clone)) for path in (clone / "gigapipe").rglob("*.py")}

    installed, folder = tmp_path / "installed", tmp_path / "my cohort"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target"]
    subprocess.run([*pip, installed, wheel], check=True)
    monkeypatch.setenv("PYTHONPATH", str(installed))
    program = (
        "import sys; from gigapipe.cli import main; print(main.__code__.co_filename); sys.exit(main(sys.argv[1:]))"
    )
    assert "snakemake --cores 2" in (said := python(program, "init", folder, cwd=tmp_path)) and str(installed) in said
    assert os.access(folder / "profiles/lsf/submit.sh", os.X_OK)
    jobs = plan(folder, "--profile", "local")
    assert jobs["train"] == 12 and jobs["phantom"] == len(cohort()) + 1 and jobs["page"] == 1


def test_nothing_is_overwritten(tmp_path):
    said = gigapipe("init", tmp_path / "new").stdout
    assert "wrote Snakefile, ci-slurm, config, docs, frontier, " in said
    assert (tmp_path / "new/config/config.yaml").read_bytes() == (ROOT / "config/config.yaml").read_bytes()
    (tmp_path / "new/config/config.yaml").write_text("mine")
    for page in (tmp_path / "new").rglob("*.md"):
        for place in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            here = place.startswith("http") or place.endswith("reference/api.md")  # which the site makes
            assert here or (page.parent / place).exists(), f"{page}: {place} is not there"
    refused = gigapipe("init", tmp_path / "new", check=False)
    assert refused.returncode == 1 and "is not empty (it holds Snakefile); nothing was written" in refused.stdout
    assert (tmp_path / "new/config/config.yaml").read_text() == "mine"
    refused = gigapipe("init", tmp_path / "new/Snakefile", check=False)
    assert refused.returncode == 1 and refused.stdout.endswith("Snakefile: is a file; give a new or empty folder\n")
    assert gigapipe("--version").stdout == f"gigapipe {package.__version__}\n"


def test_the_conda_package_asks_for_what_the_wheel_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = set()
    for asked in [*project["dependencies"], *project["optional-dependencies"]["workflow"]]:
        name, version = re.fullmatch(r"([\w-]+)(?:\[\w+\])?(.*)", asked).groups()
        wanted.add(f"{CONDA.get(name, name)} {version}".strip())
    recipe = yaml.safe_load((ROOT / "envs/recipe.yaml").read_text(encoding="utf-8"))
    python, *run = recipe["requirements"]["run"]
    assert set(run) == wanted - {"openslide-bin"}  # openslide-python brings the library there
    assert python == f"python {project['requires-python']}"
    assert recipe["context"]["version"] == package.__version__
    assert recipe["build"]["python"]["entry_points"] == [f"gigapipe = {project['scripts']['gigapipe']}"]


def pins() -> dict[str, str]:
    """The version of each package in envs/constraints.txt."""
    text = (ROOT / "envs/constraints.txt").read_text(encoding="utf-8")
    return dict(line.split("==") for line in text.splitlines() if not line.startswith("#"))


def test_pinned_packages_are_for_the_oldest_python_that_is_allowed():
    """Not only for the one that runs this, which may have more patches: that of Debian 12 is 3.11.2."""
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["requires-python"].lstrip(">=")
    found = {one.name: one.metadata.get("Requires-Python") for one in distributions() if one.name in pins()}
    assert len(found) > 100
    assert not {name: asked for name, asked in found.items() if asked and f"{oldest}.0" not in SpecifierSet(asked)}


def test_pins_are_what_the_published_torch_requires():
    """Which requires more than a build for CPUs, as this machine may have: else `make demo` cannot be installed."""
    name = re.compile(rf"torch-{re.escape(pins()['torch'])}-cp311-.*manylinux.*x86_64.whl")
    try:
        asked = {"Accept": "application/vnd.pypi.simple.v1+json"}
        files = requests.get("https://pypi.org/simple/torch/", headers=asked, timeout=20).json()["files"]
        (address,) = (one["url"] for one in files if name.fullmatch(one["filename"]))
        metadata = requests.get(f"{address}.metadata", timeout=20)
        metadata.raise_for_status()
    except requests.RequestException as error:
        pytest.skip(f"PyPI does not answer: {error}")
    required = [Requirement(line) for line in Parser().parsestr(metadata.text).get_all("Requires-Dist")]
    here = [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    assert any(one.name == "triton" for one in here) or sys.platform != "linux"
    pinned = [(one, pins()[one.name]) for one in here if one.name in pins()]
    assert not [f"{one} is pinned to {pin}" for one, pin in pinned if pin not in one.specifier]
