"""What trained networks have predicted, and what each cost: the files that their folds have left, in two tables."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from gigapipe.disks import raise_passing
from gigapipe.errors import InputError
from gigapipe.evaluation.columns import (
    ALIKE,
    BELONGS,
    CANVAS,
    COSTS,
    ENERGY_COUNTED,
    FOLD,
    IDENTITY,
    JOULES,
    LABEL,
    MEMORY,
    MESH,
    METHOD,
    METHOD_NAME,
    MPP,
    NAMES,
    NETWORK,
    ONE_CANDIDATE,
    ONE_NETWORK,
    PRECISION,
    PREDICTED,
    RANKS,
    SECONDS_PER_SLIDE,
    SECONDS_PER_STEP,
    SEED,
    SPLIT,
    START,
    TARGET,
    UNKNOWN,
)
from gigapipe.evaluation.identity import Network, refuse_strangers
from gigapipe.evaluation.learning import FLAG, flag
from gigapipe.evaluation.targets import targets_of
from gigapipe.slides.written_tables import read_written

UNNAMED = "training"
"""What networks of no method are called beside others."""


def read_networks(predictions: list[Path], trainings: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """From the `predictions.tsv` and `training.json` of the same networks, in the same order: scores and costs.

    Scores have a row for each network and slide: `seed`, `fold`, `split` (what its folds do not share), `part` (`test`
    or `validation`), `slide`, `patient`, `site`, `label`, a column a score (see targets.py) or `number` and
    `predicted`, and the columns `ALIKE`.
    Costs have a row for each network: `seed`, `fold`, `split`, the columns `ALIKE` and `COSTS`, and what is flagged of
    it (`flag`; see learning.py).

    Raises InputError if a file cannot be read, predictions and training are not of one network, one comes twice, or
    they do not belong together (see identity.py).
    """
    if len(predictions) != len(trainings):
        raise InputError(
            f"{len(predictions)} tables of predictions, but {len(trainings)} trainings: give both for the same networks"
        )
    tables, records, trained = [], [], []
    said: list[tuple[Path, Path, dict, dict | None]] = []
    for table, training in zip(predictions, trainings, strict=True):
        scored, record = _read_predictions(Path(table)), _read_training(Path(training))
        cost = _cost(record, Path(training))
        for key in (MPP, *ONE_NETWORK):
            if set(scored[key]) != {cost[key]}:
                raise InputError(
                    f"{table}, {training}: have a different {key}; give the same networks, in the same order"
                )
        tables.append(scored)
        records.append(cost | {SPLIT: scored[SPLIT].iloc[0]})
        said.append((Path(table), Path(training), record["settings"], record.get(IDENTITY)))
        trained.append(record)
    costs = _computed_as_it_came(_named(pd.DataFrame(records)))
    alike = [dict(zip(ALIKE, row, strict=True)) for row in costs[ALIKE].itertuples(index=False)]
    scores = [scored.assign(**of) for scored, of in zip(tables, alike, strict=True)]
    networks = [Network(*of, scored) for of, scored in zip(said, scores, strict=True)]
    together = pd.concat(scores, ignore_index=True)
    twice = costs.duplicated([*ALIKE, SPLIT, *ONE_NETWORK])
    if twice.any():
        raise InputError(f"predictions {predictions[int(twice.argmax())]}: its network is given twice; give it once")
    refuse_strangers(networks)
    together[BELONGS] = together.reindex(columns=BELONGS).astype(object).fillna("")
    classes = _classes(together)
    costs[FLAG] = [flag(record, one.scores, classes) for record, one in zip(trained, networks, strict=True)]
    return together, costs


def _named(costs: pd.DataFrame) -> pd.DataFrame:
    """With a name for networks of no method, beside those of methods."""
    unnamed = costs[METHOD_NAME] == ""
    return costs if unnamed.all() else costs.assign(**{METHOD_NAME: costs[METHOD_NAME].mask(unnamed, UNNAMED)})


def _classes(scores: pd.DataFrame) -> list[str]:
    """In alphabetical order; none of numbers. InputError if not all rows have scores of the same."""
    if PREDICTED in scores:
        if scores[PREDICTED].isna().any() or scores[TARGET].nunique() > 1:
            raise InputError("predictions: have different targets; give those of one number, or of the same classes")
        return []
    classes = sorted(scores[LABEL].unique())
    lacking = [column for column in targets_of(classes).values() if column not in scores or scores[column].isna().any()]
    if len(classes) < 2 or lacking:
        raise InputError(f"predictions of the labels {', '.join(classes)}: not all have a column {', '.join(lacking)}")
    return classes


def _computed_as_it_came(costs: pd.DataFrame) -> pd.DataFrame:
    """Networks of one row though some were computed on another mesh, or in other memory: it had changed meanwhile.

    Where the same seed and fold were computed both ways, it is a comparison of these, and they stay two rows.
    """
    for _, of in costs.groupby(ONE_CANDIDATE):
        if not of.duplicated([SPLIT, *ONE_NETWORK]).any():
            for key in (METHOD, MESH):
                costs.loc[of.index, key] = " / ".join(dict.fromkeys(of[key]))
            costs.loc[of.index, [MEMORY, RANKS]] = of[[MEMORY, RANKS]].max().tolist()
    return costs


def method(mesh: list[int], streamed: bool) -> str:
    """How a network was computed: `whole`, or by what of `data-parallel`, `spatial` and `streamed` it was divided."""
    data, rows, columns = mesh
    used = {"data-parallel": data > 1, "spatial": rows * columns > 1, "streamed": streamed}
    return " + ".join(name for name in used if used[name]) or "whole"


def network(settings: dict) -> str:
    """A network's name, and in what it differs from the one that was published under it."""
    width = f", width {settings['width']}" if settings["width"] != 64 else ""
    pool = f", {settings['pool']} pool" if settings["pool"] != "average" else ""
    patch = f", patches of {settings['patch']} px" if settings.get("patch") else ""
    stages = ", all stages" if settings.get("stages") == "all" else ""
    options = "".join(f", {name} {value}" for name, value in settings.get("network_options", {}).items())
    return settings["network"] + width + patch + stages + pool + options


