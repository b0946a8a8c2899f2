"""Decoded pixels that are kept for another tile, or for the backward pass: the right ones, and not too many."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gigapipe.errors import InputError
from gigapipe.pyramids import reading, store
from gigapipe.pyramids.files import stamp
from gigapipe.pyramids.pixel_cache import PixelCache
from gigapipe.pyramids.reading import read_pixels
from gigapipe.pyramids.recycled import Recycled
from gigapipe.spatial import Mesh, Plan, decompose
from gigapipe.training.inverted import inverted
from gigapipe.training.streaming import Memory, Streaming

CHUNKS = 32, 48


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(reading, "WAITS", ())


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (3, 200, 250), dtype=np.uint8)


class Loads:
    """Loads rectangles of an image, and notes which."""

    def __init__(self, image: np.ndarray):
        self.image, self.rectangles = image, []

    def __call__(self, rows, columns):
        self.rectangles.append((rows, columns))
        return self.image[..., slice(*rows), slice(*columns)]


def read(cache: PixelCache, load: Loads, rows, columns) -> np.ndarray:
    return cache.read("image", load.image.shape, (3, *CHUNKS), load, rows, columns)


@pytest.mark.parametrize("share", [0, 0.2, 2])
def test_any_rectangle_is_what_it_is_and_the_limit_holds(image, share):
    rng = np.random.default_rng(1)
    for pixels in (image, image[0]):
        cache = PixelCache(share * pixels.nbytes)
        load = Loads(pixels)
        for _ in range(200):
            rows, columns = (tuple(sorted(map(int, rng.integers(0, n, 2)))) for n in pixels.shape[-2:])
            assert (read(cache, load, rows, columns) == pixels[..., slice(*rows), slice(*columns)]).all()
            kept = [*cache._staying.values(), *cache._recent.values()]
            assert sum(chunk.nbytes for chunk in kept) <= cache.limit
        decoded = sum((down[1] - down[0]) * (across[1] - across[0]) for down, across in load.rectangles)
        assert (decoded == pixels.shape[-2] * pixels.shape[-1]) == (share == 2)


def test_tiles_row_by_row_decode_each_chunk_once_a_pass_and_half_of_what_fits_not_again(image):
    cache, load = PixelCache(0.8 * image.nbytes), Loads(image)
    decoded = []
    for _ in range(2):
        load.rectangles.clear()
        for row in range(0, 200, 20):
            for column in range(0, 250, 20):
                read(cache, load, (max(0, row - 3), min(200, row + 23)), (max(0, column - 3), min(250, column + 23)))
        decoded.append(sum((rows[1] - rows[0]) * (columns[1] - columns[0]) for rows, columns in load.rectangles))
    first, second = decoded
    assert first == 200 * 250
    assert 0.55 * first < second < 0.7 * first


def test_of_two_threads_one_loads_and_of_an_error_both_learn(image):
    cache, loads, fails = PixelCache(1e9), [], True

    def load(rows, columns):
        loads.append((rows, columns))
        time.sleep(0.3)
        if fails:
            raise OSError("the disk")
        return image[:, slice(*rows), slice(*columns)]

    def of_two() -> list:
        found = []

        def run() -> None:
            try:
                found.append(cache.read(0, image.shape, (3, *CHUNKS), load, (0, 30), (0, 40)))
            except OSError as error:
                found.append(error)

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    assert [str(error) for error in of_two()] == ["the disk"] * 2 and len(loads) == 1
    fails = False
    assert all((pixels == image[:, :30, :40]).all() for pixels in of_two()) and len(loads) == 2


def stored(folder: Path, image: np.ndarray):
    store.create(folder, "0.5", "slide", [1.0], [image.shape[1:]], (1.0, 1.0), chunk=32, shard=64)
    (array,) = store.arrays(folder)
    array[:] = image
    stamp(array)
    (array,) = store.arrays(folder)  # with its checksums
    return array


def test_a_file_is_checked_once_until_the_cache_is_cleared(image, tmp_path):
    array, cache = stored(tmp_path / "slide", image), PixelCache()  # keeps no pixels
    expected = image[:, :20, :20]
    assert (read_pixels(array, (0, 20), (0, 20), cache=cache) == expected).all()
    (file,) = cache.checked
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1  # of the shard's index: its own checksum is wrong then
    file.write_bytes(damaged)
    with pytest.raises(InputError, match="cannot be read"):  # by the codec, not by our checksum
        read_pixels(array, (0, 20), (0, 20), cache=cache)
    cache.clear()
    with pytest.raises(InputError, match=r"chunk 0/0/0 is damaged"):
        read_pixels(array, (0, 20), (0, 20), cache=cache)


def test_the_backward_pass_reads_nothing_again_and_the_next_image_does(image, tmp_path):
    array = stored(tmp_path / "slide", image)
    torch.manual_seed(0)
    model, mesh = nn.Sequential(nn.Conv2d(3, 4, 7, padding=3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)), Mesh()
    whole = inverted(image[None])
    F.mse_loss(model(whole), torch.ones(1, 4, 1, 1)).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()

    streaming = Streaming(Memory(10**9), mesh)
    streaming.plans[True] = Plan(tiles={3: (40, 40)}, workers=2, spare=3.0 * image.nbytes)
    decompose(model, mesh)
    streaming.prepare(model, whole.shape)

    def pixels(rectangle, device):
        return inverted(read_pixels(array, *rectangle, cache=streaming.cache)[None])

    loss = F.mse_loss(model(streaming.image(pixels, whole.shape)), torch.ones(1, 4, 1, 1))
    for file in streaming.cache.checked:
        file.unlink()
    loss.backward()
    for p, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-3, atol=1e-5)  # torch itself is no nearer in float32
    streaming.done()
    with pytest.raises(InputError, match="is missing"):
        model(streaming.image(pixels, whole.shape))
    streaming.done()


@pytest.mark.parametrize("memory", [None, Memory(10**9)])
def test_slides_that_are_not_computed_by_tiles_are_read_once_for_all_epochs(image, tmp_path, memory):
    array = stored(tmp_path / "slide", image)
    model, streaming = nn.Conv2d(3, 4, 3), Streaming(memory, Mesh())
    if memory:
        streaming.plans[True] = Plan(whole_from=1, spare=3.0 * image.nbytes)
    streaming.prepare(model, (1, 3, 200, 250))
    assert (read_pixels(array, (0, 200), (0, 250), cache=streaming.cache) == image).all()
    for file in streaming.cache.checked:
        file.unlink()
    streaming.done()
    assert not streaming.cache.checked
    assert (read_pixels(array, (20, 180), (5, 250), cache=streaming.cache) == image[:, 20:180, 5:250]).all()


def test_what_a_prediction_may_keep_a_training_may_not(image, tmp_path):
    array = stored(tmp_path / "slide", image)
    model, streaming = nn.Conv2d(3, 4, 3), Streaming(Memory(10**9), Mesh())
    for training, spare in ((False, 3.0 * image.nbytes), (True, 10.0)):
        streaming.plans[training] = Plan(whole_from=1, spare=spare)
        streaming.prepare(model.train(training), (1, 3, 200, 250))
        read_pixels(array, (0, 200), (0, 250), cache=streaming.cache)
        kept = [*streaming.cache._staying.values(), *streaming.cache._recent.values()]
        assert sum(chunk.nbytes for chunk in kept) == (0 if training else image.nbytes)


def test_memory_of_arrays_that_are_gone_is_used_again():
    memory = Recycled(limit=5 * 2**20)
    first = memory.empty((2**20,))
    first[:] = 7
    view = first[100:]
    place = first.ctypes.data
    del first
    second = memory.empty((2**20,))
    second[:] = 1
    assert (view == 7).all(), "a view's memory was given to another"
    del view
    third = memory.empty((2**18,), np.float32)
    assert third.ctypes.data == place
    del second, third
    assert memory._free_bytes == 2 * 2**20
    large = memory.empty((2**22,))  # what was kept makes room for it
    assert memory._used + memory._free_bytes <= memory.limit
    memory.limit = 0
    del large
    assert memory._used == memory._free_bytes == 0


@pytest.mark.parametrize("size", [(30, 40), (700, 800)])  # the larger is made by compiled code
def test_pixels_are_inverted_exactly(size):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, *size), np.uint8)
    found = inverted(pixels)
    assert torch.equal(found, (255 - torch.from_numpy(pixels)).float() / 255)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(inverted(pixels[:, :, :1][:, :, ::-1]), found[:, :, :1])  # a flipped row has a negative stride
