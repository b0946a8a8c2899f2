"""Disks that fail, or can less than others: what passes is waited for, and what stays is one line."""

import contextlib
import errno
import fcntl
import functools
import logging
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import openslide
import pytest
import torch
from launching import gigapipe
from numba.core import caching

from gigapipe import cli, disks
from gigapipe.atomic import atomic_file, resumable_file
from gigapipe.cli.messages import log_to_stderr
from gigapipe.disks import in_one_line, read_again
from gigapipe.errors import InputError
from gigapipe.exit_status import AGAIN
from gigapipe.pyramids import store
from gigapipe.pyramids.area import compiled
from gigapipe.pyramids.build import build_pyramid
from gigapipe.slides.levels import Mended, OpenSlideLevel, TiffLevel
from gigapipe.slides.phantom import MPP, write_slide
from gigapipe.slides.reader import Slide
from gigapipe.training.weight_files import save


@pytest.fixture(autouse=True)
def patient(monkeypatch, caplog):
    log_to_stderr()  # or a verb would, and the level be put back behind it
    caplog.set_level(logging.INFO, "gigapipe")
    monkeypatch.setattr(disks, "WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(disks, "_TOLD", set())


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "p.svs"
    write_slide(path, np.random.default_rng(0).integers(0, 255, (600, 500, 3), dtype=np.uint8))
    return path


def failing(function: Callable, number: int, times: int) -> Callable:
    """The function, whose first calls fail as a disk does."""
    left = iter(range(times))

    @functools.wraps(function)
    def first(*arguments, **keywords):
        if next(left, None) is not None:
            raise OSError(number, os.strerror(number))
        return function(*arguments, **keywords)

    return first


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_read_that_may_do_better_is_tried_again(number, caplog, tmp_path):
    assert read_again(failing(lambda: 7, number, times=3), tmp_path) == 7
    assert caplog.text.count(f"{tmp_path}: cannot be read on ") == 3
    with pytest.raises(OSError) as stays:
        read_again(failing(lambda: 7, number, times=4), tmp_path)
    assert stays.value.errno == number and stays.value.filename == str(tmp_path)


def test_a_read_that_cannot_do_better_is_not(tmp_path):
    with pytest.raises(PermissionError):
        read_again(failing(lambda: 7, errno.EACCES, times=1), tmp_path)


@pytest.mark.parametrize("kind", [TiffLevel, OpenSlideLevel])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_slide_is_read_again(slide, monkeypatch, kind, number):
    with Slide(slide) as whole, Slide(slide) as failed:
        expected, level = kind(whole).read(0, 0, 300, 300), kind(failed)
        monkeypatch.setattr(os, "pread", failing(os.pread, number, times=5))
        monkeypatch.setattr(openslide.OpenSlide, "read_region", torn(openslide.OpenSlide.read_region, times=2))
        assert (level.read(0, 0, 300, 300) == expected).all()


def torn(function: Callable, times: int) -> Callable:
    """OpenSlide's, which does not say that it was the disk."""
    left = iter(range(times))

    def first(*arguments):
        if next(left, None) is not None:
            raise openslide.OpenSlideError("Cannot read raw tile")
        return function(*arguments)

    return first


@pytest.mark.parametrize("kind", [TiffLevel, OpenSlideLevel])
def test_a_disk_that_stays_gone_is_no_damage_of_the_slide(slide, monkeypatch, kind):
    with Slide(slide) as opened:
        level = Mended(kind(opened))
        monkeypatch.setattr(os, "pread", failing(os.pread, errno.EIO, times=1000))
        monkeypatch.setattr(openslide.OpenSlide, "read_region", torn(openslide.OpenSlide.read_region, times=1000))
        with pytest.raises(OSError) as stays:
            level.read(0, 0, 300, 300)
    assert stays.value.filename == str(slide) and not level.damaged


def test_what_only_openslide_cannot_read_is_damaged(slide, monkeypatch):
    with Slide(slide) as opened:
        monkeypatch.setattr(openslide.OpenSlide, "read_region", torn(openslide.OpenSlide.read_region, times=1000))
        with pytest.raises(InputError, match="damaged near row 0"):
            OpenSlideLevel(opened).read(0, 0, 300, 300)


def test_a_slide_is_opened_again(slide, monkeypatch):
    monkeypatch.setattr(openslide, "OpenSlide", torn(openslide.OpenSlide, times=2))
    monkeypatch.setattr(os, "pread", failing(os.pread, errno.EIO, times=1))
    with Slide(slide) as opened:
        assert opened.shape == (600, 500)


def test_a_pyramid_is_made_through_faults(slide, monkeypatch, tmp_path):
    build_pyramid(slide, tmp_path / "a", [2 * MPP], threads=1)
    monkeypatch.setattr(os, "pread", failing(os.pread, errno.ESTALE, times=3))
    build_pyramid(slide, tmp_path / "b", [2 * MPP], threads=1)
    assert (store.arrays(tmp_path / "a")[0][:] == store.arrays(tmp_path / "b")[0][:]).all()


@pytest.mark.parametrize(
    "path, words",
    [
        ("x" * 300 + ".svs", "cannot be read (File name too long); give a shorter name"),
        ("", "cannot be read (Is a directory); correct the path"),
        ("none.svs", "no such file; correct its path"),
        ("p.svs/none.svs", "no such file; correct its path"),
    ],
)
def test_a_slide_s_path_that_cannot_be_read_is_one_line(slide, tmp_path, path, words):
    done = gigapipe("pyramid", slide.parent / path, tmp_path / "p", "--mpp", 1, check=False)
    assert done.returncode == 1
    assert done.stdout == f"gigapipe: slide {slide.parent / path}: {words}\n"


def test_a_slide_that_nobody_may_read_is_one_line(slide, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.open", failing(open, errno.EACCES, times=1))
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\); ask its owner for permission"):
        Slide(slide)


FAULTS = {
    errno.ENOSPC: "No space left on device; free some space on its disk, or write to another disk",
    errno.EDQUOT: "Disk quota exceeded; free some space on its disk, or write to another disk",
    errno.EROFS: "Read-only file system; give a path that is writable",
    errno.EACCES: "Permission denied; ask its owner for permission, or give another path",
    errno.EIO: "Input/output error; check its disk, and run it again",
}


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("number", FAULTS)
def test_any_fault_of_any_verb_is_one_line_with_the_file(slide, tmp_path, monkeypatch, number, step):
    monkeypatch.setattr(os, step, failing(getattr(os, step), number, times=1))
    done = gigapipe("pyramid", slide, tmp_path / "p", "--mpp", 1, check=False)
    assert done.returncode == AGAIN
    assert done.stdout == f"gigapipe: {tmp_path}/.p.partial/.identity: {FAULTS[number]}\n"


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The nearest thing to a full disk that anybody may make: no file can become larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_rust_and_torch_say_of_a_full_disk_is_one_line_too(slide, tmp_path):
    with files_of_at_most(40_000):
        done = gigapipe("pyramid", slide, tmp_path / "p", "--mpp", MPP, "--chunk", 512, check=False)
        assert done.returncode == AGAIN and "Traceback" not in done.stdout
        last = done.stdout.splitlines()[-1]
        assert last.startswith(
            f"gigapipe: {tmp_path}/.p.partial/image.zarr/0: File too large; its file system, or `ulimit"
        )
        with pytest.raises(OSError, match="File too large: .*model.pt") as full:
            save(tmp_path / "model.pt", {"weights": torch.zeros(100_000)})
        assert in_one_line(full.value).startswith(f"{tmp_path}/model.pt: File too large; ")
    assert not list(tmp_path.glob("*model*"))


def test_an_error_that_names_no_file_says_where_it_came_up(slide, monkeypatch):
    monkeypatch.setattr(os, "pread", failing(os.pread, errno.EIO, times=1))
    with pytest.raises(OSError) as failed:
        disks.look_for_fault(slide)
    assert re.fullmatch(r"disks.py, line \d+: Input/output error; check .*", in_one_line(failed.value))


def test_output_that_has_no_room_is_one_line(monkeypatch, capfd):
    def phantom(_):
        print("x" * 100)

    monkeypatch.setattr(cli.slides, "phantom", phantom)
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["phantom", "folder"]) == AGAIN
    assert capfd.readouterr().err.startswith("gigapipe: standard output: No space left on device; ")


