"""What networks leave, made up: the files of one, and the tables of many, for tests of what is made of them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit, softmax
from scipy.stats import norm

from gigapipe.evaluation.columns import ALIKE, COSTS
from gigapipe.evaluation.networks import read_networks
from gigapipe.evaluation.targets import targets_of

SLIDES = [f"s{i:02d}" for i in range(24)]  # of fold i % 3, and class i // 3 % 2

MD5 = {slide: f"md5 of {slide}" for slide in SLIDES}


def network(folder: Path, mpp: float, fold: int, moved: int = 0, md5=MD5, identity=True, **settings) -> Path:
    """The files of one network; with folds that are `moved`, of another division."""
    fold_of = {slide: (i + moved * (i < 6)) % 3 for i, slide in enumerate(SLIDES)}
    roles = {"test": fold, "validation": (fold + 1) % 3, "training": (fold + 2) % 3}
    parts = {role: [slide for slide in SLIDES if fold_of[slide] == number] for role, number in roles.items()}
    rng = np.random.default_rng(fold)
    rows = [
        {"slide": slide, "patient": slide, "site": "a", "label": "ab"[int(slide[1:]) // 3 % 2], "part": part,
         "split": "site", "seed": 0, "fold": fold, "mpp": mpp, "score": rng.random()}
        for part in ("test", "validation")
        for slide in parts[part]
    ]  # fmt: skip
    scores = pd.DataFrame(rows)
    settings = {
        "precision": "float32",
        "mpp": mpp, "seed": 0, "fold": fold, "canvas": 64, "network": "resnet18", "width": 64, "pool": "average",
        "weights": None, "epochs": 6, **settings,
    }  # fmt: skip
    record = {
        "settings": settings, "mesh": [1, 1, 1], "memory": None, "streamed": False, "seconds_per_step": 1.0,
        "slides_per_step": 2, "started_from": None, "best_epoch": 1, "history": [],
    }  # fmt: skip
    if identity:
        name = f"{mpp:g}-{fold}-{moved}-{len(settings)}-{settings['epochs']}"
        scores = scores.assign(identity=name, md5=scores["slide"].map(md5))
        record["identity"] = {"network": name} | {
            role: {slide: md5[slide] for slide in parts[role]} for role in ("training", "validation")
        }
    folder = folder / f"{mpp:g}um/fold-{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    scores.to_csv(folder / "predictions.tsv", sep="\t", index=False)
    (folder / "training.json").write_text(json.dumps(record))
    return folder


def read(folders: list[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    return read_networks(*([folder / name for folder in folders] for name in ("predictions.tsv", "training.json")))


MARGIN = 0.02

Networks = tuple[pd.DataFrame, pd.DataFrame]


def networks(
    aucs: dict[float, float], patients=(30, 30), folds=3, correlation=0.8, seed=0, rounded=9, counts=None
) -> Networks:
    """Scores and costs, as of `read_networks`, of resolutions with these true AUCs, coarse to fine.

    `patients`, of one slide each, are those of each class, two or three, and `counts` those of the second class in each
    fold, if not even.
    """
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(len(patients)), patients)
    fold = np.concatenate([np.arange(n) % folds for n in patients])
    if counts:
        fold[label == 1] = np.repeat(np.arange(folds), counts)
    shape = len(label), len(patients) if len(patients) > 2 else 1
    shared, parts, costs = rng.normal(size=shape), [], []
    for mpp, auc in aucs.items():
        noise = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * rng.normal(size=shape)
        signal = np.sqrt(2) * norm.ppf(auc) * (label[:, None] == np.arange(shape[1]) + (shape[1] == 1))
        names = [f"{i:03d}" for i in range(len(label))]
        found = {"slide": names, "patient": names, "site": "a", "label": np.array(list("abc"))[label], "part": "test"}
        found |= {"split": "site", "seed": 0, "fold": fold}
        values = expit(noise + signal) if shape[1] == 1 else softmax(noise + signal, axis=1)
        targets = targets_of(list("abc")[: len(patients)])
        found |= {name: column.round(rounded) for name, column in zip(targets.values(), values.T, strict=True)}
        alike = dict(zip(ALIKE, [mpp, "whole", 64, "1 × 1 × 1", 0, "resnet18", "random", ""], strict=True))
        parts.append(pd.DataFrame(found | alike))
        cost = dict.fromkeys(COSTS, np.nan) | {"seconds_per_step": 16 / mpp, "seconds_per_slide": 4 / mpp, "ranks": 1}
        cost |= {"precision": "float32", "energy_counted": "unknown"}
        costs += [alike | cost | {"split": "site", "seed": 0, "fold": number} for number in range(folds)]
    return pd.concat(parts, ignore_index=True), pd.DataFrame(costs)


def numbers(spread: dict[float, float], patients=80, seed=0) -> Networks:
    """Scores and costs of networks that predict a number, with such errors at each resolution."""
    rng = np.random.default_rng(seed)
    true, shared = rng.normal(size=patients), rng.normal(size=patients)
    names = [f"{i:03d}" for i in range(patients)]
    parts, costs = [], []
    for mpp, deviation in spread.items():
        alike = dict(zip(ALIKE, [mpp, "whole", 64, "1 × 1 × 1", 0, "resnet18", "random", ""], strict=True))
        of = {"split": "site", "seed": 0, "fold": np.arange(patients) % 2}
        said = true + deviation * (shared + 0.3 * rng.normal(size=patients))
        found = {"slide": names, "patient": names, "part": "test", "number": true, "predicted": said, "target": "age"}
        parts.append(pd.DataFrame(found | of | alike))
        cost = dict.fromkeys(COSTS, np.nan) | {"seconds_per_step": 16 / mpp, "seconds_per_slide": 4 / mpp, "ranks": 1}
        cost |= {"precision": "float32", "energy_counted": "unknown"}
        costs += [alike | cost | of | {"fold": fold} for fold in range(2)]
    return pd.concat(parts, ignore_index=True), pd.DataFrame(costs)
