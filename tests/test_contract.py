"""The contract: however a model is called and its gradients asked for, they are the undivided ones, or all refuse."""

import functools

import pytest
from conftest import run_ranks
from contract_cases import CASES, REFUSED, STREAMED

MESHES = 3  # 2 × 2 ranks of an image; two data ranks of 2, where images are streamed, too; four data ranks


@functools.cache
def rows() -> list[dict]:
    return run_ranks("ranks_contract.py", 4)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_undivided_ones_and_alike_on_all_ranks(case):
    found = [row for row in rows() if row.get("case") == case]
    assert len(found) == MESHES + (case in STREAMED)
    for row in found:
        assert row["error"] <= 1e-10 and row["alike"], row


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_refused_on_every_rank_with_one_line(case):
    found = [row for row in rows() if row.get("refused") == case]
    assert found
    for row in found:
        assert len(set(row["said"])) == 1 and row["message"] in row["said"][0] and ";" in row["said"][0], row
