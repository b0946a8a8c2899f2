"""What is written in figures lies on nothing: on no other text, line or point, whatever the table holds."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure

from gigapipe.evaluation import figures

DPI = 72


class Watched(RendererAgg):
    """Draws, and notes where each text was drawn: left, right, top and bottom, in pixels from the upper left."""

    def __init__(self, figure: Figure):
        super().__init__(*(figure.get_size_inches() * DPI), DPI)
        self.texts: list[tuple[str, tuple[float, float, float, float]]] = []

    def draw_text(self, gc, x, y, s, prop, angle, ismath=False, mtext=None):
        super().draw_text(gc, x, y, s, prop, angle, ismath, mtext)
        wide, high, descent = self.get_text_width_height_descent(s, prop, ismath)
        assert angle in (0, 90)
        if angle:
            box = (x - high + descent, x + descent, y - wide, y)
        else:
            box = (x, x + wide, y - high + descent, y + descent)
        if s.strip():
            self.texts.append((s, box))


def collisions(figure: Figure) -> list[str]:
    """Texts that lie on one another, or that a line or a point goes through."""
    figure.set_dpi(DPI)
    renderer = Watched(figure)
    with matplotlib.rc_context(figures.STYLE):
        figure.draw(renderer)
    found = []
    for i, (text, one) in enumerate(renderer.texts):
        for other, two in renderer.texts[:i]:
            if min(one[1], two[1]) - max(one[0], two[0]) > 1 and min(one[3], two[3]) - max(one[2], two[2]) > 1:
                found.append(f"{text!r} on {other!r}")
    for axes in figure.axes:
        paths = [(line.get_path(), line.get_transform()) for line in axes.lines]
        paths += [(path, set_.get_transform()) for set_ in axes.collections for path in set_.get_paths()]
        for path, transform in paths:
            places = transform.transform_path(path).interpolated(200).vertices
            for text, (left, right, top, bottom) in renderer.texts:
                x, y = places[:, 0], renderer.height - places[:, 1]
                if ((x > left + 1) & (x < right - 1) & (y > top + 1) & (y < bottom - 1)).any():
                    found.append(f"a line through {text!r}")
    return found


def comparison(mpps, seconds, **columns) -> pd.DataFrame:
    n = len(mpps)
    auc = np.linspace(0.45, 0.97, n)
    table = {
        "mpp": mpps, "seconds_per_step": seconds, "canvas": [round(400 / mpp) for mpp in mpps], "ranks": 1, "auc": auc,
        "auc_low": auc - 0.3, "auc_high": np.minimum(1, auc + 0.2), "missing": "",
    }  # fmt: skip
    return pd.DataFrame(table | columns)


SIX = [32.0, 16.0, 8.0, 4.0, 2.0, 0.25], [0.11, 0.112, 0.113, 0.15, 0.3, 9.7]
CLOSE = [0.5, 0.4943, 0.2527, 0.25], [1.0, 1.01, 1.02, 4.0]
TWO_WAYS = comparison(*SIX, method=["whole"] * 3 + ["spatial + streamed"] * 3)
TABLES = {
    "one": comparison([2.0], [0.1]),
    "alike": comparison([8.0, 2.0], [0.1, 0.1]),
    "six": comparison(*SIX),
    "close": comparison(*CLOSE),
    "many": comparison([2.0**i for i in range(6, -4, -1)], [10.0**i for i in range(-6, 4)]),
    "two ways and folds": pd.concat([TWO_WAYS, TWO_WAYS.assign(method="whole")], ignore_index=True).assign(
        split="site", patient_split_auc=0.9, patient_split_auc_low=0.1, patient_split_auc_high=1.0
    ),
    "missing": comparison(*SIX).assign(
        auc=[np.nan, *np.linspace(0.1, 0.9, 5)],
        auc_low=[np.nan, np.nan, 0, 0.1, 0.2, 0.3],
        auc_high=[np.nan, np.nan, 0.5, 0.6, 0.9, 1],
        seconds_per_step=[1, 1, np.nan, 1, 1, 1],
        missing=["no test fold has slides of all classes: auc, auc_low"]
        + ["a class has only one patient: auc_low"] * 5,
    ),
    "nothing": comparison([2.0], [0.1], auc=np.nan, auc_low=np.nan, auc_high=np.nan),
}


@pytest.mark.parametrize("name", TABLES)
def test_labels_of_resolutions_collide_with_nothing(name):
    for draw in (figures.auc_against_resolution, figures.auc_against_cost):
        assert collisions(draw(TABLES[name])) == []


@pytest.mark.parametrize("name", ["two ways and folds", "missing"])
def test_side_by_side_they_collide_with_nothing_either(name):
    assert collisions(figures.comparison(TABLES[name])) == []


def test_a_collision_would_be_seen():
    figure = figures.auc_against_resolution(TABLES["six"])
    axes = figure.axes[0]
    axes.text(8, TABLES["six"]["auc"][2], "on a point")
    axes.text(0.5, -0.01, "on the axis' ticks", transform=axes.transAxes, va="top")
    found = collisions(figure)
    assert any("line through 'on a point'" in one for one in found) and any("on '" in one for one in found)


def decided(labels: list[str], most: int) -> pd.DataFrame:
    pairs = [(a, b, most if a == b else 3) for a in labels for b in labels]
    rows = [{"label": a, "decided": b} for a, b, count in pairs for _ in range(count)]
    return pd.concat(pd.DataFrame(rows).assign(mpp=mpp) for mpp in (32.0, 8.0, 2.0, 0.5))


@pytest.mark.parametrize(
    "labels, most",
    [
        (["acinar", "solid"], 9),
        (["adenocarcinoma in situ", "squamous cell carcinoma"], 1234),
        ([f"grade {i}" for i in range(7)], 1234),
    ],
)
def test_names_of_classes_collide_with_nothing(labels, most):
    assert collisions(figures.confusion(decided(labels, most))) == []


@pytest.mark.parametrize("largest", [0.3, 900.0])
def test_names_of_gpus_collide_with_nothing(largest):
    table = pd.DataFrame({"side": [64, 22528], "gigabytes": [0.2, largest], "kind": ["measured", "model"]})
    assert collisions(figures.memory(table.assign(what=["measured", "resnet50, undivided"]))) == []


def test_other_labels_collide_with_nothing():
    measured = [(mode, "measured", 2**i, 0.99 - 0.001 * i) for mode in ("strong", "weak") for i in range(4)]
    model = [(mode, "model", 2**i, 1 / (1 + i / 10)) for mode in ("strong", "weak") for i in range(13)]
    scaling = pd.DataFrame(measured + model, columns=["mode", "source", "ranks", "efficiency"]).assign(seconds=1234.5)
    assert collisions(figures.scaling(scaling)) == []
    rng = np.random.default_rng(0)
    epochs = pd.DataFrame({"epoch": range(1, 101), "training_loss": 0.7, "validation_loss": rng.random(100)})
    history = pd.concat(epochs.assign(mpp=mpp, network=0, best_epoch=3) for mpp in (8.0, 2.0))
    assert collisions(figures.training_curves(history)) == []
    numbers = rng.uniform(-123456, 1234567, (2, 40))
    table = pd.DataFrame({"number": numbers[0], "predicted": numbers[1], "target": "survival, days", "mpp": 2.0})
    assert collisions(figures.predicted(pd.concat([table, table.assign(mpp=8.0)]))) == []
    scores = pd.DataFrame({"label": ["a", "b"] * 20, "score": rng.random(40), "network": 0})
    assert collisions(figures.roc(pd.concat(scores.assign(mpp=mpp) for mpp in (8.0, 4.0, 2.0, 0.5)))) == []
