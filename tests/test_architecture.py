"""The drawing in ARCHITECTURE.md and the imports say the same; the release has one number."""

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from launching import ROOT, TESTS

import gigapipe

PACKAGE = ROOT / "gigapipe"
FOUNDATION = "foundation"


def room_of(module: str) -> str:
    """The room of `gigapipe.room.…`; of a file of the package itself, the foundation."""
    name = (module.split(".") + [""])[1]
    return name if (PACKAGE / name / "__init__.py").exists() and name else FOUNDATION


def imported(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def real_arrows() -> dict[str, set[str]]:
    """For each room those that it imports."""
    arrows: dict[str, set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).parts
        here = parts[0] if len(parts) > 1 else FOUNDATION
        found = {room_of(name) for name in imported(file.read_text(encoding="utf-8")) if name.startswith("gigapipe")}
        arrows.setdefault(here, set()).update(found - {here})
    for file in (ROOT / "workflow").rglob("*.smk"):
        found = re.findall(r"^ *(?:from|import) (gigapipe\S*)", file.read_text(encoding="utf-8"), re.MULTILINE)
        arrows.setdefault("workflow", set()).update(map(room_of, found))
    return arrows


def not_implied(arrows: dict[str, set[str]]) -> set[tuple[str, str]]:
    """The arrows that do not follow from others; a circle is an error."""
    behind: dict[str, set[str]] = {}  # all that a room reaches
    for room in graphlib.TopologicalSorter(arrows).static_order():
        behind[room] = set().union(*({near} | behind[near] for near in arrows.get(room, ())))
    every = [(room, near) for room, nears in arrows.items() for near in nears]
    return {(room, near) for room, near in every if not any(near in behind[other] for other in arrows[room])}


def test_the_drawing_of_the_parts_is_that_of_the_imports():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^    (\w+) --> (\w+)$", text, re.MULTILINE)) == not_implied(real_arrows())


def test_arrows_that_follow_are_left_out_and_circles_are_found():
    assert not_implied({"a": {"b", "c"}, "b": {"c"}}) == {("a", "b"), ("b", "c")}
    with pytest.raises(graphlib.CycleError):
        not_implied({"a": {"b"}, "b": {"a"}})


def test_files_that_the_page_names_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `((?:gigapipe|workflow|profiles)[\w/]*)` .* \| ([^|]*) \|$", text, re.MULTILINE)
    assert len(rows) == 13
    named = [(ROOT / room.rstrip("/"), file) for room, files in rows for file in re.findall(r"`([\w/.+]+)`", files)]
    assert not [f"{room}/{file}" for room, file in named if not ((room / file).exists() or (ROOT / file).exists())]
    ways = re.findall(r"`((?:\w+/)+\w+\.\w+)`", text)
    places = (ROOT, PACKAGE, ROOT / "workflow")
    assert not [way for way in ways if not any((place / way).exists() for place in places)]


def test_a_release_has_one_number_and_one_date():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    release = re.search(r"^## (\S+) – (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert release and release.groups() == (gigapipe.__version__, str(citation["date-released"]))
    assert citation["version"] == gigapipe.__version__
    assert Path(ROOT / "pyproject.toml").read_text(encoding="utf-8").count(gigapipe.__version__) == 0


def test_no_test_file_imports_from_another():
    texts = {path.name: path.read_text(encoding="utf-8") for path in TESTS.glob("*.py")}
    assert not [name for name, text in texts.items() if re.search(r"^(from|import) test_", text, re.MULTILINE)]
