"""What the site has beside the files in docs/: pages of the project that lie elsewhere, the command line and the API.

MkDocs calls the functions `on_…` (mkdocs.yml). Links in pages are valid in the repository, so that a code host
follows them, too; here they become links between pages of the site.
"""

import importlib
import logging
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from gigapipe.cli import parser
from gigapipe.cli.arguments import Verbs
from gigapipe.configuration.tasks import Task

ROOT = Path(__file__).parent.parent
logger = logging.getLogger("mkdocs.hooks.pages")  # below `mkdocs`: a strict build fails with its warnings

ELSEWHERE = {
    "README.md": "overview.md",
    "config/README.md": "configuration.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "CITATION.cff": "CITATION.cff",
    "LICENSE": "LICENSE.txt",
}
"""Files of the repository outside docs/ that the site has, and what they are called there."""
CLI, API = "reference/cli.md", "reference/api.md"

PACKAGES = [
    "gigapipe.spatial",
    "gigapipe.spatial.transports",
    "gigapipe.models",
    "gigapipe.pyramids",
    "gigapipe.configuration",
]
"""The packages with public names, in the order of the page."""

LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def public(package: str) -> dict[str, object]:
    """The names that a package says are public, and what they are."""
    module = importlib.import_module(package)
    return {name: getattr(module, name) for name in module.__all__}


def place(package: str, name: str, value: object) -> str:
    """Where a name is defined: `gigapipe.spatial.stream` would be the module."""
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return f"{package}.{name}"


def api() -> str:
    """The public names with their docstrings; mkdocstrings fills them in."""
    lines = [
        "# API",
        "",
        "Names on this page are public; a minor release may change them, and the [changelog](../changelog.md) says so. "
        "All other names are internal.",
    ]
    for package in PACKAGES:
        lines += ["", f"## {package}", "", (importlib.import_module(package).__doc__ or "").strip()]
        for name, value in public(package).items():
            lines += ["", f"::: {place(package, name, value)}"]
    task = f"{Task.__module__}.{Task.__qualname__}"
    lines += ["", "## Extension", "", "What [your own task](../extending.md#a-task) returns:", "", f"::: {task}"]
    return "\n".join(lines) + "\n"


def _verbs(of: Verbs, before: str) -> Iterator[str]:
    for name, verb in of.choices.items():
        yield f"## {before} {name}\n\n```text\n{verb.format_help()}```\n"
        for action in verb._actions:
            if isinstance(action, Verbs):
                yield from _verbs(action, f"{before} {name}")


def cli() -> str:
    """What `--help` says of each verb."""
    os.environ["COLUMNS"] = "100"  # argparse folds lines at the width of the terminal
    (verbs,) = (action for action in parser()._actions if isinstance(action, Verbs))
    beginning = (
        "# Command line\n\nEach rule of the workflow calls one of these commands; you can call them directly, too. "
        "[Exit statuses](../clusters.md#retries) say whether a repetition can succeed.\n"
    )
    return "\n".join([beginning, *_verbs(verbs, "gigapipe")])


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, name in ELSEWHERE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, CLI, content=cli()))
    files.append(File.generated(config, API, content=api()))
    return files


def on_page_markdown(markdown: str, page: Page, **_) -> str:
    """The page with links that are valid on the site."""
    here = page.file.src_uri
    if here in (CLI, API):
        return markdown
    sources = {name: source for source, name in ELSEWHERE.items()}
    source = sources.get(here, f"docs/{here}")

    def linked(match: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        name = ELSEWHERE.get(target, target.removeprefix("docs/"))
        if name == target and target not in ELSEWHERE:
            logger.warning(f"{source}: the link {match[1]} leads to {target}, which the site does not have")
        return posixpath.relpath(name, posixpath.dirname(here) or ".")

    return LINK.sub(linked, markdown)
