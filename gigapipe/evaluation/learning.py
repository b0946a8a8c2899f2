"""Which networks have learnt nothing that validation could see, told from their training's record and their scores."""

import numpy as np
import pandas as pd

from gigapipe.evaluation.columns import (
    FLAGGED,
    FLAGS,
    FOLD,
    FOLDS,
    LABEL,
    METHOD,
    NOT_KNOWN,
    NUMBER,
    PART,
    PREDICTED,
    SEED,
    SEEDS,
    SPLIT,
    VALIDATION,
    named,
    names_of,
)
from gigapipe.evaluation.targets import targets_of

FLAG = "flag"
"""Of costs, the column with what is flagged of a network, with semicolons between."""

FIRST = "no improvement after the first epoch"
GUESS = "no better in validation than the same answer for every slide"
NONE = "none"


def flag(record: dict, scores: pd.DataFrame, classes: list[str]) -> str:
    """What is flagged of a network: its `training.json`, its predictions, and the cohort's classes, none of numbers."""
    best, validation = record.get("best_epoch"), scores[scores[PART] == VALIDATION]
    balanced = record["settings"].get("class_weights") == "balanced"
    margin = better_than_a_guess(validation, classes, balanced)
    solved = record["settings"].get("train") == "probe"  # in one step
    found = [FIRST] * (best == 1 and not solved) + [GUESS] * (margin is not None and margin <= 0)
    return "; ".join(found + [NOT_KNOWN] * (best is None or margin is None))


def better_than_a_guess(validation: pd.DataFrame, classes: list[str], balanced: bool) -> float | None:
    """By how much the loss of these slides is below that of the best answer that is the same for all of them.

    Of classes the loss is cross-entropy, in nats, in which they weigh the same if `balanced`; of numbers the squared
    error. None if there are no slides, or they are all alike: then it tells nothing.
    """
    truth = validation[LABEL if classes else NUMBER]
    if truth.nunique() < 2:
        return None
    if not classes:
        return float(truth.var(ddof=0) - ((validation[PREDICTED] - truth) ** 2).mean())
    targets = targets_of(classes)
    of_class = {label: validation[column] for label, column in targets.items()}
    if len(targets) == 1:
        of_class[classes[0]] = 1 - of_class[classes[1]]
    own = np.select([truth == label for label in classes], [of_class[label] for label in classes])
    counts = truth.map(truth.value_counts())
    weights = (1 / counts if balanced else counts / counts).to_numpy()
    shares = pd.Series(weights).groupby(truth.to_numpy()).sum() / weights.sum()
    loss = -np.average(np.log(np.maximum(own, 1e-12)), weights=weights)
    return float(-(shares * np.log(shares)).sum() - loss)


def flagged(costs: pd.DataFrame) -> dict[str, int | str]:
    """Of the networks of a row of the comparison, how many are flagged, and which, and why."""
    said = costs[FLAG] if FLAG in costs else pd.Series(NOT_KNOWN, costs.index)
    groups = {
        kind: [_name(costs, row) for row, text in enumerate(said) if kind in text.split("; ")]
        for kind in (FIRST, GUESS, NOT_KNOWN)
    }
    text = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in groups.items() if names)
    return {FLAGGED: len({*groups[FIRST], *groups[GUESS]}), FLAGS: text or NONE}


def none_learned(table: pd.DataFrame) -> bool:
    """Whether all networks of a comparison are flagged."""
    return FLAGGED in table and bool((table[FLAGGED] == table[SEEDS] * table[FOLDS]).all())


def flags_of(table: pd.DataFrame) -> list[str]:
    """Of each row of a comparison whose networks are flagged, which are, and why; none of a table that does not say."""
    if FLAGS not in table:
        return []
    names = names_of(table)
    several = METHOD in table and bool(table[names].duplicated().any())
    return [
        f"{named(row[name] for name in names)}{f', {row[METHOD]}' * several}: {row[FLAGS]}"
        for row in table.to_dict("records")
        if row[FLAGS] != NONE
    ]


def _name(costs: pd.DataFrame, row: int) -> str:
    """A network's fold, and what else tells it from others."""
    name = f"fold {costs[FOLD].iloc[row]}"
    if costs[SEED].nunique() > 1:
        name += f" of seed {costs[SEED].iloc[row]}"
    return name + (f" by {costs[SPLIT].iloc[row]}" if SPLIT in costs and costs[SPLIT].nunique() > 1 else "")
