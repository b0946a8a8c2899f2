"""Which classes are told from which by a score."""

Targets = dict[str, str]
"""Of each class that is told from the rest, the column that holds its score."""


def targets_of(classes: list[str]) -> Targets:
    """The second of two classes is told from the first by `score`; each of more from the rest by `score_` and name."""
    return {classes[1]: "score"} if len(classes) == 2 else {name: f"score_{name}" for name in classes}
