"""The site of the documentation: it builds without a warning, so that no link is dead; public names are explained."""

import ast
import importlib.util
import inspect
import os
import re
import subprocess
import sys

import pytest
from launching import ROOT
from requirements import missing

from gigapipe.evaluation import columns


@pytest.fixture(scope="module")
def pages():
    """docs/pages.py, which knows what is public."""
    if importlib.util.find_spec("mkdocs") is None:
        missing("mkdocs is not installed (`pip install 'gigapipe[docs]'`), so the site is not built")
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs/pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_site_builds_strictly_and_loads_nothing_from_other_hosts(tmp_path, pages):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {str(path.relative_to(tmp_path / "site")): path.read_text() for path in tmp_path.rglob("*.html")}
    loaded = re.compile(r'<(?:script|img|link rel="stylesheet")[^>]* (?:src|href)="?https?:[^\s">]+')
    assert not {name: those for name, text in found.items() if (those := loaded.findall(text))}
    api = found["reference/api/index.html"]
    for package in pages.PACKAGES:
        for name, value in pages.public(package).items():
            assert f'id="{pages.place(package, name, value)}"' in api
    verbs = re.findall(r'<h2 id="(gigapipe-[\w-]+)"', found["reference/cli/index.html"])
    assert {"gigapipe-train", "gigapipe-gdc-sheet", "gigapipe-report"} <= set(verbs)
    assert "Mesh" in found["tutorials/spatial/index.html"] and "pictures/whole-slide.svg" in found["index.html"]


def test_every_package_with_public_names_is_on_the_page_of_the_api(pages):
    files = [path for path in (ROOT / "gigapipe").rglob("*.py") if "\n__all__ = " in path.read_text(encoding="utf-8")]
    named = {".".join(path.relative_to(ROOT).parent.parts) for path in files if path.name == "__init__.py"}
    assert named == set(pages.PACKAGES) and len(named) == len(files)


def test_public_names_and_their_methods_have_docstrings(pages):
    without = set()
    for package in pages.PACKAGES:
        for name, value in pages.public(package).items():
            made = inspect.isclass(value) or inspect.isfunction(value)
            if not (value.__doc__ if made else _explained(package, name)):
                without.add(f"{package}.{name}")
            for member, what in vars(value).items() if inspect.isclass(value) else ():
                method = inspect.isfunction(what) or isinstance(what, (property, staticmethod, classmethod))
                if method and not member.startswith("_") and not inspect.getdoc(getattr(value, member)):
                    without.add(f"{package}.{name}.{member}")
    assert not without


def _explained(package: str, name: str) -> bool:
    """Whether text follows the line that defines a name which is neither a class nor a function."""
    for path in (ROOT / package.replace(".", "/")).glob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for line, after in zip(body, body[1:], strict=False):
            targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
            text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if text and any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return True
    return False


def test_the_columns_of_the_comparison_are_explained():
    page = (ROOT / "docs/reference/files.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`(\w+)`", page.partition("## comparison.tsv")[2].partition("## predictions.tsv")[0]))
    known = {name for of in columns._READ.values() for name in of.needs} | {*columns.ALIKE, *columns.COSTS}
    known |= {columns.AUC, columns.R2, columns.SPLIT, columns.COARSER, columns.RIVAL, columns.MARGIN, columns.MISSING}
    assert len(known) > 40 and known <= explained
