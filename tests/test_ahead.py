"""The canvases that come next are read while others are computed: what is asked for by then, and no other."""

import shutil
import threading
from concurrent.futures import wait

import pandas as pd
import pytest
import torch
from torch import nn

from gigapipe.errors import InputError
from gigapipe.spatial import Mesh, decompose
from gigapipe.spatial.planning import resident_memory
from gigapipe.spatial.recording import Recorded
from gigapipe.training.ahead import Ahead, with_following
from gigapipe.training.augmentation import UNCHANGED, Augmentation
from gigapipe.training.canvases import Canvases
from gigapipe.training.inverted import as_seen, by_bands
from gigapipe.training.streaming import Memory, Streaming


def computed(model: nn.Module, image) -> torch.Tensor:
    found = model(image)
    return (found.computed() if isinstance(found, Recorded) else found).local


def test_what_was_begun_is_given_once_and_for_its_key_alone():
    reader, ahead = [], Ahead()

    def read(value: int) -> int:
        reader.append(threading.get_ident())
        return value

    ahead.begin("a", lambda: read(1))
    assert ahead.take("b") is None and ahead.take("a") == 1 and ahead.take("a") is None
    assert reader != [threading.get_ident()]
    ahead.begin("a", lambda: read(2))
    ahead.begin("b", lambda: read(3))
    assert ahead.take("a") is None and ahead.take("b") == 3
    ahead.begin("a", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ahead.take("a")
    assert list(with_following("abc")) == [("a", "b"), ("b", "c"), ("c", None)] and not [*with_following("")]


@pytest.mark.parametrize("memory", [None, 10**9])
def test_a_canvas_that_is_read_ahead_looks_as_one_that_is_not(small_cohort, tmp_path, memory, monkeypatch):
    monkeypatch.setattr("gigapipe.pyramids.reading.WAITS", ())
    table = pd.read_csv(small_cohort / "slides.tsv", sep="\t").head(2)
    for slide in table["slide"]:
        shutil.copytree(small_cohort / "pyramids" / slide, tmp_path / slide)
    canvases = Canvases(table, torch.tensor([0.0, 1.0]), tmp_path, 8.0, 53, Mesh())
    look = [Augmentation(5, (0.1, -0.2), (1.2, 0.8, 0.9))]
    model = decompose(nn.Conv2d(3, 2, 3, padding=1), Mesh())
    want, other = (model(canvases.batch([1], looks)[0]).local for looks in (look, None))
    streaming = Streaming(memory and Memory(resident_memory() + memory), Mesh())
    streaming.prepare(model, (1, 3, 53, 53))
    canvases.batch([0], None, streaming, ([1], look))
    wait([streaming.ahead._begun[1]])
    streaming.cache.clear()
    shutil.move(tmp_path / table["slide"][1], tmp_path / "elsewhere")
    image, truth = canvases.batch([1], look, streaming, ([0], None))
    assert torch.equal(computed(model, image), want) and not torch.equal(want, other) and truth == 1
    with pytest.raises(InputError, match="is missing"):  # is read, not taken from what was seen before
        computed(model, canvases.batch([1], look, streaming)[0])


def test_a_device_makes_the_same_of_bytes_as_the_host(monkeypatch):
    monkeypatch.setattr("gigapipe.training.inverted.BAND_ON_DEVICE", 3 * 40 * 7)  # bands of 7 of 33 rows
    images = torch.randint(0, 256, (2, 3, 33, 40), dtype=torch.uint8).numpy()
    look = Augmentation(0, (0, 0), (1.2, 0.8, 0.9), 1.1, 0.8)
    for augmentations in (None, [UNCHANGED, look]):
        on_host = as_seen(images, augmentations)
        banded = by_bands(images, augmentations or [UNCHANGED] * 2, torch.device("cpu"))
        torch.testing.assert_close(banded, on_host, rtol=0, atol=0 if augmentations is None else 1e-6)
        assert banded.is_contiguous(memory_format=torch.channels_last)


def test_nothing_is_read_ahead_where_memory_has_no_room():
    model, shape = nn.Conv2d(3, 1, 3, padding=1).eval(), (4, 3, 1024, 1024)
    roomy, short = (Streaming(Memory(resident_memory() + more), Mesh()) for more in (10**9, 2 * 10**8))
    for streaming in (roomy, short):
        with torch.no_grad():
            streaming.prepare(model, shape)
    assert roomy.ahead is not None and short.plan.tiles and short.ahead is None
