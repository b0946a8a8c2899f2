"""How large pyramids become: about what is said before, and refused where the disk cannot hold it."""

import shutil
from types import SimpleNamespace

import pytest
from launching import gigapipe

from gigapipe.errors import InputError
from gigapipe.pyramids import sizes
from gigapipe.pyramids.build import build_pyramid
from gigapipe.pyramids.settings import Settings
from gigapipe.slides.crashes import Answer
from gigapipe.slides.phantom import cohort, render, write_slide


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "s.svs"
    write_slide(path, render(cohort(patients=6)[0]))
    return path


@pytest.mark.slow
def test_what_is_said_is_about_what_it_becomes(slide, tmp_path):
    for settings in (Settings(), Settings(codec="jpeg", ome_zarr="0.4")):
        build_pyramid(slide, tmp_path / settings.codec, [1, 4], settings)
        said = sizes.estimate(slide, [1, 4], settings)
        assert said.slide == slide.stat().st_size
        for i, expected in enumerate(said.pyramid):
            files = (tmp_path / settings.codec / f"image.zarr/{i}").rglob("*")
            became = sum(path.stat().st_size for path in files if path.is_file())
            assert 0.7 < expected / became < 1.4, (settings.codec, i, expected, became)
    done = gigapipe("sizes", slide, tmp_path / "nowhere.svs", "--mpp", 0.1, 1, 4, check=False)
    header, line, fault = (text.split("\t") for text in done.stdout.splitlines())
    assert header == ["slide", "µm per pixel", "bytes", "bytes at 0.1 µm", "bytes at 1 µm", "bytes at 4 µm"]
    assert line[:4] == [str(slide), "0.5", str(slide.stat().st_size), "finer than the slide"] and len(line) == 6
    assert done.returncode == 1 and "nowhere.svs: no such file" in fault[0]


def test_a_cohort_is_judged_by_the_slides_that_are_here(slide, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(sizes, "ask", lambda function, asked: [Answer(function(*each), None) for each in asked])
    own = slide.stat().st_size
    slides = {slide: (Settings(), 0), tmp_path / "b.svs": (Settings(), 2 * own), tmp_path / "c.svs": (Settings(), 0)}
    with caplog.at_level("INFO"):
        sizes.announce(slides, [1, 4], tmp_path / "results")
    whole = 3 * sum(sizes.estimate(slide, [1, 4], Settings()).pyramid)
    assert f"3 pyramids to write, from {sizes.amount(3 * own)} of slides and 1 slide of unknown size" in caplog.text
    assert (
        f"about {sizes.amount(whole)} (" in caplog.text
        and "estimated from 1 slide; free space on the disk of" in caplog.text
    )

    def disk_of(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free, total=0))
        sizes.announce(slides, [1, 4], tmp_path / "results")

    with caplog.at_level("INFO"):
        disk_of(0.9 * whole)
    assert "which may not be enough" in caplog.text
    with pytest.raises(InputError, match="3 pyramids to write.* at 1 µm/px, .*not enough: free some space.*codec"):
        disk_of(0.5 * whole)


def test_nothing_is_said_of_slides_that_are_not_here(tmp_path, caplog):
    with caplog.at_level("INFO"):
        sizes.announce({tmp_path / "a.svs": (Settings(), 10**15)}, [1], tmp_path)
    assert not caplog.text
