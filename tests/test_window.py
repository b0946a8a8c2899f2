"""Interval arithmetic against the definition of a window, element by element."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from gigapipe.spatial.halo_plan import Leg
from gigapipe.spatial.window import Interval, Window, split

windows = st.builds(
    Window,
    kernel=st.integers(1, 7),
    stride=st.integers(1, 4),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    dilation=st.integers(1, 3),
)


@given(windows, st.integers(1, 40), st.data())
def test_needs_is_what_the_outputs_look_at(window, size, data):
    if size + sum(window.padding) < window.extent:
        with pytest.raises(ValueError, match="does not fit"):
            window.output_size(size)
        return
    # torch's own convolution, of an input that marks its positions, is the definition.
    padded = F.pad(torch.zeros(1, 1, size), window.padding)
    out = F.conv1d(padded, torch.ones(1, 1, window.kernel), stride=window.stride, dilation=window.dilation)
    out_size = out.shape[-1]
    assert window.output_size(size) == out_size

    start = data.draw(st.integers(0, out_size - 1))
    stop = data.draw(st.integers(start + 1, out_size))
    looked_at = [
        i * window.stride - window.padding[0] + k * window.dilation
        for i in range(start, stop)
        for k in range(window.kernel)
    ]
    assert window.needs(Interval(start, stop)) == (min(looked_at), max(looked_at) + 1)


@given(st.integers(0, 50), st.integers(1, 9))
def test_split_is_a_partition_into_nearly_equal_parts(size, parts):
    intervals = [split(size, parts, i) for i in range(parts)]
    assert [i for interval in intervals for i in range(*interval)] == list(range(size))
    lengths = [interval.size for interval in intervals]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize(
    "parts, apart", [([(0, 3), (3, 5)], True), ([(4, 6), (0, 3)], True), ([(2, 5), (0, 3)], False)]
)
def test_what_was_sent_to_two_ranks_is_not_added_in_one_launch(parts, apart):
    sends = tuple((rank, (Interval(*part),)) for rank, part in enumerate(parts))
    assert Leg(-1, Interval(0, 9), Interval(0, 9), (), sends, ()).sent_apart == apart
