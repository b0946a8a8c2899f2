"""What networks, predictions and maps belong to, so that those of other slides, folds or settings are not mixed in.

A training notes, as `identity` in training.json, the digest of its settings and slides (`network`), and the MD5 of each
slide's file that it was trained and validated on. Predictions carry the digest, and the MD5 of what they scored. Files
that release 0.1 made have none of it: they are used, with a word.
"""

import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from gigapipe.errors import InputError
from gigapipe.evaluation.columns import (
    ALIKE,
    FOLD,
    IDENTITY,
    MD5,
    PART,
    SEED,
    SLIDE,
    SPLIT,
    TEST,
    UNKNOWN,
    VALIDATION,
)


class Network(NamedTuple):
    """What lies in files of one network."""

    predictions: Path
    training: Path
    settings: dict[str, Any]
    identity: dict[str, Any] | None
    scores: pd.DataFrame
    """Its predictions, with the columns `ALIKE`."""


logger = logging.getLogger(__name__)

TRAINING, NETWORK = "training", "network"
OWN = {"fold", "seed", "start", "mean", "deviation"}
"""Settings in which the networks of one row differ; the last two are those of each one's training slides."""


def record_beside(model: Path) -> dict[str, Any]:
    """The training.json beside a model; empty if there is none that can be read."""
    try:
        return json.loads(model.with_name("training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def identity_beside(model: Path) -> dict[str, Any] | None:
    """What a model belongs to, from the training.json beside it; None if that does not say."""
    return record_beside(model).get(IDENTITY)


def without_identity(unknown: int, of: int, what: str) -> None:
    """Say that so many of some files do not tell what they belong to."""
    if unknown:
        logger.warning(
            f"{what}: {unknown} of {of} do not record their slides and folds, because release 0.1 wrote them"
        )


def refuse_other_folds(model: Path, identity: dict[str, Any] | None, parts: dict[str, pd.DataFrame]) -> None:
    """InputError if a model was trained on a slide that these folds hold out, or validated on others."""
    if identity is None:
        return
    learnt = set(identity[TRAINING])
    if held_out := sorted(learnt & set(parts[TEST][SLIDE]) | learnt & set(parts[VALIDATION][SLIDE])):
        raise InputError(
            f"model {model}: was trained on slide {held_out[0]}, which is a test slide in these folds: give the folds "
            "that it was trained with, or train it again"
        )
    if strange := set(parts[VALIDATION][SLIDE]) ^ set(identity[VALIDATION]):
        raise InputError(
            f"model {model}: these folds are not those that it was trained with, as slide {min(strange)} shows: give "
            "those, or train it again"
        )


def refuse_other_slides(where: str, files: dict[str, str], identity: dict[str, Any] | None) -> None:
    """InputError, naming the slide, if one is another file than a network was trained or validated on; MD5 by slide."""
    known = identity[TRAINING] | identity[VALIDATION] if identity else {}
    for slide in sorted(files.keys() & known.keys()):
        if files[slide] != known[slide]:
            raise InputError(f"{where}: slide {slide} is not the file that it was trained with: train it again")


def refuse_another_network(model: Path, scores: pd.DataFrame, files: dict[str, str]) -> None:
    """InputError if predictions are not of a model, or slides are other files than it scored; MD5 by slide."""
    identity = identity_beside(model)
    if identity is None or IDENTITY not in scores:
        return
    if set(scores[IDENTITY]) != {identity[NETWORK]}:
        raise InputError(f"model {model}: the predictions are from another model: give its own, or predict again")
    for slide, md5 in zip(scores[SLIDE], scores[MD5], strict=True):
        if files[slide] != md5:
            raise InputError(f"model {model}: slide {slide} is not the file that was predicted: predict again")


def of_networks(files: dict[Path, set[str]], networks: Collection[str], table: Path) -> list[Path]:
    """Those files whose networks are among a table's `networks`, or that do not say; the others are named in the log.

    InputError if there are some, but none of a network of the table: it is of others then.
    """
    known = set(" ".join(networks).split()) - {UNKNOWN}
    if not known:
        return list(files)
    strangers = [path for path, of in files.items() if of - {""} - known]
    if lacking := known - set().union(*files.values()) if files else set():
        raise InputError(
            f"{table}: there are no predictions beside it for {len(lacking)} of its {len(known)} networks; make it "
            "again with `gigapipe evaluate`"
        )
    for path in strangers:
        logger.warning(f"{path}: belongs to a network that is not in {table.name}; it is not shown")
    return [path for path in files if path not in strangers]


def refuse_strangers(networks: Sequence[Network]) -> None:
    """InputError, naming the file, if one of several networks does not belong to the others.

    Its predictions are of another training, or of slides that it was trained on; it has other settings than most of its
    row, another file of a slide than most, or holds out other slides than most of its fold, or those of another fold.
    """
    without_identity(sum(one.identity is None for one in networks), len(networks), "networks")
    known = [one for one in networks if one.identity is not None]
    for one in known:
        _refuse_another_training(one)
    _refuse_other_settings(networks)
    _refuse_other_files(known)
    _refuse_other_divisions(known)


def _refuse_another_training(one: Network) -> None:
    assert one.identity is not None
    if set(one.scores.get(IDENTITY, [])) != {one.identity[NETWORK]}:
        raise InputError(f"predictions {one.predictions}: are not from the network of {one.training}: predict again")
    if learnt := set(one.identity[TRAINING]) & set(one.scores[SLIDE]):
        raise InputError(f"predictions {one.predictions}: slide {min(learnt)} was trained on: predict again")


def _refuse_other_settings(networks: Sequence[Network]) -> None:
    rows: dict[tuple, list[Network]] = {}
    for one in networks:
        rows.setdefault(tuple(one.scores[[*ALIKE, SPLIT]].iloc[0]), []).append(one)
    for alike in rows.values():
        for name in sorted({name for one in alike for name in one.settings} - OWN):
            values = [(one.training, one.settings[name]) for one in alike if name in one.settings]
            if stranger := _stranger(values):
                where, found, usual = stranger
                raise InputError(
                    f"training {where}: its {name} is {found}, but {usual} for others of its resolution: exclude it, "
                    "or train it again"
                )


def _refuse_other_files(networks: Sequence[Network]) -> None:
    files: dict[str, list[tuple[Path, str]]] = {}
    for one in networks:
        assert one.identity is not None
        scored = dict(zip(one.scores[SLIDE], one.scores[MD5], strict=True)) if MD5 in one.scores else {}
        for slide, md5 in (one.identity[TRAINING] | one.identity[VALIDATION]).items():
            files.setdefault(slide, []).append((one.training, md5))
        for slide, md5 in scored.items():
            files.setdefault(slide, []).append((one.predictions, md5))
    for slide, found in sorted(files.items()):
        if stranger := _stranger(found):
            raise InputError(
                f"{stranger[0]}: slide {slide} is another file (MD5 {stranger[1]}) than for others ({stranger[2]}): "
                "exclude it, or make it again"
            )


def _refuse_other_divisions(networks: Sequence[Network]) -> None:
    divisions: dict[tuple, dict[int, list[tuple[Path, tuple[str, ...]]]]] = {}
    for one in networks:
        first, tested = one.scores.iloc[0], one.scores[one.scores[PART] == TEST]
        folds = divisions.setdefault((first[SPLIT], first[SEED]), {})
        folds.setdefault(first[FOLD], []).append((one.predictions, tuple(sorted(tested[SLIDE]))))
    for folds in divisions.values():
        held_out: dict[str, Path] = {}
        for fold, found in folds.items():
            if stranger := _stranger(found):
                other = min(set(stranger[1]) ^ set(stranger[2]))
                raise InputError(
                    f"predictions {stranger[0]}: have other test slides than others of fold {fold} ({other} is one): "
                    "they belong to other folds; exclude them, or make them again"
                )
            for slide in found[0][1]:
                if slide in held_out:
                    raise InputError(
                        f"predictions {found[0][0]}: slide {slide} is held out in {held_out[slide]}, too, which is "
                        "another fold: they belong to other folds; exclude one, or make it again"
                    )
            held_out |= dict.fromkeys(found[0][1], found[0][0])


def _stranger(found: Sequence[tuple[Path, Any]]) -> tuple[Path, Any, Any] | None:
    """The first file whose value is not that of most, its value, and theirs; None if all have one."""
    values = [value for _, value in found]
    usual = max(values, key=values.count)
    return next(((where, value, usual) for where, value in found if value != usual), None)