def start(settings: dict, started_from: dict | None) -> str:
    """What a training began with."""
    if started_from:
        return f"{started_from['mpp']:g} µm/px"
    return "given weights" if settings["weights"] else "random"


def energy_counted(record: dict) -> str:
    """Whose energy a training.json has; older releases counted that of processors."""
    if record.get(JOULES) is None:
        return UNKNOWN
    return record.get(ENERGY_COUNTED) or "processors"


def _read_predictions(path: Path) -> pd.DataFrame:
    try:
        table = read_written(path, dtype=dict.fromkeys([*NAMES, *BELONGS], str), keep_default_na=False)
    except (OSError, ValueError) as error:
        raise_passing(error)
        raise InputError(f"predictions {path}: cannot be read ({error}); make them with `gigapipe predict`") from None
    lacking = [name for name in (*NAMES, *ONE_NETWORK, MPP) if name not in table]
    if lacking or table.empty:
        what = f"has no column {', '.join(lacking)}" if lacking else "is empty"
        raise InputError(f"predictions {path}: {what}; make them again with `gigapipe predict`")
    return table


def _read_training(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise_passing(error)
        raise InputError(f"training {path}: cannot be read ({error!r}); make it with `gigapipe train`") from None


def _cost(record: dict, path: Path) -> dict:
    """Of a training.json what tells it apart and what it cost."""
    try:
        settings, mesh = record["settings"], record["mesh"]
        return {name: record.get(name) for name in COSTS} | {
            MPP: settings["mpp"],
            SEED: settings["seed"],
            FOLD: settings["fold"],
            METHOD: method(mesh, record["streamed"]),
            CANVAS: settings["canvas"],
            MESH: " × ".join(map(str, mesh)),
            RANKS: int(np.prod(mesh)),
            MEMORY: record["memory"] or 0,
            NETWORK: network(settings),
            METHOD_NAME: settings.get("method", ""),
            START: start(settings, record["started_from"]),
            SECONDS_PER_SLIDE: record[SECONDS_PER_STEP] / record["slides_per_step"],
            PRECISION: settings["precision"],
            ENERGY_COUNTED: energy_counted(record),
        }
    except (TypeError, KeyError) as error:
        raise InputError(f"training {path}: cannot be read ({error!r}); make it with `gigapipe train`") from None
