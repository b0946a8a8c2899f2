"""What the report recommends, and when it does not: situations, the rule on simulated cohorts, and what is missing."""

import html
import re
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from launching import ROOT
from made_networks import MARGIN, Networks, networks, numbers

from gigapipe.configuration.configuration import Comparison
from gigapipe.evaluation import figures
from gigapipe.evaluation.auc import mean_auc
from gigapipe.evaluation.best import lower_limits, of_others
from gigapipe.evaluation.columns import POOLED, why_missing
from gigapipe.evaluation.comparison import compare
from gigapipe.evaluation.comparison_text import as_html, as_markdown
from gigapipe.evaluation.dice_recommendation import recommend_by_dice
from gigapipe.evaluation.intervals import auc_limits, difference_limits, separated_bound
from gigapipe.evaluation.recommendation import Recommendation, recommend
from gigapipe.evaluation.regression import compare_numbers
from gigapipe.evaluation.report import report
from gigapipe.evaluation.simulation import drawn, of_folds
from gigapipe.evaluation.targets import targets_of


def of_one_class_a_fold(found: Networks) -> Networks:
    scores, costs = found
    return scores.assign(fold=(scores["label"] == "b").astype(int)), costs


def on_other_slides(found: Networks) -> Networks:
    scores, costs = found
    return scores.drop(index=0), costs


def of_two_resolutions_alike(found: Networks) -> Networks:
    scores, costs = found
    half = len(scores) // 2
    return scores.assign(score=np.tile(scores["score"].to_numpy()[half:], 2)), costs


SIX = (48.0, 24.0, 12.0, 6.0, 3.0, 1.5)
SITUATIONS: dict[str, Callable[[], Networks]] = {  # their words are below
    "a coarser one is shown to be as good": lambda: networks({8: 0.99, 2: 0.99}, (200, 200)),
    "the best is significantly better": lambda: networks({48: 0.6, 8: 0.75, 2: 0.97}, (100, 100)),
    "the finest is worse": lambda: networks({48: 0.6, 8: 0.97, 2: 0.75}, (100, 100)),
    "a coarser one is not told apart, nor shown to be as good": lambda: networks({8: 0.88, 2: 0.93}, seed=13),
    "all are at chance": lambda: networks(dict.fromkeys(SIX, 0.5)),
    "above chance by itself, not among six": lambda: networks(dict.fromkeys(SIX, 0.5) | {1.5: 0.66}, seed=14),
    "coarser ones are below chance": lambda: networks({48: 0.2, 8: 0.2, 2: 0.95}, (100, 100)),
    "one resolution, below chance": lambda: networks({5: 0.17}),
    "one resolution, above chance": lambda: networks({5: 0.9}),
    "one patient of a class": lambda: networks({8: 0.9, 2: 0.9}, (30, 1)),
    "sixteen patients in four folds": lambda: networks({20: 0.5, 10: 0.6, 5: 0.6}, (9, 7), 4, counts=[2, 2, 2, 1]),
    "no fold holds both classes": lambda: of_one_class_a_fold(networks({8: 0.9, 2: 0.95}, folds=2)),
    "no network makes a mistake": lambda: networks({8: 0.999999, 2: 0.999999}, (15, 15)),
    "two resolutions say the same of every slide": lambda: of_two_resolutions_alike(
        networks({8: 0.97, 2: 0.97}, (120, 120))
    ),
    "ties: scores are rounded to one digit": lambda: networks({8: 0.98, 2: 0.98}, (200, 200), rounded=1),
    "tested on different slides": lambda: on_other_slides(networks({8: 0.95, 2: 0.95}, (100, 100))),
    "three classes": lambda: networks({8: 0.7, 2: 0.98}, (60, 60, 60)),
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, pd.DataFrame]:
    """The comparison of each situation, as it is read from its file."""
    folder = tmp_path_factory.mktemp("comparisons")
    for number, made in enumerate(SITUATIONS.values()):
        compare(*made(), MARGIN).to_csv(folder / f"{number}.tsv", sep="\t", index=False, float_format="%.6g")
    return {name: pd.read_csv(folder / f"{number}.tsv", sep="\t") for number, name in enumerate(SITUATIONS)}


