"""Networks that validation says have learnt nothing are flagged, where people read of them."""

import json

import numpy as np
import pandas as pd
import pytest
from made_networks import network, read

from gigapipe.evaluation.comparison import compare
from gigapipe.evaluation.comparison_text import as_html, as_markdown
from gigapipe.evaluation.learning import FIRST, GUESS, NOT_KNOWN, better_than_a_guess, flag, flagged, flags_of
from gigapipe.evaluation.report import report
from gigapipe.evaluation.report_tables import worth


def validation(labels: str, **scores) -> pd.DataFrame:
    return pd.DataFrame({"label": list(labels), "part": "validation", **scores})


def record(best: int | None = 3, **settings) -> dict:
    return {"settings": settings} | ({} if best is None else {"best_epoch": best})


def test_a_guess_is_the_shares_of_the_labels():
    shares = validation("aaab", score=0.25)  # of b: as good as a guess can be
    assert better_than_a_guess(shares, ["a", "b"], balanced=False) == pytest.approx(0)
    assert better_than_a_guess(shares.assign(score=0.5), ["a", "b"], balanced=True) == pytest.approx(0)
    assert better_than_a_guess(shares.assign(score=0.5), ["a", "b"], balanced=False) < -0.1
    known = shares.assign(score=[0.1, 0.1, 0.1, 0.9])
    expected = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) + np.log(0.9)
    assert better_than_a_guess(known, ["a", "b"], balanced=False) == pytest.approx(expected)
    three = validation("abc", score_a=[0.8, 0.1, 0.1], score_b=[0.1, 0.8, 0.1], score_c=[0.1, 0.1, 0.8])
    assert better_than_a_guess(three, ["a", "b", "c"], balanced=False) == pytest.approx(np.log(3) + np.log(0.8))
    numbers = pd.DataFrame({"number": [1.0, 2, 3], "predicted": [2.0, 2, 2]})
    assert better_than_a_guess(numbers, [], balanced=False) == pytest.approx(0)
    assert better_than_a_guess(numbers.assign(predicted=[1.0, 2, 3]), [], balanced=False) == pytest.approx(2 / 3)


def test_what_is_flagged():
    good, poor = validation("abab", score=[0.1, 0.9, 0.2, 0.8]), validation("abab", score=[0.9, 0.1, 0.5, 0.5])
    assert flag(record(), good, ["a", "b"]) == ""
    assert flag(record(1), good, ["a", "b"]) == FIRST
    assert flag(record(2), poor, ["a", "b"]) == GUESS
    assert flag(record(1), poor, ["a", "b"]) == f"{FIRST}; {GUESS}"
    for lacking in (good[good["label"] == "a"], good.iloc[:0], good.assign(part="test")):
        assert flag(record(), lacking, ["a", "b"]) == NOT_KNOWN
    assert flag(record(None), good, ["a", "b"]) == NOT_KNOWN


def test_networks_are_told_by_what_tells_them_apart():
    costs = pd.DataFrame({"fold": [0, 1, 0, 1], "seed": [0, 0, 1, 1]})
    costs["flag"] = [FIRST, "", f"{FIRST}; {GUESS}", NOT_KNOWN]
    expected = f"{FIRST}: fold 0 of seed 0, fold 0 of seed 1; {GUESS}: fold 0 of seed 1; {NOT_KNOWN}: fold 1 of seed 1"
    assert flagged(costs.assign(split="site")) == {"flagged": 2, "flags": expected}
    by = costs[costs["seed"] == 0].assign(split=["site", "patient"])
    assert flagged(by)["flags"] == f"{FIRST}: fold 0 by site"
    assert flagged(by.assign(flag="")) == {"flagged": 0, "flags": "none"}


def test_tables_and_the_first_screen_flag_them(tmp_path):
    folders = [network(tmp_path, mpp, fold) for mpp in (8, 2) for fold in range(3)]
    for folder in folders:  # all best in the first epoch; of these, fold 1 at 2 µm/px was not, and did well
        if folder.match("2um/fold-1"):
            path, table = folder / "training.json", pd.read_csv(folder / "predictions.tsv", sep="\t")
            path.write_text(json.dumps(json.loads(path.read_text()) | {"best_epoch": 4}))
            table["score"] = table["label"].map({"a": 0.1, "b": 0.9})
            table.to_csv(folder / "predictions.tsv", sep="\t", index=False)
    table = compare(*read(folders), margin=0.02)
    assert list(table["flagged"]) == [3, 2]
    coarse, fine = flags_of(table)
    assert coarse.startswith(f"8 µm/px: {FIRST}: fold 0, fold 1, fold 2")
    assert fine.startswith(f"2 µm/px: {FIRST}: fold 0, fold 2")
    assert "nan" not in f"{coarse}{fine}"
    table.to_csv(tmp_path / "comparison.tsv", sep="\t", index=False)
    page = report(tmp_path, None, tmp_path / "benchmarks")
    first_screen, rest = page.split('<section id="table">')
    assert "Not all networks have learned." in first_screen and coarse in first_screen and fine in first_screen
    assert "<th>networks flagged</th>" in rest and coarse in rest and fine in rest
    for text in (as_markdown(table), as_html(table)):
        assert "networks flagged" in text and coarse in text and fine in text
    of_release_0_1 = table.drop(columns=["flagged", "flags"])
    assert flags_of(table.assign(flags="none")) == flags_of(of_release_0_1) == []
    assert "networks flagged" in worth(table).headings and "networks flagged" not in worth(of_release_0_1).headings
