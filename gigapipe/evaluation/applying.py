"""What the networks of all folds say together of slides that none of them has seen."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import pandas as pd

from gigapipe.errors import InputError
from gigapipe.evaluation import pages
from gigapipe.evaluation.columns import IDENTITY, LABEL, NETWORKS, PROBABILITY_OF, SLIDE
from gigapipe.evaluation.decisions import DECIDED
from gigapipe.evaluation.identity import NETWORK, identity_beside
from gigapipe.evaluation.predictions import probabilities, read_predictions
from gigapipe.pyramids import Pyramid
from gigapipe.pyramids.appearance import Appearance, unlike

CALIBRATED = (
    "Probabilities are calibrated by temperature scaling, for each network on the labelled slides that it was not "
    "trained on, and averaged."
)
LEAST = 10
"""Labelled slides that a temperature is fitted on, at least."""
UNCALIBRATED = (
    "Probabilities are averaged and not calibrated: beside a model there is no predictions.tsv, or it has fewer than "
    f"{LEAST} slides, or fewer than 2 of a class."
)
UNKNOWN_APPEARANCE = (
    "Whether slides look like the training slides is not known: of that the models record nothing, because an earlier "
    "version made them, or there were too few training slides."
)
LOWEST, HIGHEST, TISSUE, UNLIKE, REASON = "lowest", "highest", "tissue", "unlike the training slides", "reason"
"""Columns of the table: the lowest and highest probability that a network gives the class decided for, or number; the
verdict on the tissue; in what the slide is unlike those that the networks were trained on; why there is no answer."""


class Answer(NamedTuple):
    """What is said of one slide."""

    slide: str
    said: np.ndarray | None
    """By each network (networks, outputs): calibrated probabilities, or numbers; None without an answer."""
    tissue: str
    unlike: str
    reason: str

    @classmethod
    def of(
        cls, slide: str, said: Sequence[np.ndarray], pyramid: Pyramid | None, usual: Sequence[dict], reason: str
    ) -> "Answer":
        """What the networks said that were asked, or the reason why none was; and `usual` for their training slides."""
        if pyramid is None:
            return cls(slide, None, "", "", reason)
        why = f" ({pyramid.tissue['why']})" if pyramid.tissue["why"] else ""
        tissue = f"{pyramid.tissue['verdict']}{why}"
        if not len(said):
            return cls(slide, None, tissue, "", "all networks were trained on it")
        return cls(slide, np.stack(said), tissue, _unlike(pyramid, usual), "")


def _unlike(pyramid: Pyramid, usual: Sequence[dict]) -> str:
    """In what a slide is unlike the training slides of every network; empty if one has seen its like."""
    slide = Appearance.of(pyramid)
    said = [unlike(slide, one) for one in usual] if slide else []
    return said[0] if said and all(said) else ""


def temperature(model: Path, classes: list[str]) -> float | None:
    """The number that a network's logits are divided by, so that its probabilities are calibrated.

    Temperature scaling (Guo et al., ICML 2017, arXiv:1706.04599), on the slides in the predictions.tsv beside it, none
    of which it was trained on. As Platt did (1999), labels are taken for slightly uncertain, or a perfect separation
    would make every probability 0 or 1. None where there are no such predictions, or too few. InputError if they are
    another network's.
    """
    path = model.with_name("predictions.tsv")
    if not path.exists():
        return None
    table = read_predictions([path])
    identity = identity_beside(model)
    if identity and IDENTITY in table and set(table[IDENTITY]) != {identity[NETWORK]}:
        raise InputError(f"model {model}: {path.name} beside it is from another model: predict again")
    counts = table[LABEL].value_counts().reindex(classes, fill_value=0)
    if len(table) < LEAST or counts.min() < 2:
        return None
    return fitted(probabilities(table, classes).to_numpy(), [classes.index(label) for label in table[LABEL]])


def fitted(said: np.ndarray, labels: Sequence[int]) -> float:
    """The temperature of probabilities (slides, classes), by the number of each slide's class."""
    from scipy.optimize import minimize_scalar

    count = np.bincount(labels, minlength=said.shape[1])
    true = np.repeat((1 / (count + len(count)))[labels][:, None], len(count), axis=1)
    true[np.arange(len(labels)), labels] += (count / (count + len(count)))[labels]

    def loss(log_temperature: float) -> float:
        return float(-(true * np.log(tempered(said, np.exp(log_temperature)))).sum(axis=1).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def tempered(said: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (slides, classes) whose logits are divided by a temperature."""
    logits = np.log(said.clip(1e-12, 1)) / temperature
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def table_of(answers: Sequence[Answer], outputs: list[str]) -> pd.DataFrame:
    """A row for each slide. Of classes: the decision, the mean probability of each, and the lowest and highest that a
    network gives the one decided for. Of a number: its mean, lowest and highest.
    """
    rows = []
    for answer in answers:
        row: dict = {SLIDE: answer.slide}
        if answer.said is not None:
            mean = answer.said.mean(axis=0)
            chosen = int(mean.argmax())
            row |= {DECIDED: outputs[chosen]} if len(outputs) > 1 else {}
            row |= {_column(name, outputs): value for name, value in zip(outputs, mean, strict=True)}
            row |= {LOWEST: answer.said[:, chosen].min(), HIGHEST: answer.said[:, chosen].max()}
        row |= {NETWORKS: 0 if answer.said is None else len(answer.said), TISSUE: answer.tissue}
        row |= {UNLIKE: answer.unlike, REASON: answer.reason}
        rows.append(row)
    of_outputs = [_column(name, outputs) for name in outputs]
    decided = [DECIDED] if len(outputs) > 1 else []
    columns = [SLIDE, *decided, *of_outputs, LOWEST, HIGHEST, NETWORKS, TISSUE, UNLIKE, REASON]
    return pd.DataFrame(rows).reindex(columns=columns)


def page(table: pd.DataFrame, notes: Sequence[str], pictures: Mapping[str, str]) -> str:
    """The table as a web page, with the picture of each slide that has one, by the place of its file."""
    rows = [[_shown(cell) for cell in row] for row in table.itertuples(index=False)]
    maps = [{"slide": slide, "source": quote(place)} for slide, place in pictures.items()]
    title, headings = f"{len(table)} new slides", list(table.columns)
    return pages.page("applied", title=title, notes=notes, headings=headings, rows=rows, maps=maps)


def _shown(cell: object) -> str:
    if isinstance(cell, float):
        return "" if np.isnan(cell) else f"{cell:.3f}"
    return str(cell)


def _column(output: str, outputs: list[str]) -> str:
    return f"{PROBABILITY_OF}{output}" if len(outputs) > 1 else output
