"""What trained networks have predicted, and what each cost: the files that their folds have left, in two tables."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from gigapipe.errors import InputError
from gigapipe.evaluation.columns import (
    ALIKE,
    CANVAS,
    COSTS,
    FOLD,
    LABEL,
    MEMORY,
    MESH,
    METHOD,
    MPP,
    NAMES,
    NETWORK,
    ONE_NETWORK,
    RANKS,
    SECONDS_PER_SLIDE,
    SECONDS_PER_STEP,
    SEED,
    SPLIT,
    START,
)
from gigapipe.evaluation.targets import targets_of


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
    scores, records = [], []
    for table, training in zip(predictions, trainings, strict=True):
        scored, cost = _read_predictions(Path(table)), _read_training(Path(training))
        for key in (MPP, *ONE_NETWORK):
            if set(scored[key]) != {cost[key]}:
                raise InputError(f"{table}, {training}: of different {key}; give the same networks, in the same order")
        scores.append(scored.assign(**{key: cost[key] for key in ALIKE}))
        records.append(cost | {SPLIT: scored[SPLIT].iloc[0]})
    together, costs = pd.concat(scores, ignore_index=True), pd.DataFrame(records)
    twice = costs.duplicated([*ALIKE, SPLIT, *ONE_NETWORK])
    if twice.any():
        raise InputError(f"predictions {predictions[int(twice.argmax())]}: a network like it is given twice; give one")
    classes = sorted(together[LABEL].unique())
    lacking = [
        column for column in targets_of(classes).values() if column not in together or together[column].isna().any()
    ]
    if len(classes) < 2 or lacking:
        raise InputError(f"predictions of the labels {', '.join(classes)}: not all have a column {', '.join(lacking)}")
    return together, costs


def method(mesh: list[int], streamed: bool) -> str:
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
    try:
        table = pd.read_csv(path, sep="\t", dtype=dict.fromkeys(NAMES, str), keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"predictions {path}: cannot be read ({error}); make them with `gigapipe predict`") from None
    lacking = [name for name in (*NAMES, *ONE_NETWORK, MPP) if name not in table]
    if lacking or table.empty:
        what = f"has no column {', '.join(lacking)}" if lacking else "is empty"
        raise InputError(f"predictions {path}: {what}; make them again with `gigapipe predict`")
    return table


def _read_training(path: Path) -> dict:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        settings, mesh = record["settings"], record["mesh"]
        cost = {name: record.get(name) for name in COSTS} | {
            MPP: settings["mpp"],
            SEED: settings["seed"],
            FOLD: settings["fold"],
            METHOD: method(mesh, record["streamed"]),
            CANVAS: settings["canvas"],
            MESH: " × ".join(map(str, mesh)),
            RANKS: int(np.prod(mesh)),
            MEMORY: record["memory"] or 0,
            NETWORK: network(settings),
            START: start(settings, record["started_from"]),
            SECONDS_PER_SLIDE: record[SECONDS_PER_STEP] / record["slides_per_step"],
        }
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"training {path}: cannot be read ({error!r}); make it with `gigapipe train`") from None
    return cost
