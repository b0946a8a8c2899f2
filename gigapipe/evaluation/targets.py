"""Which classes are told from which by a score."""

Targets = dict[str, str]
"""Of each class that is told from the rest, the column that holds its score."""

SCORE = "score"


def targets_of(classes: list[str]) -> Targets:
    """The second of two classes is told from the first by `score`; each of more from the rest by `score_` and name."""
    return {classes[1]: SCORE} if len(classes) == 2 else {name: f"{SCORE}_{name}" for name in classes}


def several(columns: list[str]) -> list[str]:
    """The classes, more than two, that these columns hold scores of; none where they hold one `score`."""
    return [name.removeprefix(f"{SCORE}_") for name in columns if name.startswith(f"{SCORE}_")]