NONE = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL, errno.EPERM, 524]


@pytest.mark.parametrize("number", NONE)
def test_file_systems_without_locks_and_fsync_work_and_it_is_said_once(tmp_path, monkeypatch, caplog, number):
    monkeypatch.setattr(fcntl, "flock", failing(fcntl.flock, number, times=9))
    monkeypatch.setattr(os, "fsync", failing(os.fsync, number, times=9))
    for name in ("a", "b"):
        with resumable_file(tmp_path / name, keep=True) as partial:
            partial.write_text(name)
        with atomic_file(tmp_path / f"{name}.txt") as partial:
            partial.write_text(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.txt", "b", "b.txt"]
    assert caplog.text.count("its file system does not support locks") == 1
    assert caplog.text.count("cannot confirm that a file is on the disk") == 1


def test_a_lock_that_another_holds_is_no_missing_one(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", failing(fcntl.flock, errno.EWOULDBLOCK, times=1))
    with pytest.raises(InputError, match="another process"), resumable_file(tmp_path / "a", keep=True):
        pass


def test_what_numba_cannot_keep_is_compiled_all_the_same(monkeypatch, caplog):
    def nowhere(*_):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    for patch, words in (
        ((caching.CacheImpl, "_locator_classes", []), "(no folder is writable)"),
        ((caching.IndexDataCacheFile, "save", nowhere), "(Disk quota exceeded)"),
    ):
        with monkeypatch.context() as context:
            context.setattr(*patch)
            assert compiled("int64(int64)")(lambda x: x + 1)(2) == 3
        assert words in caplog.text and "NUMBA_CACHE_DIR" in caplog.text
