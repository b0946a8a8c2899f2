"""Reading pyramids: a fault that passes is waited for, one that stays is named, and a near disk is read twice."""

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from gigapipe.errors import InputError
from gigapipe.pyramids import reading, store
from gigapipe.pyramids.files import stamp
from gigapipe.pyramids.reading import read_pixels

ROWS, COLUMNS = (100, 300), (0, 130)


@pytest.fixture(params=["0.5", "0.4"])
def array(request, tmp_path) -> zarr.Array:
    """Four by four chunks of 128 px, of which the second row is white."""
    folder = tmp_path / "slide"
    store.create(folder, request.param, "slide", [1.0], [(500, 500)], (1.0, 1.0), chunk=128, shard=None)
    (found,) = store.arrays(folder)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 500, 500), dtype=np.uint8)
    pixels[:, 128:256] = 255
    found[:] = pixels
    return found


def chunk(array: zarr.Array, row: int, column: int) -> Path:
    return Path(array.store.root) / array.path / array.metadata.encode_chunk_key((0, row, column))


def test_what_is_staged_is_read_from_there_and_is_the_same(array, tmp_path):
    expected = array[:, slice(*ROWS), slice(*COLUMNS)]
    assert (read_pixels(array, ROWS, COLUMNS, tmp_path / "near") == expected).all()
    copied = [
        path for path in (tmp_path / "near").rglob("*") if path.is_file() and not path.name.startswith((".", "z"))
    ]
    assert len(copied) == 4  # of the six that it touches: white has no files
    for path in copied:
        assert not path.is_symlink()
    for row, column in ((0, 0), (0, 1), (2, 0), (2, 1)):
        chunk(array, row, column).write_bytes(b"no longer what it was")
    assert (read_pixels(array, ROWS, COLUMNS, tmp_path / "near") == expected).all()


def test_a_pyramid_that_was_made_anew_is_staged_anew(array, tmp_path):
    read_pixels(array, ROWS, COLUMNS, tmp_path / "near")
    reading._copy.cache_clear()  # as in another process
    folder = Path(array.store.root).parent
    version = "0.5" if array.metadata.zarr_format == 3 else "0.4"
    shutil.rmtree(folder)
    store.create(folder, version, "slide", [1.0], [(500, 500)], (1.0, 1.0), chunk=128, shard=None)
    (array,) = store.arrays(folder)
    array[:] = 7
    assert (read_pixels(array, ROWS, COLUMNS, tmp_path / "near") == 7).all()


def test_where_the_near_disk_is_full_the_rest_is_read_where_it_lies(array, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(reading, "RESERVE", 1.0)  # no disk is as empty as that
    near = tmp_path / "near"
    for _ in range(2):
        found = read_pixels(array, ROWS, COLUMNS, near)
        assert (found == array[:, slice(*ROWS), slice(*COLUMNS)]).all()
    assert caplog.text.count("is full; the rest is not cached") == 1
    assert not [path for path in near.rglob("*") if path.is_file() and not path.name.startswith((".", "z"))]


def test_a_near_folder_of_no_use_is_done_without(array, tmp_path, caplog):
    (tmp_path / "file").touch()
    for _ in range(2):
        found = read_pixels(array, ROWS, COLUMNS, tmp_path / "file" / "near")
        assert (found == array[:, slice(*ROWS), slice(*COLUMNS)]).all()
    assert caplog.text.count("near: cannot be used on ") == 1 and "next attempt in" not in caplog.text


def test_a_fault_that_passes_is_waited_for(array, monkeypatch, caplog):
    monkeypatch.setattr(reading, "WAITS", (0.5, 0.5))
    expected = array[:, slice(*ROWS), slice(*COLUMNS)]
    file = chunk(array, 0, 1)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])

    def mend() -> None:
        time.sleep(0.2)
        file.write_bytes(whole)

    thread = threading.Thread(target=mend)
    thread.start()
    assert (read_pixels(array, ROWS, COLUMNS) == expected).all()
    thread.join()
    assert "rows 100–300, columns 0–130: cannot be read on" in caplog.text


def test_a_fault_that_stays_is_named(array, monkeypatch):
    monkeypatch.setattr(reading, "WAITS", (0.01, 0.01))
    chunk(array, 2, 0).write_bytes(b"torn")
    with pytest.raises(
        InputError, match=r"slide/image.zarr/0: rows 100–300, columns 0–130: cannot be read on .*verify"
    ):
        read_pixels(array, ROWS, COLUMNS)


@pytest.mark.parametrize(
    "change, what",
    [
        (lambda file, other: file.unlink(), "is missing"),
        (lambda file, other: file.write_bytes(b""), "is damaged"),
        (lambda file, other: file.write_bytes(other.read_bytes()), "is damaged"),  # whole, but another's
    ],
    ids=["missing", "empty", "another's"],
)
def test_a_chunk_that_is_not_what_was_written_is_named(array, tmp_path, monkeypatch, change, what):
    monkeypatch.setattr(reading, "WAITS", (0.01,))
    stamp(array)
    expected = read_pixels(array, ROWS, COLUMNS)
    assert (read_pixels(array, ROWS, COLUMNS, tmp_path / "near") == expected).all()
    change(chunk(array, 2, 0), chunk(array, 2, 1))
    with pytest.raises(InputError, match=rf"slide/image.zarr/0: .* cannot be read on .*its chunk 0/2/0 {what}"):
        read_pixels(array, ROWS, COLUMNS)
    assert (read_pixels(array, ROWS, COLUMNS, tmp_path / "near") == expected).all()  # the copy is what was written
