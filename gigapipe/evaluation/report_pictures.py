"""The report's pictures, as they stand in the page, and where the stores lie that they were made of."""

import base64
import io
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from PIL import Image

from gigapipe.errors import InputError
from gigapipe.evaluation.columns import (
    IDENTITY,
    LABEL,
    MPP,
    NETWORKS,
    NUMBER,
    PREDICTED,
    PROBABILITY_OF,
    SLIDE,
    TARGET,
    names_of,
)
from gigapipe.evaluation.maps import CHOSEN
from gigapipe.evaluation.mistakes import mistakes
from gigapipe.pyramids.folders import NAME
from gigapipe.pyramids.store import Pyramid
from gigapipe.pyramids.survey import outlined
from gigapipe.slides.written_tables import read_written

logger = logging.getLogger(__name__)

PICTURE = 1600  # px of the longest side of a picture in the page
WRONG = 12
"""Slides that networks are wrong about, at most, that are shown of a resolution."""


@dataclass(frozen=True)
class Place:
    """Where a run's results are, and the page that links to them."""

    results: Path
    page: Path
    """Its folder."""
    _pictures: dict[Path, str] = field(default_factory=dict, init=False, repr=False)
    """Of pyramids: several parts of a page show the same ones."""

    def link(self, store: Path) -> str:
        """Of a store, from the page; empty if it is not there."""
        if not store.exists():
            return ""
        return quote(Path(os.path.relpath(store.resolve(), self.page.resolve())).as_posix())

    def slide(self, name: str) -> dict[str, str | bool]:
        """A slide's `name`, its picture with the outline of its tissue (`source`), and the link to its `store`: empty
        where its pyramid is not in the results. It has no `map`, and is not left `out`.
        """
        folder = self.results / "pyramids" / name
        store = self.link(folder / NAME)
        return {"name": name, "source": self._picture(folder) if store else "", "store": store, "map": "", "out": False}

    def _picture(self, folder: Path) -> str:
        if folder not in self._pictures:
            try:
                self._pictures[folder] = inline(outlined(Pyramid(folder)))
            except (InputError, OSError) as error:
                logger.warning(f"{folder}: its picture cannot be shown ({error})")
                self._pictures[folder] = ""
        return self._pictures[folder]


def maps(place: Place, table: pd.DataFrame, first: tuple) -> Iterator[dict]:
    """What `gigapipe map` has left of each resolution and method, that of the answer (`first`, values of `names_of`)
    before others, then from fine to coarse.
    """
    names = {SLIDE: str, LABEL: str, IDENTITY: str}
    tables = {path: read_written(path, dtype=names, keep_default_na=False) for path in found(place.results, "maps.tsv")}
    tables = {path: rows for path, rows in tables.items() if len(rows) and rows[MPP].iloc[0] in set(table[MPP])}
    known = set(" ".join(table[NETWORKS]).split()) if NETWORKS in table else set()
    for path in list(tables):
        if known and IDENTITY in tables[path] and not set(tables[path][IDENTITY]) <= known:
            logger.warning(f"{path}: belongs to networks that are not in comparison.tsv; it is not shown")
            del tables[path]
    of_path = {path: tuple(rows[names_of(rows)].iloc[0]) for path, rows in tables.items()}
    for path, rows in sorted(tables.items(), key=lambda item: _order(of_path[item[0]], first)):
        slides = [
            {
                "slide": row[SLIDE],
                "chosen": row["chosen"],
                "label": f"{row[NUMBER]:.3g}" if NUMBER in row else row[LABEL],
                "said": {row[TARGET]: row[PREDICTED]}
                if PREDICTED in row
                else {
                    name.removeprefix(PROBABILITY_OF): row[name]
                    for name in rows.columns
                    if name.startswith(PROBABILITY_OF)
                },
                "source": inline_picture(path.parent / f"{row[SLIDE]}.png"),
                "map": place.link(path.parent / row[SLIDE] / NAME),
                "store": place.link(place.results / "pyramids" / row[SLIDE] / NAME),
            }
            for row in rows.to_dict("records")
        ]
        slides.sort(key=lambda slide: CHOSEN.index(slide["chosen"]))
        yield {"of": _in_words(of_path[path]), "slides": slides}


def _in_words(of: tuple) -> str:
    mpp, *method = of
    return " at ".join([*method, f"{mpp:g} µm per pixel"])


def _order(one: tuple, first: tuple) -> tuple:
    return one != first, *one


def wrong_slides(place: Place, predictions: pd.DataFrame | None, first: tuple) -> list[dict]:
    """Of each resolution and method, in the same order, how many slides were decided on, and those that networks are
    wrong about.

    Only the `WRONG` that are most so have pictures.
    """
    found = []
    if predictions is None:
        return []
    groups: list[tuple[Any, pd.DataFrame]] = list(predictions.groupby(names_of(predictions)))
    for of, rows in sorted(groups, key=lambda item: _order(item[0], first)):
        of_slides = mistakes(rows)
        mpp, *method = of
        folder = place.results.joinpath(f"{mpp:g}um", *method, "maps")
        shown = [
            place.slide(slide) | {"said": said, "map": place.link(folder / slide / NAME)}
            for slide, said in of_slides.wrong[:WRONG]
        ]
        if of_slides.decided:
            counts = {"decided": of_slides.decided, "wrong": len(of_slides.wrong)}
            found.append({"of": _in_words(of), "slides": shown} | counts)
    return found


def found(results: Path, name: str) -> list[Path]:
    """Files of this name of all networks of a run; another run's results may lie in a folder beside them."""
    return sorted(results.glob(f"*um/**/{name}"))


def inline_svg(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def inline_picture(path: Path) -> str:
    """A picture as JPEG, smaller if it is large; empty if there is none."""
    if not path.exists():
        return ""
    Image.MAX_IMAGE_PIXELS = None  # a contact sheet of many slides is larger than what Pillow takes for an attack
    picture = Image.open(path)
    picture.thumbnail((PICTURE, PICTURE))
    return inline(picture)


def inline(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.convert("RGB").save(file, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
