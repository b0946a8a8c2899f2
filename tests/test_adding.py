"""A resolution that a pyramid gets later: what the slide would have given at once, and nothing else changed."""

import json
import os
import shutil

import numpy as np
import pytest
from launching import gigapipe

from gigapipe.errors import InputError
from gigapipe.pyramids import Pyramid
from gigapipe.pyramids.adding import add_resolutions
from gigapipe.pyramids.build import build_pyramid
from gigapipe.pyramids.made_of import Slides, resolutions_of
from gigapipe.pyramids.settings import Settings, open_slide
from gigapipe.pyramids.verify import verify_chunks, verify_pixels
from gigapipe.slides.phantom import cohort, render, write_slide

AT_ONCE = [2.0, 3.0, 4.0, 8.0, 16.0]
SETTINGS = {
    "0.5": Settings(chunk=128),
    "0.4": Settings(chunk=128, ome_zarr="0.4", codec="rounded"),
}


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "s.svs"
    write_slide(path, render(cohort(patients=6)[0]))
    return path


@pytest.fixture(scope="module", params=["0.5", pytest.param("0.4", marks=pytest.mark.slow)])
def whole(request, slide, tmp_path_factory):
    """A pyramid of all resolutions, and one of two of them, made with the same settings."""
    folder = tmp_path_factory.mktemp(f"whole-{request.param}")
    build_pyramid(slide, folder / "whole", AT_ONCE, SETTINGS[request.param])
    build_pyramid(slide, folder / "part", [2.0, 8.0], SETTINGS[request.param])
    return folder


def files_in(folder):
    """Files of chunks: where, when written, and what."""
    return {
        path.relative_to(folder): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("zarr.json", ".zattrs", ".zgroup", "metadata.sha256")
    }


def same_pixels(pyramid, other, mpp):
    return bool((pyramid.array(mpp)[:] == other.array(mpp)[:]).all())


def test_what_is_added_is_what_is_made_at_once_and_the_rest_is_untouched(whole, slide, tmp_path):
    folder = shutil.copytree(whole / "part", tmp_path / "part")
    before = files_in(folder)
    assert add_resolutions(folder, [16.0, 8.0, 3.0], slide) == [3.0, 16.0]
    after = files_in(folder)
    assert before.items() <= after.items()
    pyramid, at_once = Pyramid(folder), Pyramid(whole / "whole")
    assert pyramid.resolutions == resolutions_of(folder) == [2.0, 3.0, 8.0, 16.0]
    assert all(same_pixels(pyramid, at_once, mpp) and pyramid.scale(mpp) == at_once.scale(mpp) for mpp in (2, 3, 8, 16))
    assert verify_chunks(pyramid) and (pyramid.outline == at_once.outline).all()
    with open_slide(slide, Settings(**pyramid.settings)) as opened:
        assert verify_pixels(pyramid, opened) == 8 * 4
    errors = [at_once.codec["largest_error"][at_once.resolutions.index(mpp)] for mpp in pyramid.resolutions]
    assert pyramid.codec["largest_error"] == errors
    levels = {
        group: len(json.loads(text)["attributes"]["ome"]["multiscales"][0]["datasets"])
        for group in (".", "labels/tissue")
        if (file := folder / "image.zarr" / group / "zarr.json").exists() and (text := file.read_text())
    }
    assert len(set(levels.values())) <= 1  # the format wants as many of a label as of its image
    assert add_resolutions(folder, [3.0], slide) == [] and {path.name for path in tmp_path.iterdir()} == {"part"}


@pytest.mark.slow
def test_a_store_is_whole_whenever_it_is_cut_short(whole, slide, tmp_path, monkeypatch):
    """Each renaming, and each beginning of a file, is the last that a run does."""
    reached, replace = 0, os.replace
    folder = shutil.copytree(whole / "part", tmp_path / "part")
    build_pyramid(slide, tmp_path / ".part.added", [4.0], Settings(**Pyramid(folder).settings))

    class Killed(Exception):
        pass

    for at in range(20):
        count = 0

        def cut(*names, last=at):
            nonlocal count
            count += 1
            if count > last:
                raise Killed
            replace(*names)

        with monkeypatch.context() as patch:
            patch.setattr("gigapipe.atomic.os.replace", cut)
            patch.setattr("gigapipe.pyramids.adding.build_pyramid", lambda *_: None)
            try:
                add_resolutions(folder, [4.0], slide)
                break
            except Killed:
                reached += 1
        pyramid = Pyramid(folder)
        assert pyramid.resolutions in ([2.0, 8.0], [2.0, 4.0, 8.0])
        assert verify_chunks(pyramid)
        if pyramid.resolutions == [2.0, 8.0]:  # what was taken of the other store is there again
            folder_of_next = tmp_path / ".part.added"
            shutil.rmtree(folder_of_next, ignore_errors=True)
            build_pyramid(slide, folder_of_next, [4.0], Settings(**pyramid.settings))
    assert reached >= 3
    assert same_pixels(Pyramid(folder), Pyramid(whole / "whole"), 4.0) and verify_chunks(Pyramid(folder))