SAID = {  # the headline, and what the reason holds
    "a coarser one is shown to be as good": (
        "Use 8 µm per pixel.",
        "at most 0.005 below every other resolution, where 0.02 is",
    ),
    "the best is significantly better": (
        "Use 2 µm per pixel.",
        r"8 µm per pixel with 0.723 \(0.646–.* is worse than the margin allows",
    ),
    "the finest is worse": (
        "Use 8 µm per pixel.",
        "the highest of all; it is shown to be not below any other resolution",
    ),
    "a coarser one is not told apart, nor shown to be as good": (
        "No resolution can be recommended.",
        r"no resolution is shown to be within 0.02 of the best. 2 µm per pixel comes closest, with an AUC of 0.910 "
        r"\(0.8..–0.9..\), but may be 0.069 below 8 µm per pixel .* About [\d,]+ patients instead of 60",
    ),
    "all are at chance": (
        "No resolution can be recommended.",
        r"no network is shown to be better than chance: the highest AUC, 0.\d{3} \(.*\) at 3 µm .* includes chance",
    ),
    "above chance by itself, not among six": (
        "No resolution can be recommended.",
        r"0.673 \(0.517–0.799\) at .* is above chance .0.5. by itself, but not when corrected for 6 resolutions "
        r"\(lower limit 0.481",
    ),
    "coarser ones are below chance": (
        "Use 2 µm per pixel.",
        r"8 µm per pixel with 0.18\d \(0.13.*\) is worse than the margin allows",
    ),
    "one resolution, below chance": (
        "No resolution can be recommended.",
        r"0.160 \(0.076–0.306\) at 5 µm per pixel, is below chance .0.5.: check whether the labels,.* 100 times as",
    ),
    "one resolution, above chance": (
        "5 µm per pixel is better than chance; no other resolution was tested.",
        r"0.950 \(0.855–0.984\) is above chance .0.5.. Only tests of other resolutions can show",
    ),
    "one patient of a class": (
        "No resolution can be recommended.",
        r"\(no interval: a class has only one patient\) at 8 µm per pixel, cannot be distinguished from chance",
    ),
    "sixteen patients in four folds": (
        "No resolution can be recommended.",
        r"no network is shown to be better than chance: .* chance .0.5. \(variances are pooled over folds,",
    ),
    "no fold holds both classes": (
        "No resolution can be recommended.",
        "there is no AUC at any resolution: no test fold has slides of all classes",
    ),
    "no network makes a mistake": (
        "No resolution can be recommended.",
        r"an AUC of 1.000 \(0.853–1.000\), but may be 0.106 below 2 µm .* About 170 patients instead of 30",
    ),
    "two resolutions say the same of every slide": (
        "Use 8 µm per pixel.",
        "at most 0.007 below every other resolution, where 0.02",
    ),
    "ties: scores are rounded to one digit": ("Use 8 µm per pixel.", "at 2 µm per pixel; 8 .* takes 1/4 of its cost"),
    "tested on different slides": (
        "No resolution can be recommended.",
        "8 µm per pixel cannot be compared with others: not tested on the same slides",
    ),
    "three classes": (
        "Use 2 µm per pixel.",
        r"8 µm per pixel with 0.689 \(0.625–0.746\) is worse than the margin allows",
    ),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_the_first_screen_says_what_is_shown_and_no_more(situation, tables):
    headline, reason = SAID[situation]
    table = tables[situation]
    found = recommend(table)
    assert found.headline == headline and re.search(reason, found.reason), found
    assert (found.mpp is None) == ("can be recommended" in headline)
    if found.mpp:  # whatever is taken has an interval above chance and a limit within the margin
        row = table[table["mpp"] == found.mpp].iloc[0]
        assert row["auc_low"] > 0.5 and (row["to_best_low"] > -MARGIN or len(table) == 1)


@pytest.mark.parametrize(
    "situation", ["one resolution, below chance", "one patient of a class", "sixteen patients in four folds"]
)
def test_the_page_begins_with_that_and_says_nan_nowhere(situation, tables, tmp_path):
    tables[situation].to_csv(tmp_path / "comparison.tsv", sep="\t", index=False)
    page = report(tmp_path, None, tmp_path / "none", tmp_path)
    text = re.sub(r"<[^>]+>", " ", re.sub(r"<style.*?</style>|data:[^\"]+", "", page, flags=re.DOTALL))
    text = re.sub(r"\s+", " ", html.unescape(text))
    found = recommend(tables[situation])
    assert f"{found.headline} {found.reason}" in text.partition("Performance by resolution")[0]
    for shown in (text, *(figure.read_text() for figure in tmp_path.glob("*.svg"))):
        assert not re.search(r"\bnan\b", shown, re.IGNORECASE)


def test_figures_say_what_is_missing(tables):
    for situation, said in (
        ("no fold holds both classes", "2 µm/px: no test fold has slides of all classes"),
        ("one patient of a class", "2 µm/px: no interval, a class has only one patient"),
    ):
        assert said in above_panels(figures.auc_against_resolution(tables[situation])), situation
    known = tables["three classes"].assign(seconds_per_step=[np.nan, 1.0])
    assert "8 µm/px: cost not measured" in above_panels(figures.auc_against_cost(known))


def above_panels(figure) -> str:
    return " ".join(figure.get_suptitle().split())


def test_what_is_missing_has_a_reason_wherever_it_is_shown(tables):
    for situation, table in tables.items():
        assert not re.search(r"\bnan\b|unknown", as_markdown(table), re.IGNORECASE), situation
        assert table["missing"].notna().all()
        for _, row in table.iterrows():
            empty = {str(name) for name, value in row.items() if pd.isna(value)}
            reasons = {name: why_missing(row, name) for name in table.columns}
            assert {name for name, reason in reasons.items() if reason != "unknown"} == empty, situation
        numbers = table.select_dtypes("number").columns
        assert {"auc", "auc_low", "to_best_low", "patients_needed", "joules_per_step", "p"} <= set(numbers)
    assert not re.search(r"\bnan\b|unknown", as_html(tables["one patient of a class"]), re.IGNORECASE)
    one = tables["one patient of a class"].iloc[0]
    assert why_missing(one, "auc_low") == why_missing(one, "to_best_low") == "a class has only one patient"
    assert "no interval: a class has only one patient" in as_markdown(tables["one patient of a class"])
    assert why_missing(tables["tested on different slides"].iloc[0], "to_best") == "not tested on the same slides"


def test_tables_that_were_made_before_there_were_limits_lead_to_no_recommendation(tables):
    old = tables["a coarser one is shown to be as good"].drop(columns=["to_best_low", "missing"])
    found = recommend(old.assign(p_best=[0.5, np.nan]))
    assert found.mpp is None and "make it again with `gigapipe evaluate`" in found.reason


def test_a_larger_margin_recommends_more_and_is_written_down():
    scores, costs = networks({8: 0.88, 2: 0.93}, seed=13)
    table = compare(scores, costs, 0.2)
    assert recommend(table).mpp == 8 and "where 0.2 is allowed" in recommend(table).reason
    assert set(table["margin"]) == {0.2}


def test_one_network_computed_in_several_ways_is_one_candidate():
    scores, costs = networks({8: 0.9, 2: 0.99}, (100, 100))
    streamed = {"method": "streamed", "memory": 10**9}
    both = (pd.concat([part, part[part["mpp"] == 2].assign(**streamed)], ignore_index=True) for part in (scores, costs))
    once, twice = compare(scores, costs, MARGIN), compare(*both, MARGIN)
    assert (
        len(twice) == 3 and twice["to_best_low"].iloc[1] == twice["to_best_low"].iloc[2] == once["to_best_low"].iloc[1]
    )
    begun = networks({2: 0.99}, (100, 100), seed=1)
    other = [pd.concat([a, b.assign(start="8 µm/px")]) for a, b in zip((scores, costs), begun, strict=True)]
    found = recommend(compare(*other, MARGIN))
    assert "2 µm per pixel, starting from " in found.headline + found.reason


def test_deviations_are_pooled_where_a_fold_has_one_patient_of_a_class():
    scores, _ = networks({5: 0.8}, (9, 7), 4, counts=[2, 2, 2, 1])
    targets = targets_of(["a", "b"])
    found = mean_auc(scores, targets)
    assert found.method == POOLED and found.folds == 4 and sorted(found.held_out)[0] == (1, 2)
    # By hand: from the mean over folds, with the correction of all patients of a class.
    pooled = 0.0
    for positive, count in ((True, 7), (False, 9)):
        for _, fold in scores.groupby("fold"):
            side = (fold["label"] == "b") == positive
            for score in fold["score"][side]:
                right = (fold["score"][~side] < score).mean() if positive else (fold["score"][~side] > score).mean()
                pooled += count / (count - 1) * ((right - found.value) / side.sum() / 4) ** 2
    assert found.deviation**2 == pytest.approx(pooled, rel=1e-9)
    low, high = found.interval()
    assert 0 <= low < found.value < high <= 1
    assert mean_auc(scores[scores["fold"] < 3], targets).method == "DeLong"
    # Few pairs in each fold bear out less than as many patients in one.
    assert separated_bound([(2, 2)] * 4, 4, 1.96) < separated_bound([(8, 8)], 1, 1.96) - 0.03


def test_limits_of_all_differences_are_dunnetts():
    assert [round(of_others(count), 3) for count in (1, 2, 3, 5)] == [1.645, 1.916, 2.062, 2.234]


def test_limits_of_a_difference_are_those_of_either_and_never_none():
    one, other = (auc_limits(value, 0.02, 1.96, 0.9) for value in (0.9, 0.8))
    free, tied = difference_limits(one, other, 0.0), difference_limits(one, other, 0.95)
    assert free.low == pytest.approx(0.1 - np.hypot(0.9 - one.low, other.high - 0.8))
    assert free.low < tied.low < 0.1 < tied.high < free.high
    perfect = auc_limits(1.0, 0.0, 1.96, 0.85)
    assert difference_limits(perfect, perfect, 0.0).low == pytest.approx(-0.15)


@pytest.fixture
def simulation(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import recommendation

    return recommendation


def test_the_simulation_computes_what_evaluate_does():
    scores, costs = networks({8: 0.85, 4: 0.9, 2: 0.9}, (24, 24), 4)
    table = compare(scores, costs, MARGIN)
    folds = []
    for _, fold in scores.groupby("fold"):
        by = fold.pivot(index="slide", columns="mpp", values="score")[[8, 4, 2]]
        label = fold[fold["mpp"] == 8].set_index("slide").loc[by.index, "label"] == "b"
        folds.append((label.to_numpy(), by.to_numpy().T[None], by.index.to_numpy()))
    cohorts = of_folds(folds)
    assert cohorts.auc[0] == pytest.approx(table["auc"].to_numpy(), abs=1e-12)
    low = lower_limits(cohorts.auc, cohorts.deviation, cohorts.correlation, cohorts.separated(1.96), of_others(2))
    assert low[0] == pytest.approx(table["to_best_low"].to_numpy(), abs=1e-9)


@pytest.mark.parametrize(
    "truth, patients, least",
    [
        ("all at chance", 16, 0),
        ("five just too far below, 0.85", 200, 0.8),
        ("five just too far below, 0.99", 60, 0),
        ("no difference, 0.85", 200, 0.8),
        ("finer is better", 200, 0.9),
        ("finer is better up to a plateau", 200, 0.8),
    ],
)
def test_few_recommendations_are_wrong_and_many_are_made_where_one_exists(simulation, truth, patients, least):
    margin = Comparison().margin
    wrong, any_ = simulation.shares(simulation.truths(margin)[truth], 0.8, patients, 400, margin, seed=1)
    assert wrong <= 0.05 and any_ >= least, (wrong, any_)


def test_the_absence_of_a_difference_is_no_proof(simulation):
    """That the bound above can fail: the coarsest whose paired p is above 0.05 is mostly wrong."""
    truth = simulation.truths(0.02)["five just too far below, 0.85"]
    found = drawn(truth, simulation.held_out(200), 400, np.random.default_rng(1), 0.8)
    best = found.auc.argmax(axis=1)[:, None]
    own = np.take_along_axis(found.deviation, best, 1)
    tied = np.take_along_axis(found.correlation, best[..., None], 2)[..., 0]
    spread = np.sqrt(np.maximum(found.deviation**2 + own**2 - 2 * tied * found.deviation * own, 0))
    alike = (np.take_along_axis(found.auc, best, 1) - found.auc) <= 1.96 * spread
    assert (alike.argmax(axis=1) < 5).mean() > 0.8


def dices(rng, means: dict[float, float], patients: int, spread=0.01, of_all=0.3) -> pd.DataFrame:
    shared = rng.normal(size=patients)
    return pd.concat(
        pd.DataFrame({"slide": [f"{i}" for i in range(patients)], "patient": [f"{i}" for i in range(patients)],
                      "mpp": mpp, "dice": mean + spread * (shared + rng.normal(size=patients)),
                      "dice_of_all": of_all + 0.01 * shared})
        for mpp, mean in means.items()
    )  # fmt: skip


@pytest.mark.parametrize(
    "means, patients, more, mpp, said",
    [
        ({16: 0.9, 8: 0.95, 4: 0.95}, 40, {}, 8, "at most 0.00"),
        ({16: 0.9, 8: 0.95}, 4, {"spread": 0.05}, None, "no resolution is shown to be within 0.02"),
        ({16: 0.3, 8: 0.3}, 40, {}, None, "no network is shown to be better than a mask that covers the whole slide"),
        ({16: 0.9}, 40, {}, 16, "above that of a mask that covers the whole slide"),
        ({16: 0.9, 8: 0.95}, 1, {}, None, "there is only one patient"),
        ({16: 0.9, 8: 0.95}, 40, {"spread": 0.0}, None, "within 0.02 of the best"),
    ],
)
def test_dice_obeys_the_same_rules(means, patients, more, mpp, said):
    table = dices(np.random.default_rng(0), means, patients, **more)
    found = recommend_by_dice(table, MARGIN)
    assert isinstance(found, Recommendation) and found.mpp == mpp and said in found.reason, found
    assert (mpp is None) == ("can be recommended" in found.headline) and "nan" not in found.reason
    old = recommend_by_dice(table.drop(columns="dice_of_all"), MARGIN)
    assert old.mpp is None and "gigapipe segment" in old.reason


def test_dice_of_several_classes_is_their_mean_where_they_are_there():
    table = dices(np.random.default_rng(0), {16: 0.9, 8: 0.95}, 40)
    rare = table.assign(**{"class": "rare", "dice": np.where(table.index % 2, np.nan, 0.0), "dice_of_all": 0.0})
    both = pd.concat([table.assign(**{"class": "common"}), rare])
    assert recommend_by_dice(both, MARGIN) == recommend_by_dice(table, MARGIN)


@pytest.mark.parametrize(
    "spread, mpp, reason",
    [
        ({8: 0.1, 2: 0.1}, 8, r"Its R² of 0.9\d+ \(.*\) is above chance, .* shown to be .* where 0.02 is allowed"),
        ({8: 0.6, 2: 0.1}, 2, "8 µm per pixel with 0.* is worse than the margin allows"),
        (
            {8: 1.5, 2: 1.5},
            None,
            "no network is shown to be better than chance: the highest R², .* is below chance .0.",
        ),
        ({8: 0.55, 2: 0.56}, None, "no resolution is shown to be within 0.02 of the best"),
        ({5: 0.1}, 5, "is above chance .0."),
    ],
)
def test_numbers_obey_the_same_rules(spread, mpp, reason):
    table = compare_numbers(*numbers(spread), MARGIN)
    found = recommend(table)
    assert found.mpp == mpp and re.search(reason, found.reason), found
    for text in (found.reason, as_markdown(table)):
        assert not re.search(r"\bnan\b|unknown", text, re.IGNORECASE)
    for _, row in table.iterrows():
        empty = {str(name) for name, value in row.items() if pd.isna(value)}
        assert {name for name in table.columns if why_missing(row, name) != "unknown"} == empty
