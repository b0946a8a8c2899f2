"""What a slide's file says of itself is checked before it is used, and refused in one line that names the slide."""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import openslide
import pytest
import tifffile
from launching import gigapipe

from gigapipe.configuration import Configuration
from gigapipe.errors import InputError
from gigapipe.evaluation.design import check_resolutions
from gigapipe.pyramids import Pyramid, build
from gigapipe.pyramids.build import build_pyramid
from gigapipe.pyramids.canvas import corner, lost_tissue
from gigapipe.pyramids.folders import left_out
from gigapipe.pyramids.settings import Replaced, Settings
from gigapipe.slides.crashes import ask
from gigapipe.slides.level_checks import fault
from gigapipe.slides.levels import OpenSlideLevel, TiffLevel, open_level
from gigapipe.slides.reader import Slide

JPEG = {"photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 90}}
JPEG2000 = {"photometric": "rgb", "compression": "APERIO_JP2000_YCBC", "compressionargs": {"level": 0}}


def picture(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Stained blobs of some 100 px on glass."""
    coarse = np.random.default_rng(seed).random((rows // 64 + 2, columns // 64 + 2, 1))
    place = np.meshgrid(np.arange(rows) / 64, np.arange(columns) / 64, indexing="ij")
    (i, j), (y, x) = ([p.astype(int) for p in place], [(p % 1)[..., None] for p in place])
    smooth = (coarse[i, j] * (1 - x) + coarse[i, j + 1] * x) * (1 - y)
    smooth += (coarse[i + 1, j] * (1 - x) + coarse[i + 1, j + 1] * x) * y
    return (245 - smooth * (60, 150, 80)).astype(np.uint8)


def written(path, levels: list[np.ndarray], mpp=0.25, vendor="Aperio Image Library v12.0.0\r\n", **options):
    """A slide of these levels, in tiles of 128 px; as Aperio's, unless another `vendor` is said."""
    with tifffile.TiffWriter(path) as file:
        for number, pixels in enumerate(levels):
            header = f"{vendor}{pixels.shape[1]}x{pixels.shape[0]} [0,0 1x1] (128x128) |MPP = {mpp}|AppMag = 40"
            layout = {"tile": (128, 128), "description": header, "metadata": None, "software": False}
            file.write(pixels, subfiletype=int(number > 0), **layout, **(JPEG | options))
    return path


def smaller(pixels: np.ndarray, by: int) -> np.ndarray:
    rows, columns = (n // by for n in pixels.shape[:2])
    cut = pixels[: rows * by, : columns * by].reshape(rows, by, columns, by, 3)
    return cut.mean(axis=(1, 3)).round().astype(np.uint8)


def changed(path, tag: str, value, page: int = 0) -> None:
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[page].tags[tag].overwrite(value)


PIXELS = picture(1290, 1030)


def padded(pixels: np.ndarray) -> np.ndarray:
    """To whole tiles, in which it then lies otherwise than its size says."""
    rows, columns = (-n % 128 for n in pixels.shape[:2])
    return np.pad(pixels, ((0, rows), (0, columns), (0, 0)), constant_values=255)


@pytest.mark.parametrize(
    "level, expected",
    [
        (smaller(PIXELS, 4), None),
        (PIXELS[::4, ::4], None),  # sampled, not averaged; and rounded up
        (padded(smaller(PIXELS, 4)), "times fewer"),
        (smaller(picture(1290, 1030, seed=1), 4), "different image"),
        (smaller(PIXELS, 4)[::-1], "different image"),
        (np.full((322, 257, 3), 255, np.uint8), "different image"),
        # Smaller by 5 than it says, in a picture of the size that it says.
        (np.pad(smaller(PIXELS, 5), ((0, 64), (0, 51), (0, 0)), constant_values=255), "different image"),
    ],
    ids=["good", "sampled", "padded", "another", "turned", "white", "padded to the size"],
)
def test_a_level_that_is_not_what_it_says_is_not_used(tmp_path, level, expected):
    with Slide(written(tmp_path / "s.svs", [PIXELS, level])) as slide:
        found = fault(slide, 1)
    assert found is None if expected is None else expected in found, found


def test_glass_is_no_proof_that_two_pictures_are_one(tmp_path):
    island = np.full_like(PIXELS, 245)
    island[200:600, 300:700] = PIXELS[200:600, 300:700]
    for name, level, other in (("same", smaller(island, 4), False), ("turned", smaller(island, 4)[::-1], True)):
        with Slide(written(tmp_path / f"{name}.svs", [island, level])) as slide:
            assert ("different image" in (fault(slide, 1) or "")) == other


def test_a_level_that_lacks_a_tile_is_not_used(tmp_path):
    path = written(tmp_path / "s.svs", [PIXELS, smaller(PIXELS, 4)])
    changed(path, "TileByteCounts", [9, 9, 0, 9, 9, 9, 9, 9, 9], page=1)
    with Slide(path) as slide:
        assert fault(slide, 1) == "1 of its 9 tiles have no data"


def test_a_level_that_is_not_used_is_told_and_changes_nothing(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(build, "OVERVIEW", 256)
    build_pyramid(written(tmp_path / "one.svs", [PIXELS]), tmp_path / "one", [4])
    build_pyramid(written(tmp_path / "bad.svs", [PIXELS, padded(smaller(PIXELS, 4))]), tmp_path / "exact", [4])
    build_pyramid(tmp_path / "bad.svs", tmp_path / "fast", [4], Settings(source_level="fast"))
    assert caplog.text.count("bad.svs: its level 1 is not used") == 2
    one, *others = (Pyramid(tmp_path / name) for name in ("one", "exact", "fast"))
    for other in others:
        assert (other.array(4)[:] == one.array(4)[:]).all()
        assert other.tissue == one.tissue and list(other.source["unused_levels"]) == ["1"]
    assert one.source["unused_levels"] == {}


def test_a_slightly_coarser_slide_serves_within_the_tolerance(tmp_path):
    path = written(tmp_path / "s.svs", [PIXELS], mpp=0.2527)
    with pytest.raises(InputError, match=r"s.svs: has 0.2527 .* 0.25; .*mpp_tolerance: 0.011"):
        build_pyramid(path, tmp_path / "p", [0.25, 1])
    build_pyramid(path, tmp_path / "p", [0.25, 1], Settings(mpp_tolerance=0.011))
    pyramid = Pyramid(tmp_path / "p")
    assert pyramid.resolutions == [0.25, 1] and pyramid.settings["mpp_tolerance"] == 0.011
    assert pyramid.array(0.25).shape[1:] == PIXELS.shape[:2]
    assert pyramid.scale(0.25) == (0.2527, 0.2527) and pyramid.scale(1) == (1, 1)
    # Where a canvas lies is counted in what a pixel is.
    top, left, bottom, right = pyramid.tissue["box_um"]
    assert corner(pyramid, 0.25, 64) == (
        round((top + bottom) / 2 / 0.2527 - 32),
        round((left + right) / 2 / 0.2527 - 32),
    )
    assert lost_tissue(pyramid, 0.25, 64) == 1 - (64 * 0.2527) ** 2 / ((bottom - top) * (right - left))


@pytest.mark.parametrize(
    "options, reader", [(JPEG, TiffLevel), (JPEG2000, OpenSlideLevel)], ids=["direct", "OpenSlide"]
)
def test_a_tile_without_data_is_damage_whoever_reads(tmp_path, options, reader):
    path = written(tmp_path / "s.svs", [PIXELS[:390, :390]], **options)
    with tifffile.TiffFile(path) as file:
        counts = list(file.pages[0].databytecounts)
    counts[6] = 0
    changed(path, "TileByteCounts", counts)
    with Slide(path) as slide:
        level = open_level(slide)
        assert isinstance(level, reader)
        for which in (level, OpenSlideLevel(slide)):
            with pytest.raises(InputError, match="s.svs: damaged near row 128, column 256 .a tile without data.*white"):
                which.read(200, 380, 9, 9)
            assert which.read(0, 0, 128, 390).shape == (128, 390, 3)
    build_pyramid(path, tmp_path / "p", [0.25], Settings(damaged="white"))
    assert Pyramid(tmp_path / "p").source["damaged_tiles"] == [[128, 256]]


def test_before_anything_runs_a_coarser_slide_is_measured_by_the_same_tolerance(tmp_path):
    path = written(tmp_path / "s.svs", [PIXELS[:300, :300]], mpp=0.2527)
    resolutions = {"resolutions": [{"mpp": 0.25, "canvas": 9, "mesh": [1, 1, 1]}]}
    assert check_resolutions({path: None}, Configuration.of(resolutions | {"pyramids": {"mpp_tolerance": 0.011}})) > 75
    with pytest.raises(InputError, match="s.svs: has 0.2527"):
        check_resolutions({path: None}, Configuration.of(resolutions))


def test_a_vendor_that_leaves_out_tiles_may(tmp_path, monkeypatch):
    path = written(tmp_path / "s.svs", [PIXELS[:390, :390]])
    changed(path, "TileByteCounts", [0] * 16)
    monkeypatch.setattr(Slide, "vendor", "philips")
    with Slide(path) as slide:
        assert (open_level(slide).read(0, 0, 390, 390) == 255).all()


def broken_stream(path, change) -> None:
    """Change the bytes of the tile in the second row and column."""
    with tifffile.TiffFile(path) as file:
        start, length = file.pages[0].dataoffsets[5], file.pages[0].databytecounts[5]
    data = bytearray(path.read_bytes())
    tile = data[start : start + length]
    change(tile)
    assert len(tile) == length
    data[start : start + length] = tile
    path.write_bytes(data)


def early_end(tile):
    """An end among the data, so that libjpeg makes up the rest."""
    tile[-100:-98] = b"\xff\xd9"


def short_data(tile):
    """Fewer data than the picture needs, and nothing else that is wrong."""
    begin = tile.rindex(b"\xff\xda") + 14
    comment = (len(tile) - begin) // 2
    moved = tile[:2] + b"\xff\xfe" + (comment - 2).to_bytes(2, "big") + bytes(comment - 4) + tile[2:]
    tile[:] = moved[: len(tile) - 2] + b"\xff\xd9"


def other_frame(tile):
    """A frame of another size, for which a decoder would take 12 GB."""
    at = tile.index(b"\xff\xc0") + 5
    tile[at : at + 4] = b"\xff\xdc\xff\xdc"


@pytest.mark.parametrize("change", [early_end, short_data, other_frame])
def test_a_jpeg_that_openslide_refuses_is_refused_by_the_direct_path(tmp_path, change):
    path = written(tmp_path / "s.svs", [PIXELS[:390, :390]])
    broken_stream(path, change)
    assert not openslide_reads(path)
    with Slide(path) as slide:
        level = TiffLevel(slide)
        assert level.read(0, 0, 128, 390).shape == (128, 390, 3)
        with pytest.raises(InputError, match="s.svs: damaged near row 1"):
            level.read(0, 0, 390, 390)


def openslide_reads(path) -> bool:
    try:
        openslide.OpenSlide(path).read_region((128, 128), 0, (128, 128))
    except openslide.OpenSlideError:
        return False
    return True


def test_what_follows_the_end_of_a_jpeg_is_no_damage(tmp_path):
    """Some writers pad."""
    path = written(tmp_path / "s.svs", [PIXELS[:390, :390]])
    with tifffile.TiffFile(path) as file:
        data = file.pages[0].dataoffsets[5], file.pages[0].databytecounts[5]
        counts, offsets = list(file.pages[0].databytecounts), list(file.pages[0].dataoffsets)
    content = path.read_bytes()
    path.write_bytes(content + content[data[0] : sum(data)] + b"padding")
    counts[5], offsets[5] = data[1] + 7, len(content)
    changed(path, "TileByteCounts", counts)
    changed(path, "TileOffsets", offsets)
    with Slide(path) as slide:
        assert (TiffLevel(slide).read(0, 0, 390, 390) == slide.read(0, 0, 390, 390)).all()


def test_grey_at_the_end_of_a_tile_is_no_damage(tmp_path):
    pixels = PIXELS[:256, :256].copy()
    pixels[100:, 100:] = 128
    with Slide(written(tmp_path / "s.svs", [pixels])) as slide:
        assert (TiffLevel(slide).read(0, 0, 256, 256) == slide.read(0, 0, 256, 256)).all()


@pytest.mark.parametrize("torn", [False, True])
def test_a_slide_that_is_replaced_while_it_is_read_is_noticed(tmp_path, monkeypatch, torn):
    path = written(tmp_path / "s.svs", [PIXELS[:390, :390]])
    other = written(tmp_path / "other.svs", [PIXELS[-390:, -390:]])
    run = build._run

    def replace(*arguments):
        if torn:  # by one that is still being written
            other.write_bytes(other.read_bytes()[:20_000])
        else:
            found = run(*arguments)
            shutil.copystat(path, other)
        os.replace(other, path)
        return run(*arguments) if torn else found

    monkeypatch.setattr(build, "_run", replace)
    with pytest.raises(Replaced, match="s.svs: was replaced while it was read; run it again"):
        build_pyramid(path, tmp_path / "p", [1])
    assert not (tmp_path / "p").exists() and not (tmp_path / ".p.partial").exists()


@pytest.mark.parametrize(
    "tags, said",
    [
        ({"TileWidth": 65520, "TileLength": 65520}, "a tile of 65520 × 65520 pixels takes 17171 MB.*tile_memory"),
        ({"ImageWidth": 2_000_000, "ImageLength": 2_000_000}, "2000000 × 2000000 pixels need .* its table has 9"),
        ({"Orientation": 3}, "stored rotated or mirrored .TIFF orientation 3"),
    ],
    ids=["tile", "picture", "orientation"],
)
def test_what_a_tiff_says_is_refused_before_openslide_opens_it(tmp_path, monkeypatch, tags, said):
    path = written(tmp_path / "s.svs", [PIXELS[:300, :300]], extratags=[(274, 3, 1, 1, True)])
    Slide(path).close()
    for tag, value in tags.items():
        changed(path, tag, value)
    monkeypatch.setattr(openslide, "OpenSlide", None)
    with pytest.raises(InputError, match=f"s.svs: .*{said}"):
        Slide(path)


def test_tiles_may_take_what_is_given(tmp_path):
    path = written(tmp_path / "s.svs", [PIXELS[:300, :300]])
    with pytest.raises(InputError, match="s.svs: a tile of 128 × 128 .*tile_memory"):
        Slide(path, tile_memory=65_535)
    Slide(path, tile_memory=65_536).close()


def test_pictures_that_are_not_rgb_are_refused_by_name(tmp_path):
    options = {"tile": (128, 128), "resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER", "metadata": None}
    grey = PIXELS[:300, :300, 1]
    tifffile.imwrite(tmp_path / "grey.tif", grey, photometric="minisblack", **options)
    with pytest.raises(InputError, match="grey.tif: its image is greyscale"):
        Slide(tmp_path / "grey.tif")
    with tifffile.TiffWriter(tmp_path / "planes.tif") as file:
        for _ in range(3):
            file.write(grey, photometric="minisblack", **options)
    with pytest.raises(InputError, match="planes.tif: 3 pages of the same size contain one colour each"):
        Slide(tmp_path / "planes.tif")
    inks = PIXELS[:300, :300, [0, 1, 2, 0]]
    for name, colours in (("cmyk", {"photometric": "separated"}), ("infrared", {"photometric": "minisblack"})):
        tifffile.imwrite(tmp_path / f"{name}.tif", inks, planarconfig="contig", **colours, **options)
        with pytest.raises(InputError, match=f"{name}.tif: its image has 4 channels of"):
            Slide(tmp_path / f"{name}.tif")
    # In planes of one page OpenSlide reads what is there.
    planes = PIXELS[:300, :300].transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "separate.tif", planes, photometric="rgb", planarconfig="separate", **options)
    with Slide(tmp_path / "separate.tif") as slide:
        assert (open_level(slide).read(0, 0, 300, 300) == PIXELS[:300, :300]).all()


def test_a_profile_that_cannot_be_read_is_refused_where_colours_follow_it(tmp_path):
    path = written(tmp_path / "s.svs", [PIXELS[:300, :300]], iccprofile=b"\0\0\0\x80no profile" + bytes(116))
    with pytest.raises(InputError, match="s.svs: its ICC profile cannot be used.*colours: scanner"):
        build_pyramid(path, tmp_path / "p", [1], Settings(colours="srgb"))
    build_pyramid(path, tmp_path / "p", [1])
    assert Pyramid(tmp_path / "p").source["icc_profile"] == "unreadable"


def test_a_crash_over_one_slide_is_that_slides_fault_alone():
    fine, crash = (signal.SIGCHLD,), (signal.SIGSEGV,)
    first, second, third, last = ask(signal.raise_signal, [fine, crash, fine, crash])
    assert first.error is None and third.error is None
    for found in (second, last):
        assert "reading it crashed (SIGSEGV)" in str(found.error)
    (missing,) = ask(Slide, [("nowhere.svs",)])
    assert "nowhere.svs: no such file" in str(missing.error)


CRASHING = """
import ctypes
import openslide
def crash(path):
    ctypes.string_at(0)
openslide.OpenSlide = crash
"""


def test_a_slide_that_crashes_native_code_is_left_out(tmp_path, monkeypatch):
    """As the workflow calls it: a program, whose reader crashes."""
    (tmp_path / "sitecustomize.py").write_text(CRASHING)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    path = written(tmp_path / "s.svs", [PIXELS[:300, :300]])
    done = gigapipe("pyramid", path, tmp_path / "p", "--mpp", 1, "--leave-out", process=True)
    line, fate = done.stdout.splitlines()
    assert "s.svs: reading it crashed (SIGSEGV)" in line and fate == "excluded"
    assert "SIGSEGV" in left_out(tmp_path / "p")


def test_what_lies_in_the_working_folder_is_no_module_of_the_process_that_reads(tmp_path, monkeypatch):
    (tmp_path / "openslide.py").write_text("raise SystemExit(3)")
    path = written(tmp_path / "s.svs", [PIXELS[:300, :300]])
    monkeypatch.chdir(tmp_path)
    assert check_resolutions({path: None}, Configuration()) == 300 * 0.25


def test_what_is_told_to_end_ends_with_its_child(tmp_path):
    """SIGTERM reaches the child; a SIGKILL that only the parent gets ends both."""
    program = (
        "import os, sys, time; from gigapipe.cli.guard import run_apart; run_apart();"
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    for number in (signal.SIGTERM, signal.SIGKILL):
        parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        child = int(parent.stdout.readline())
        assert child != parent.pid
        parent.send_signal(number)
        assert parent.wait(10) == -number
        assert not parent.stdout.read()  # which ends when the child has ended