def test_without_the_slide_it_is_made_of_the_next_finer_one_with_the_error_that_it_says(whole, slide, tmp_path, caplog):
    folder = shutil.copytree(whole / "part", tmp_path / "part")
    assert add_resolutions(folder, [4.0, 3.0], None) == [3.0, 4.0]
    pyramid, at_once = Pyramid(folder), Pyramid(whole / "whole")
    lost = pyramid.codec["largest_error"]
    assert pyramid.made_from[4.0] == {"level": 2.0, "largest_error": 1 + lost[0]}
    assert pyramid.made_from[3.0] == {"level": 2.0, "largest_error": None} and "an unbounded error" in caplog.text
    differences = {mpp: abs(pyramid.array(mpp)[:].astype(int) - at_once.array(mpp)[:]) for mpp in (3.0, 4.0)}
    print({mpp: (found.mean(), found.max()) for mpp, found in differences.items()})
    assert 0 < differences[4.0].max() <= 1 + lost[0] + lost[pyramid.resolutions.index(4.0)]
    assert differences[3.0].mean() < 6
    with open_slide(slide, Settings(**pyramid.settings)) as opened:
        assert verify_pixels(pyramid, opened) == 8 * 3
    with pytest.raises(InputError, match=r"1 µm/px is finer than all its resolutions; also give its slide"):
        add_resolutions(folder, [1.0], None)
    assert Pyramid(folder).resolutions == [2.0, 3.0, 4.0, 8.0] and verify_chunks(Pyramid(folder))


def test_another_slide_adds_nothing(whole, tmp_path):
    folder = shutil.copytree(whole / "part", tmp_path / "part")
    write_slide(tmp_path / "s.svs", render(cohort(patients=6)[1]))
    done = gigapipe("add", folder, "--mpp", 4, "--slide", tmp_path / "s.svs", check=False)
    assert done.returncode == 1 and "is not the file that pyramid" in done.stdout.splitlines()[-1]
    assert Pyramid(folder).resolutions == [2.0, 8.0]
    done = gigapipe("add", folder, "--mpp", 4, "--output", tmp_path / "mark.json")
    assert json.loads((tmp_path / "mark.json").read_text()) == {"resolutions": [2.0, 4.0, 8.0]}


def test_a_slide_is_read_only_where_its_date_is_another(whole, slide, tmp_path, monkeypatch):
    own = shutil.copy2(slide, tmp_path / "s.svs")
    folder, known, read = whole / "part", tmp_path / "slides.json", []
    md5_of_file = Slides.another.__globals__["md5_of_file"]
    monkeypatch.setitem(Slides.another.__globals__, "md5_of_file", lambda path: read.append(path) or md5_of_file(path))
    made = own.stat().st_mtime + 1

    def another():
        slides = Slides(known)
        found = slides.another(own, folder, made)
        slides.keep()
        return found

    assert another() is None and not read
    os.utime(own, (made + 5, made + 5))
    assert another() is None and len(read) == 1
    assert another() is None and len(read) == 1  # once for each date
    text = bytearray(own.read_bytes())
    text[-1] ^= 1
    own.write_bytes(bytes(text))
    os.utime(own, (made - 50, made - 50))  # older than the pyramid, and of its bytes
    assert another().startswith("MD5 ") and len(read) == 2
    own.write_bytes(bytes(text[:-1]))
    assert another() == f"{len(text) - 1} bytes" and len(read) == 2


def test_pixels_of_divided_pixels_are_a_mean_still(tmp_path, slide):
    """From 2 to 3 µm: a white store stays white, and the mean of all is kept."""
    build_pyramid(slide, tmp_path / "p", [2.0])
    add_resolutions(tmp_path / "p", [3.0], None)
    pyramid = Pyramid(tmp_path / "p")
    assert np.mean(pyramid.array(3.0)[:]) == pytest.approx(np.mean(pyramid.array(2.0)[:]), abs=0.5)
