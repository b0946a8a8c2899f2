"""A sample of the sweep over models that nobody here wrote, with the packages that are there."""

import sys

import pytest
from launching import ROOT
from ranks.zoo import LAST

sys.path.insert(0, str(ROOT / "benchmarks"))

import zoo  # noqa: E402  that folder is not where Python looks

SAMPLE = ["AutoEncoder", "PatchDiscriminator", "RegUNet", "SegResNetDS"]
"""Not those of tests/ranks/models.py."""


@pytest.mark.parametrize("name", SAMPLE)
def test_a_model_that_nobody_here_wrote_is_exact(ranks, name):
    row = zoo.judge(ranks, zoo.entries()["monai", name], (1, 2, 2), timeout=90)
    assert [row[how]["end"] for how in ("held", "streamed")] == ["exact", "exact"], row


@pytest.mark.parametrize("end", LAST)
def test_each_end_is_told(ranks, end):
    first, second = ranks("zoo.ending", end, mesh=(1, 1, 2))
    assert first == second and first["end"] == end, first


def test_a_refusal_names_layer_operation_and_a_way_out(ranks):
    layer, operation, instead = zoo.refusal(ranks("zoo.ending", "refused")[0]["says"])
    assert (layer, operation) == ("model.1", "fft_fft2")
    assert instead.startswith("use an operation that has one (docs/operations.md lists them)")


class TwoRanks(zoo.Ranks):
    SIZE = 2


@pytest.mark.slow
def test_a_model_that_crashes_takes_no_other_with_it():
    crashes = zoo.Entry("monai", "MONAI", "of this name there is none", None)
    with TwoRanks() as two:
        failed = zoo.judge(two, crashes, (1, 1, 2), timeout=90)
        assert failed["held"] == {"end": "failed", "says": "KeyError: ('monai', 'of this name there is none')"}
        assert two("zoo.ending", "exact", mesh=(1, 1, 2))[1]["end"] == "exact"


def row(name: str, **ends) -> dict:
    return {"library": "monai", "family": "MONAI", "name": name} | ends


def test_the_table_counts_each_model_once_and_hides_no_fault():
    says = "gigapipe.spatial: in layer a.b: cat of (2, 3, 4, 4), (2, 3, 2, 4); crop them first"
    rows = [
        row("A", held={"end": "exact"}, streamed={"end": "ill-conditioned"}),
        row("B", held={"end": "exact"}, streamed={"end": "refused", "says": says}),
        row("C", held={"end": "refused", "says": "gigapipe.spatial: roll; do without"}),
        row("D", held={"end": "wrong", "says": "gradient x", "error": 0.5}),
    ]
    table = zoo.table(rows)
    assert "| MONAI | 4 | 2 | 1 | 2 | 0 | 0 | 1 |" in table.splitlines()
    assert "   1  cat of (…): B (monai, streamed)" in table.splitlines()
    faults = table.partition("a way out:\n")[2].splitlines()
    assert faults == ["refused: C (monai): gigapipe.spatial: roll; do without", "wrong: D (monai): gradient x 5.0e-01"]


def test_a_sweep_goes_on_where_it_was_stopped(tmp_path):
    path = tmp_path / "zoo.jsonl"
    path.write_text(
        '{"library": "monai", "name": "A", "n": 1}\n{"library": "monai", "name": "A", "n": 2}\n{"library": "mo'
    )
    assert zoo.read(path) == {("monai", "A"): {"library": "monai", "name": "A", "n": 2}}
