"""What trained networks have predicted, and what each cost: the files that their folds have left, in two tables."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from gigapipe.errors import InputError
from gigapipe.evaluation.targets import targets_of

ALIKE = ["mpp", "arm", "canvas", "mesh", "memory", "network", "start"]
"""What networks that differ in seed and fold only have in common."""

COSTS = [
    "parameters",
    "seconds_per_step",
    "seconds_per_slide",
    "images_per_second",
    "peak_memory_per_rank_mb",
    "sent_bytes_per_step",
    "joules_per_step",
]
"""What one network cost; NaN where its training did not say."""


def read_networks(predictions: list[Path], trainings: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """From the `predictions.tsv` and `training.json` of the same networks, in the same order: scores and costs.

    Scores have a row for each network and slide: `seed`, `fold`, `split` (what its folds do not share), `part` (`test`
    or `validation`), `slide`, `patient`, `site`, `label`, a column a score (see targets.py), and the columns `ALIKE`.
    Costs have a row for each network: `seed`, `fold`, `split`, and the columns `ALIKE` and `COSTS`.

    Raises InputError if a file cannot be read, predictions and training are not of one network, or one comes twice.
    """
    if len(predictions) != len(trainings):
        raise InputError(
            f"{len(predictions)} tables of predictions, but {len(trainings)} trainings: give those of the same networks"
        )
    scores, costs = [], []
    for table, training in zip(predictions, trainings, strict=True):
        scored, cost = _read_predictions(Path(table)), _read_training(Path(training))
        for key in ("mpp", "seed", "fold"):
            if set(scored[key]) != {cost[key]}:
                raise InputError(f"{table}, {training}: of different {key}; give the same networks, in the same order")
        scores.append(scored.assign(**{key: cost[key] for key in ALIKE}))
        costs.append(cost | {"split": scored["split"].iloc[0]})
    together, costs = pd.concat(scores, ignore_index=True), pd.DataFrame(costs)
    twice = costs.duplicated([*ALIKE, "split", "seed", "fold"])
    if twice.any():
        raise InputError(f"predictions {predictions[int(twice.argmax())]}: a network like it is given twice; give one")
    classes = sorted(together["label"].unique())
    lacking = [
        column for column in targets_of(classes).values() if column not in together or together[column].isna().any()
    ]
    if len(classes) < 2 or lacking:
        raise InputError(f"predictions of the labels {', '.join(classes)}: not all have a column {', '.join(lacking)}")
    return together, costs


def arm(mesh: list[int], streamed: bool) -> str:
    """How a network was computed: `whole`, or by what of `data-parallel`, `spatial` and `streamed` it was divided."""
    data, rows, columns = mesh
    used = {"data-parallel": data > 1, "spatial": rows * columns > 1, "streamed": streamed}
    return " + ".join(name for name in used if used[name]) or "whole"


def network(settings: dict) -> str:
    """A network's name, and in what it differs from the one that was published under it."""
    width = f", width {settings['width']}" if settings["width"] != 64 else ""
    pool = f", {settings['pool']} pool" if settings["pool"] != "average" else ""
    return settings["network"] + width + pool


def start(settings: dict, started_from: dict | None) -> str:
    """What a training began with."""
    if started_from:
        return f"{started_from['mpp']:g} µm/px"
    return "given weights" if settings["weights"] else "random"


def _read_predictions(path: Path) -> pd.DataFrame:
    names = dict.fromkeys(["slide", "patient", "site", "label", "part", "split"], str)  # which may look like numbers
    try:
        table = pd.read_csv(path, sep="\t", dtype=names, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"predictions {path}: cannot be read ({error}); make them with `gigapipe predict`") from None
    lacking = [name for name in (*names, "seed", "fold", "mpp") if name not in table]
    if lacking or table.empty:
        what = f"has no column {', '.join(lacking)}" if lacking else "is empty"
        raise InputError(f"predictions {path}: {what}; make them again with `gigapipe predict`")
    return table


def _read_training(path: Path) -> dict:
    try:
        record = json.loads(path.read_text())
        settings, mesh = record["settings"], record["mesh"]
        cost = {name: record.get(name) for name in COSTS} | {
            "mpp": settings["mpp"],
            "seed": settings["seed"],
            "fold": settings["fold"],
            "arm": arm(mesh, record["streamed"]),
            "canvas": settings["canvas"],
            "mesh": " × ".join(map(str, mesh)),
            "ranks": int(np.prod(mesh)),
            "memory": record["memory"] or 0,
            "network": network(settings),
            "start": start(settings, record["started_from"]),
            "seconds_per_slide": record["seconds_per_step"] / record["slides_per_step"],
        }
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"training {path}: cannot be read ({error!r}); make it with `gigapipe train`") from None
    return cost
