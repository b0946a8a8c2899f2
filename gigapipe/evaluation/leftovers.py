"""What lies in a folder of results and belongs to no network of the run any more."""

import contextlib
import itertools
import json
import re
from pathlib import Path

from gigapipe.configuration import Configuration
from gigapipe.evaluation.divisions import divisions

PARTS = {"model.pt", "training.json", "predictions.tsv", "maps.tsv", "dice.tsv"}
"""Files of networks, by which their folders are known."""


def leftovers(results: Path, config: Configuration) -> list[Path]:
    """Folders of resolutions, methods, seeds, folds or kinds of folds that a run's config no longer has: of networks,
    maps, divisions and masks. What has another name, or is a link, is nobody's business here.
    """
    resolutions = {f"{resolution.mpp:g}um" for resolution in config.resolutions}
    methods = {method.name for method in config.methods}
    networks = {
        results / f"{resolution.mpp:g}um" / method / f"{division.folder}fold-{fold}"
        for resolution, method, division, fold in itertools.product(
            config.resolutions, methods or {""}, divisions(results, config), range(config.folds.number)
        )
    }
    found = [folder for folder in _named(results, r"[0-9.e+-]+um") if _holds_networks(folder)]
    gone = [folder for folder in found if folder.name not in resolutions]
    for folder in found:
        if folder not in gone:
            of_methods = [of for of in _named(folder, ".*") if _is_method(of)]
            gone += [of for of in of_methods if of.name not in methods]
            if methods:
                gone += _named(folder, "maps")
            for above in [folder, *(of for of in of_methods if of.name in methods)]:
                deeper = [of for of in _named(above, r"(site|patient|given)-\d+") if _holds_networks(of)]
                for place in [above, *deeper]:
                    own = _named(place, r"fold-\d+")
                    strange = [one for one in own if one not in networks]
                    gone += [place] if place in deeper and strange == own else strange
    gone += [folder for folder in _named(results / "masks", r"[0-9.e+-]+um") if folder.name not in resolutions]
    kept = {results / division.folds for division in divisions(results, config)}
    gone += [folder for folder in _named(results / "folds", r"(site|patient|given)-\d+") if folder not in kept]
    return sorted(gone)


def _named(folder: Path, pattern: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return [
        one for one in folder.iterdir() if re.fullmatch(pattern, one.name) and one.is_dir() and not one.is_symlink()
    ]


def _is_method(folder: Path) -> bool:
    """Whether trainings in there say that they are of the method of its name."""
    for path in folder.glob("**/training.json"):
        with contextlib.suppress(OSError, ValueError):
            if json.loads(path.read_text(encoding="utf-8")).get("settings", {}).get("method") == folder.name:
                return True
    return False


def _holds_networks(folder: Path) -> bool:
    return any(path.name in PARTS or path.parent.name == "checkpoints" for path in folder.glob("**/*"))
