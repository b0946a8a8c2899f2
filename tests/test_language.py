"""Texts that users read use the field's standard terms: phrases that readers did not understand must not come back."""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

from launching import ROOT

from gigapipe.cli import parser

PAGES = ["*.md", "docs/**/*.md", "config/*", "profiles/*/*", "workflow/report/*.rst", "workflow/schemas/*.yaml"]
PHRASES = re.compile(
    r"slide-step|told apart|gone on with|resolution (?:is worth|buys)|may go when|what makes one value|learnt"
    r"|killed in its|\bgo(?:es)? on (?:from|to|with)|for nobody|\banew\b|of (?:no )?use\b|passed over"
    r"|fetch (?:it|them) again|does better than chance|cannot be told|\bs an? (?:step|slide)\b|MB a rank"
)


def texts_of(path: Path) -> Iterator[str]:
    """A page as it is; of a program its strings without docstrings."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield text
        return
    tree = ast.parse(text)
    notes = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in notes:
            yield node.value


def helps(of: argparse.ArgumentParser) -> Iterator[str]:
    yield " ".join(of.format_help().split())
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from helps(verb)


def test_texts_that_users_read_are_in_plain_terms():
    pages = [path for pattern in PAGES for path in ROOT.glob(pattern) if path.is_file()]
    said = [path for suffix in ("py", "jinja") for path in (ROOT / "gigapipe").rglob(f"*.{suffix}")]
    assert len(pages) > 40 and len(said) > 150
    assert not {
        f"{path}: {found}" for path in pages + said for text in texts_of(path) for found in PHRASES.findall(text)
    }
    every = list(helps(parser()))
    assert len(every) > 25 and not [found for text in every if (found := PHRASES.findall(text))]
