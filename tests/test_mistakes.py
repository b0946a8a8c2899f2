"""The slides that networks are wrong about: the right ones, in order, with what was found of them."""

import pandas as pd

from gigapipe.evaluation.mistakes import Mistake, mistakes


def predictions(rows: dict[str, tuple], seed: int = 0, file: int = 0) -> pd.DataFrame:
    """Of each slide its label, score, and part."""
    table = pd.DataFrame(rows.values(), columns=["label", "score", "part"]).assign(slide=list(rows))
    return table.assign(mpp=2.0, seed=seed, fold=0, network=file)


VALIDATION = {"v": ("a", 0.3, "validation"), "w": ("b", 0.5, "validation")}  # so that 0.4 divides them


def test_by_the_threshold_of_validation_those_first_that_are_most_wrong():
    rows = {"s": ("a", 0.45, "test"), "t": ("a", 0.9, "test"), "u": ("b", 0.45, "test"), "x": ("b", 0.1, "test")}
    found = mistakes(predictions(VALIDATION | rows))
    assert found.decided == 4 and [mistake.slide for mistake in found.wrong] == ["t", "x", "s"]  # u is right
    said = "is b, classified as a: probability of b 0.100, threshold 0.400"
    assert found.wrong[1] == Mistake("x", said)


def test_several_networks_are_counted_and_those_without_a_threshold_left_out():
    right, wrong = {"s": ("a", 0.2, "test")}, {"s": ("a", 0.8, "test")}
    networks = [predictions(VALIDATION | right, 0, 0), predictions(VALIDATION | wrong, 1, 1), predictions(wrong, 2, 2)]
    found = mistakes(pd.concat(networks, ignore_index=True))
    said = "is a, classified as b by 1 of 2 networks: mean probability of b 0.500, threshold 0.400"
    assert found.wrong == [Mistake("s", said)]
    without = pd.concat([predictions(wrong), predictions({"t": ("b", 0.8, "test")})], ignore_index=True)
    assert mistakes(without) == (0, [])


def test_of_three_classes_by_the_largest_probability():
    table = pd.DataFrame({"slide": list("stu"), "label": list("abc"), "part": "test", "mpp": 2.0, "seed": 0, "fold": 0})
    table = table.assign(network=0, score_a=[0.5, 0.6, 0.1], score_b=[0.3, 0.3, 0.2], score_c=[0.2, 0.1, 0.7])
    found = mistakes(table)
    assert found == (3, [Mistake("t", "is b, classified as a: probability of b 0.300, a 0.600")])


def test_of_numbers_those_first_that_are_furthest_off():
    table = pd.DataFrame({"slide": list("st"), "number": [1.0, 5.0], "predicted": [1.5, 2.0], "target": "age"})
    found = mistakes(table.assign(part="test", mpp=2.0, network=0))
    assert [mistake.slide for mistake in found.wrong] == ["t", "s"]
    assert found.wrong[0].said == "age is 5, predicted 2: −3"
