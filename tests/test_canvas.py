"""The canvas that is chosen: large enough for nearly all slides' tissue, in coarse steps."""

from types import SimpleNamespace

import pytest

from gigapipe.errors import InputError
from gigapipe.pyramids.canvas import coarsely, suitable_canvases


def slide(side: float, fraction: float = 0.3) -> SimpleNamespace:
    """A pyramid, as far as its tissue is asked for."""
    box = [100.0, 50.0, 100 + side, 50 + side / 2]
    return SimpleNamespace(tissue={"box_um": box, "fraction": fraction, "verdict": "fine"})


def test_steps_are_coarse():
    assert [coarsely(side) for side in (1, 4, 4.1, 8, 9, 10.5, 49, 784, 22528)] == [4, 4, 5, 8, 10, 12, 56, 896, 24576]
    assert all(side <= coarsely(side) <= max(4, 1.25 * side) for side in range(1, 3000))


def test_one_slide_in_twenty_may_be_larger():
    slides = [slide(1000 + i) for i in range(19)] + [slide(9000)]
    table = suitable_canvases(slides, [2.0, 8.0]).set_index("mpp")
    assert table.loc[2.0].to_dict() == {"canvas": 512, "whole": 19, "slides": 20}
    assert table.loc[8.0, "canvas"] == 128
    assert suitable_canvases([slide(1000), slide(9000)], [8.0])["whole"].item() == 2


def test_slides_without_tissue_say_nothing():
    assert suitable_canvases([slide(1000), slide(9000, 0.0)], [8.0])["slides"].item() == 1
    with pytest.raises(InputError, match="canvas: auto: no tissue was found in any slide"):
        suitable_canvases([slide(1000, 0.0)], [8.0])
