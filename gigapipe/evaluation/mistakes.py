"""The slides that networks are wrong about, the most wrong first."""

from typing import NamedTuple

import pandas as pd

from gigapipe.evaluation.columns import FILE, LABEL, NUMBER, PART, PREDICTED, SLIDE, TARGET, TEST
from gigapipe.evaluation.decisions import DECIDED, FROM, decided
from gigapipe.evaluation.predictions import classes_of, probabilities


class Mistake(NamedTuple):
    """A slide, and what is wrong with it, in words."""

    slide: str
    said: str


class Mistakes(NamedTuple):
    """Of one resolution: `wrong` has the most wrong first, `decided` is how many slides were decided on."""

    decided: int
    wrong: list[Mistake]


def mistakes(predictions: pd.DataFrame) -> Mistakes:
    """Of the predictions of networks at one resolution: held-out slides that any network takes for another class.

    Slides are in the order of the probability of their own class, the mean of the networks that decided on them; of
    numbers all slides, in the order of the error of the mean of their predictions.
    """
    held_out = predictions[predictions[PART] == TEST]
    if PREDICTED in predictions:
        return _of_numbers(held_out)
    classes = classes_of(predictions)
    taken = pd.concat(decided(network, classes) for _, network in predictions.groupby(FILE))
    if taken.empty:
        return Mistakes(0, [])
    of_class = probabilities(taken, classes)
    own = pd.Series(
        of_class.to_numpy()[range(len(taken)), of_class.columns.get_indexer(pd.Index(taken[LABEL]))], taken.index
    )
    found = []
    for slide, rows in taken.assign(own=own, wrong=taken[DECIDED] != taken[LABEL]).groupby(SLIDE):
        if rows["wrong"].any():
            found.append((rows["own"].mean(), Mistake(str(slide), _in_words(rows, of_class.loc[rows.index], classes))))
    return Mistakes(taken[SLIDE].nunique(), [mistake for _, mistake in sorted(found)])


def _in_words(rows: pd.DataFrame, of_class: pd.DataFrame, classes: list[str]) -> str:
    label, wrong = rows[LABEL].iloc[0], rows[rows["wrong"]]
    taken = " or ".join(sorted(set(wrong[DECIDED])))
    networks = f" by {len(wrong)} of {len(rows)} networks" if len(rows) > 1 else ""
    each = of_class.mean()
    what = "mean probability" if len(rows) > 1 else "probability"
    if len(classes) == 2:
        limit = rows[FROM].mean()
        figures = f"{what} of {classes[1]} {each[classes[1]]:.3f}, threshold {limit:.3f}"
    else:
        named = dict.fromkeys([label, *sorted(set(wrong[DECIDED]))])
        figures = f"{what} of " + ", ".join(f"{name} {each[name]:.3f}" for name in named)
    return f"is {label}, classified as {taken}{networks}: {figures}"


def _of_numbers(held_out: pd.DataFrame) -> Mistakes:
    target = held_out[TARGET].iloc[0] if len(held_out) else ""
    found = []
    for slide, rows in held_out.groupby(SLIDE):
        true, said = rows[NUMBER].iloc[0], rows[PREDICTED].mean()
        networks = f", the mean of {len(rows)} networks" if len(rows) > 1 else ""
        words = f"{target} is {true:.3g}, predicted {said:.3g}{networks}: {said - true:+.3g}".replace(": -", ": −")
        found.append((-abs(said - true), Mistake(str(slide), words)))
    return Mistakes(len(found), [mistake for _, mistake in sorted(found)])
