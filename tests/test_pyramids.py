"""Pyramids against a float64 area mean written in ten lines, and canvases against the pyramid they are cut from."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import ome_zarr_models.v04.image
import ome_zarr_models.v05
import pytest
import tifffile
import zarr
from forks import with_forks
from launching import MORE, gigapipe, kill
from PIL import Image, ImageCms

from gigapipe.errors import InputError
from gigapipe.evaluation.report import slides
from gigapipe.evaluation.report_pictures import Place
from gigapipe.pyramids import Pyramid, blocks
from gigapipe.pyramids.build import build_pyramid
from gigapipe.pyramids.canvas import corner, lost_tissue, read_canvas
from gigapipe.pyramids.files import check, files_of
from gigapipe.pyramids.reading import read_pixels
from gigapipe.pyramids.settings import Settings
from gigapipe.pyramids.store import arrays
from gigapipe.pyramids.verify import verify_chunks
from gigapipe.slides.levels import OpenSlideLevel, TiffLevel, open_level
from gigapipe.slides.phantom import cohort, render, write_slide
from gigapipe.slides.reader import Slide


def reference_mean(image: np.ndarray, size: int, ratio: float) -> np.ndarray:
    """Area mean along the first axis, by differences of the running integral."""
    integral = np.concatenate([np.zeros((1, *image.shape[1:])), image.cumsum(axis=0, dtype=np.float64)])
    edges = np.minimum(np.arange(size + 1) * ratio, len(image))
    whole = np.minimum(edges.astype(int), len(image) - 1)
    column = (-1,) + (1,) * (image.ndim - 1)
    at_edges = integral[whole] + (edges - whole).reshape(column) * image[whole]
    return np.diff(at_edges, axis=0) / np.diff(edges).reshape(column)


def assert_exact(pyramid: Pyramid, slide: Slide) -> None:
    level0 = slide.read(0, 0, *slide.shape)
    for mpp in pyramid.resolutions:
        stored = pyramid.array(mpp)[:].transpose(1, 2, 0)
        expected_shape = tuple(max(1, round(n * own / mpp)) for n, own in zip(slide.shape, slide.mpp, strict=True))
        assert stored.shape[:2] == expected_shape
        down = reference_mean(level0, stored.shape[0], mpp / slide.mpp[0])
        mean = reference_mean(down.swapaxes(0, 1), stored.shape[1], mpp / slide.mpp[1]).swapaxes(0, 1)
        difference = abs(stored - np.floor(mean + 0.5))
        assert difference.max() <= 1 and difference.mean() <= 0.01, (mpp, difference.max(), difference.mean())


@pytest.fixture(scope="module")
def phantom_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "phantom.svs"
    write_slide(path, render(cohort(patients=6)[0]))
    return path


def test_a_phantom_is_downsampled_exactly_at_any_ratio(phantom_path, tmp_path):
    # Chunks of 128 px, so that seams are crossed; ratios 1, 1.5, 1.9763, 2, 7.9 and one larger than the slide.
    resolutions = [0.5, 0.75, 0.98815, 1.0, 3.95, 2000.0]
    build_pyramid(phantom_path, tmp_path / "p", resolutions, Settings(chunk=128))
    with Slide(phantom_path) as slide:
        assert_exact(Pyramid(tmp_path / "p"), slide)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_blocks_leave_no_seam_and_depend_on_nobody(phantom_path, tmp_path, monkeypatch, scheduler):
    """Blocks that hold whole chunks of the finest resolution, and pieces of the others'; in threads and processes."""
    monkeypatch.setattr(blocks, "BLOCK", (100, 230))
    resolutions = [0.75, 0.98815, 1.5, 7.3, 300.0]
    build_pyramid(phantom_path, tmp_path / "p", resolutions, Settings(chunk=64), scheduler=scheduler)
    with Slide(phantom_path) as slide:
        assert_exact(Pyramid(tmp_path / "p"), slide)
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["image.zarr", "metadata.sha256", "overview.png"]


def test_shards_hold_the_same_pixels(phantom_path, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", (300, 300))
    build_pyramid(phantom_path, tmp_path / "p", [0.5, 1.5], Settings(chunk=64, shard=128))
    with Slide(phantom_path) as slide:
        assert_exact(Pyramid(tmp_path / "p"), slide)
    array = Pyramid(tmp_path / "p").array(0.5)
    assert array.shards == (3, 128, 128) and array.chunks == (3, 64, 64)
    files = [p for p in (tmp_path / "p/image.zarr/0/c").rglob("*") if p.is_file()]
    assert len(files) == (-(-array.shape[1] // 128)) * (-(-array.shape[2] // 128))


@pytest.mark.slow
def test_a_real_slide_is_downsampled_exactly_and_keeps_its_mean(shared, tmp_path):
    path = shared / "data/slides/CMU-1-Small-Region.svs"
    gigapipe("pyramid", path, tmp_path / "p", "--mpp", 0.5, 0.99, 4)
    pyramid = Pyramid(tmp_path / "p")
    with Slide(path) as slide:
        assert_exact(pyramid, slide)
        level0 = slide.read(0, 0, *slide.shape).mean(axis=(0, 1))
    for mpp in pyramid.resolutions:
        mean = pyramid.array(mpp)[:].mean(axis=(1, 2))
        print(mpp, "µm/px, mean per channel:", mean, "level 0:", level0)
        assert abs(mean - level0).max() < 1


@pytest.mark.slow
def test_the_same_region_as_dicom_differs_as_its_jpeg_does(shared, tmp_path):
    """Its frames were compressed again, as YCbCr, and its metadata calls them RGB."""
    paths = {
        "svs": shared / "data/slides/CMU-1-Small-Region.svs",
        "dicom": shared / "data/slides/cmu-1-dicom/level-0-frames-0-30.dcm",
    }
    level0 = []
    for name, path in paths.items():
        build_pyramid(path, tmp_path / name, [1, 4])
        with Slide(path) as slide:
            assert_exact(Pyramid(tmp_path / name), slide)
            level0.append(slide.read(0, 0, *slide.shape).astype(int))
    jpeg = abs(level0[0] - level0[1]).mean()
    for mpp in (1, 4):
        ours, theirs = (Pyramid(tmp_path / name).array(mpp)[:].astype(int) for name in paths)
        difference = abs(ours - theirs).mean()
        print(f"{mpp} µm/px: {difference:.2f} grey levels, level 0: {jpeg:.2f}")
        assert difference < jpeg < 5
        assert abs(ours.mean((1, 2)) - theirs.mean((1, 2))).max() < 1


@pytest.mark.slow
def test_composed_lung_slides_are_downsampled_exactly(shared, tmp_path):
    script = shared / "tools/make_lung_slides.py"
    subprocess.run([sys.executable, script, tmp_path / "lung", "--per-class", "1"], check=True)
    path = sorted((tmp_path / "lung").glob("*.svs"))[0]
    build_pyramid(path, tmp_path / "p", [1, 1.9763, 3.9526, 7.9])
    with Slide(path) as slide:
        assert_exact(Pyramid(tmp_path / "p"), slide)


def test_the_store_is_ome_zarr_with_physical_scale(phantom_path, tmp_path):
    build_pyramid(phantom_path, tmp_path / "p", [8, 2])
    group = zarr.open_group(tmp_path / "p" / "image.zarr", mode="r")
    ome = group.attrs["ome"]
    assert ome["version"] == "0.5"
    (multiscale,) = ome["multiscales"]
    assert [(a["name"], a.get("unit")) for a in multiscale["axes"]] == [
        ("c", None), ("y", "micrometer"), ("x", "micrometer")
    ]  # fmt: skip
    scales = [d["coordinateTransformations"][0]["scale"] for d in multiscale["datasets"]]
    assert scales == [[1, 2, 2], [1, 8, 8]]
    shifts = [d["coordinateTransformations"][1]["translation"] for d in multiscale["datasets"]]
    assert shifts == [[0, 0.75, 0.75], [0, 3.75, 3.75]]
    assert all(group[d["path"]].metadata.dimension_names == ("c", "y", "x") for d in multiscale["datasets"])
    source = Pyramid(tmp_path / "p").source
    assert source["name"] == "phantom.svs" and source["mpp"] == [0.5, 0.5] and len(source["md5"]) == 32


def test_the_store_is_valid_to_others(phantom_path, tmp_path):
    build_pyramid(phantom_path, tmp_path / "p", [1, 4])
    group = zarr.open_group(tmp_path / "p/image.zarr", mode="r")
    image = ome_zarr_models.v05.Image.from_zarr(group)
    assert [d.path for d in image.ome_attributes.multiscales[0].datasets] == ["0", "1"]
    label = ome_zarr_models.v05.ImageLabel.from_zarr(group["labels/tissue"])
    assert label.ome_attributes.image_label.colors[0].label_value == 1
    build_pyramid(phantom_path, tmp_path / "old", [1, 4], Settings(ome_zarr="0.4"))
    old = zarr.open_group(tmp_path / "old/image.zarr", mode="r")
    for attributes in (old.attrs, old["labels/tissue"].attrs):
        found = ome_zarr_models.v04.image.ImageAttrs.model_validate(attributes.asdict())
        assert [d.path for d in found.multiscales[0].datasets] == ["0", "1"]


@pytest.mark.slow
def test_a_dask_cluster_makes_the_same_store(phantom_path, tmp_path):
    dask = str(Path(sys.executable).with_name("dask"))
    said = tmp_path / "scheduler.json"
    where = ["--scheduler-file", str(said), "--no-dashboard"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    processes = [subprocess.Popen([dask, "scheduler", "--host", "127.0.0.1", "--port", "0", *where], **quiet)]
    try:
        worker = [dask, "worker", "--nthreads", "1", "--host", "127.0.0.1", *where]
        processes += [subprocess.Popen(worker, **quiet) for _ in range(2)]
        while not said.exists():
            assert processes[0].poll() is None
            time.sleep(0.1)
        address = json.loads(said.read_text())["address"]
        gigapipe("pyramid", phantom_path, tmp_path / "cluster", "--mpp", 1, 4, "--scheduler", address)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    gigapipe("pyramid", phantom_path, tmp_path / "threads", "--mpp", 1, 4)
    assert contents(tmp_path / "cluster") == contents(tmp_path / "threads")


def test_a_pyramid_appears_only_when_whole(phantom_path, tmp_path):
    torn = tmp_path / "torn.svs"
    torn.write_bytes(phantom_path.read_bytes()[: phantom_path.stat().st_size // 2])
    build_pyramid(phantom_path, tmp_path / "p", [8])
    before = (tmp_path / "p" / "image.zarr" / "zarr.json").read_text()
    with pytest.raises(InputError, match="torn.svs"):
        build_pyramid(torn, tmp_path / "p", [8])
    assert (tmp_path / "p" / "image.zarr" / "zarr.json").read_text() == before
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["p"]


def test_a_resolution_finer_than_the_slide_is_refused(phantom_path, tmp_path):
    done = gigapipe("pyramid", phantom_path, tmp_path / "p", "--mpp", 0.25, 2, check=False)
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert "phantom.svs" in line and "0.5" in line and "0.25" in line
    assert not (tmp_path / "p").exists()


def test_a_slide_that_does_not_say_its_resolution_is_refused(phantom_path, tmp_path):
    silent = tmp_path / "silent.svs"
    # The description keeps its length, or the file's offsets would no longer hold.
    silent.write_bytes(phantom_path.read_bytes().replace(b"|MPP = 0.5", b"|XXX = 0.5"))
    done = gigapipe("pyramid", silent, tmp_path / "p", "--mpp", 2, check=False)
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert "silent.svs" in line and "µm" in line


def test_every_broken_slide_gives_one_line_or_a_right_store(shared, tmp_path):
    fates = {}
    for path in sorted((shared / "data/slides/broken").iterdir()):
        folder = tmp_path / "pyramids" / path.stem
        done = gigapipe("pyramid", path, folder, "--mpp", 8, check=False)
        assert "Traceback" not in done.stdout, done.stdout
        if done.returncode:
            (line,) = [line for line in done.stdout.splitlines() if line.startswith("gigapipe:")]
            assert path.name in line
            assert not folder.exists()
            fates[path.name] = line
        else:
            with Slide(path) as slide:
                assert_exact(Pyramid(folder), slide)
            fates[path.name] = Pyramid(folder).tissue
        assert not folder.with_name(folder.name + ".partial").exists()
    print(json.dumps(fates, indent=1, ensure_ascii=False))
    assert fates


def test_a_white_slide_has_no_tissue_and_a_phantom_has_it_in_the_middle(phantom_path, tmp_path):
    write_slide(tmp_path / "white.svs", np.full((700, 900, 3), 243, np.uint8))
    build_pyramid(tmp_path / "white.svs", tmp_path / "white", [4], Settings(keep_without_tissue=True))
    white = Pyramid(tmp_path / "white").tissue
    assert (white["box_um"], white["fraction"], white["verdict"]) == ([0, 0, 350, 450], 0, "none")
    build_pyramid(phantom_path, tmp_path / "p", [4])
    tissue = Pyramid(tmp_path / "p").tissue
    assert 0.2 < tissue["fraction"] < 0.6
    top, left, bottom, right = tissue["box_um"]
    assert 250 < bottom - top < 420 and 250 < right - left < 420


def test_pen_marks_and_dust_are_no_tissue(tmp_path):
    rgb = render(cohort(patients=6)[0])
    marked = np.pad(rgb, ((0, 200), (0, 200), (0, 0)), mode="edge")
    marked[:, rgb.shape[1] :] = marked[rgb.shape[0] :] = rgb[2, 2]  # glass
    clean = marked.copy()
    for i, ink in enumerate([(40, 70, 190), (30, 140, 60), (20, 20, 25)]):  # blue, green, black
        marked[rgb.shape[0] + 30 + 50 * i :][:20, 20:-20] = ink
    marked[40:43, -100:-97] = (150, 60, 140)  # a speck of stain
    tissues = []
    for name, pixels in (("clean", clean), ("marked", marked)):
        write_slide(tmp_path / f"{name}.svs", pixels)
        build_pyramid(tmp_path / f"{name}.svs", tmp_path / name, [4])
        tissues.append(Pyramid(tmp_path / name).tissue)
    assert np.allclose(tissues[0]["box_um"], tissues[1]["box_um"], atol=2) and tissues[0]["fraction"] > 0.1
    assert abs(tissues[0]["fraction"] - tissues[1]["fraction"]) < 0.005


def test_a_canvas_is_the_slide_about_its_tissue_and_white_outside(phantom_path, tmp_path):
    build_pyramid(phantom_path, tmp_path / "p", [4])
    pyramid = Pyramid(tmp_path / "p")
    stored = pyramid.array(4)[:]
    for size in (64, 208):  # smaller than the slide, and larger
        canvas = read_canvas(pyramid, 4, size)
        row, column = corner(pyramid, 4, size)
        padded = np.pad(stored, ((0, 0), (size, size), (size, size)), constant_values=255)
        assert (canvas == padded[:, row + size : row + 2 * size, column + size : column + 2 * size]).all()
        part = read_canvas(pyramid, 4, size, (10, 33), (size - 7, size))
        assert (part == canvas[:, 10:33, -7:]).all()
    assert lost_tissue(pyramid, 4, 208) == 0 < lost_tissue(pyramid, 4, 64) < 1


def test_a_missing_pyramid_or_resolution_is_named(phantom_path, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        Pyramid(tmp_path / "nowhere")
    build_pyramid(phantom_path, tmp_path / "p", [4])
    with pytest.raises(InputError, match="has 4 µm/px, not 2"):
        Pyramid(tmp_path / "p").array(2)
    shutil.rmtree(tmp_path / "p" / "image.zarr")
    with pytest.raises(InputError, match="no pyramid"):
        Pyramid(tmp_path / "p")


def written(path, rgb, description="MPP = 0.25|AppMag = 40", **options):
    """A slide as Aperio's, of one level."""
    rows, columns = rgb.shape[:2]
    header = f"Aperio Image Library v12.0.0\r\n{columns}x{rows} [0,0 {columns}x{rows}] (128x128) |"
    options = {"photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 90}} | options
    tifffile.imwrite(
        path, rgb, tile=(128, 128), description=header + description, metadata=None, software=False, **options
    )
    return path


JPEG2000 = {"photometric": "rgb", "compressionargs": {"level": 0, "reversible": True}}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"photometric": "ycbcr", "subsampling": (2, 1)},
        {"photometric": "ycbcr", "subsampling": (2, 2)},
        {"compression": "APERIO_JP2000_RGB", **JPEG2000},
    ],
    ids=["RGB JPEG", "4:2:2", "4:2:0", "JPEG 2000"],
)
def test_tiles_are_decoded_directly_where_they_are_as_openslide_reads_them(tmp_path, options):
    pixels = render(cohort(patients=6)[1])[:301, :397]
    with Slide(written(tmp_path / "s.svs", pixels, **options)) as slide:
        level = open_level(slide)
        assert isinstance(level, TiffLevel)
        assert (level.read(0, 0, *slide.shape) == slide.read(0, 0, *slide.shape)).all()
        assert (level.read(100, 30, 77, 300) == slide.read(100, 30, 77, 300)).all()
        if "JP2000" in str(options):  # without loss
            assert (level.read(0, 0, *slide.shape) == pixels).all()


def test_a_tile_between_two_readers_is_decoded_once(tmp_path):
    pixels = render(cohort(patients=6)[1])[:301, :397]
    with Slide(written(tmp_path / "s.svs", pixels)) as slide:
        level = TiffLevel(slide)
        whole, decoded, decode = level.read(0, 0, 301, 397), [], level._decode
        level._decode = lambda *tile: decoded.append(tile) or decode(*tile)
        above = [level.read(0, 0, 200, 200), level.read(0, 200, 200, 197)]
        below = [level.read(200, 0, 101, 200), level.read(200, 200, 101, 197)]
    assert (np.concatenate([np.concatenate(above, 1), np.concatenate(below, 1)]) == whole).all()
    assert len(decoded) == 13  # of 3 × 4 tiles, one lies in all four parts


def test_tiles_that_decode_otherwise_are_left_to_openslide(tmp_path):
    """33003 says that the samples are YCbCr: OpenSlide converts them, tifffile does not."""
    pixels = render(cohort(patients=6)[1])[:301, :397]
    with Slide(written(tmp_path / "s.svs", pixels, compression="APERIO_JP2000_YCBC", **JPEG2000)) as slide:
        assert not (TiffLevel(slide).read(0, 0, *slide.shape) == slide.read(0, 0, *slide.shape)).all()
        assert isinstance(open_level(slide), OpenSlideLevel)
    build_pyramid(tmp_path / "s.svs", tmp_path / "p", [0.5])
    with Slide(tmp_path / "s.svs") as slide:
        assert_exact(Pyramid(tmp_path / "p"), slide)


def test_a_coarse_level_of_the_file_is_used_on_request(tmp_path):
    rgb = np.tile(render(cohort(patients=6)[0]), (3, 3, 1))[:1203, :1190]  # not multiples of 4
    write_slide(tmp_path / "s.svs", rgb)
    for source_level in ("exact", "fast"):
        build_pyramid(tmp_path / "s.svs", tmp_path / source_level, [1, 4], Settings(source_level=source_level))
    # At the ratio of a level itself, the output is that level, which ends before the slide does.
    build_pyramid(tmp_path / "s.svs", tmp_path / "level", [2], Settings(source_level="fast"))
    with Slide(tmp_path / "s.svs") as slide:
        level, stored = slide.read(0, 0, 300, 297, 1), Pyramid(tmp_path / "level").array(2)[:].transpose(1, 2, 0)
    assert slide.level_shapes[1] == (300, 297) and stored.shape == (301, 298, 3)
    assert (stored[:300, :297] == level).all() and (stored[300, :297] == level[299]).all()
    exact, fast = (Pyramid(tmp_path / name) for name in ("exact", "fast"))
    assert (exact.array(1)[:] == fast.array(1)[:]).all()  # from level 0, both
    difference = abs(exact.array(4)[:].astype(int) - fast.array(4)[:])
    print("fast against exact, 4 µm/px: mean", difference.mean(), "largest", difference.max())
    assert exact.array(4).shape == fast.array(4).shape and 0 < difference.mean() < 3


def test_mpp_is_taken_from_the_file_the_objective_or_the_user(tmp_path):
    pixels = np.full((300, 300, 3), 200, np.uint8)
    silent = written(tmp_path / "silent.svs", pixels, "AppMag = 40")
    with pytest.raises(InputError, match="silent.svs.*does not state"):
        Slide(silent)
    assert Slide(silent, assume_mpp=True).mpp == (0.25, 0.25)
    assert Slide(silent, mpp=0.3).mpp == (0.3, 0.3)
    for absurd in ("0.005", "350"):
        path = written(tmp_path / f"{absurd}.svs", pixels, f"MPP = {absurd}|AppMag = 40")
        with pytest.raises(InputError, match=f"{absurd}.svs.*its file says.*--unusual-mpp"):
            Slide(path, assume_mpp=True)
        with pytest.raises(InputError, match=f"{absurd}.svs.*that is given says.*--unusual-mpp"):
            Slide(path, mpp=float(absurd))
        assert Slide(path, unusual_mpp=True).mpp == (float(absurd), float(absurd))
        assert Slide(path, mpp=0.25).mpp == (0.25, 0.25)
    done = gigapipe("pyramid", silent, tmp_path / "p", "--mpp", 1, "--slide-mpp", 0.5, "--keep-without-tissue")
    assert done.returncode == 0 and Pyramid(tmp_path / "p").array(1).shape == (3, 150, 150)


@pytest.mark.parametrize(
    "codec, lost", [("jpeg", 1), ("jpeg", 0.5), ("APERIO_JP2000_YCBC", 1)], ids=["direct", "cut short", "OpenSlide"]
)
def test_a_damaged_tile_is_refused_with_its_place_or_white_and_counted(tmp_path, codec, lost):
    pixels = render(cohort(patients=6)[1])[:390, :390]
    options = {"compression": codec} if codec == "jpeg" else {"compression": codec, **JPEG2000}
    path = written(tmp_path / "s.svs", pixels, **options)
    build_pyramid(path, tmp_path / "whole", [0.5])
    with tifffile.TiffFile(path) as file:
        start, length = file.pages[0].dataoffsets[6], file.pages[0].databytecounts[6]  # second row, third column
    data = bytearray(path.read_bytes())
    data[start + length - int(lost * length) : start + length] = bytes(int(lost * length))
    path.write_bytes(data)
    done = gigapipe("pyramid", path, tmp_path / "p", "--mpp", 0.5, check=False)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("gigapipe:")]
    assert done.returncode == 1 and "s.svs" in line and "damaged near row" in line
    assert "Traceback" not in done.stdout and not (tmp_path / "p").exists()
    build_pyramid(path, tmp_path / "p", [0.5], Settings(damaged="white"))
    pyramid = Pyramid(tmp_path / "p")
    assert pyramid.source["damaged_tiles"] == [[128, 256]]
    expected = Pyramid(tmp_path / "whole").array(0.5)[:]
    expected[:, 64:128, 128:192] = 255
    assert (pyramid.array(0.5)[:] == expected).all()


def test_the_background_becomes_white_on_request(phantom_path, tmp_path):
    for clean in (False, True):
        build_pyramid(phantom_path, tmp_path / str(clean), [1, 4], Settings(clean_background=clean))
    dirty, cleaned = (Pyramid(tmp_path / str(clean)) for clean in (False, True))
    for mpp in (1, 4):
        before, after = dirty.array(mpp)[:], cleaned.array(mpp)[:]
        inside = dirty.outline_at(mpp, slice(0, before.shape[1]), slice(0, before.shape[2]))
        assert (after[:, inside] == before[:, inside]).all()
        assert (after[:, ~inside] == 255).all() and (before[:, ~inside] != 255).any()


def test_colours_follow_the_scanners_profile_on_request(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # Red and blue exchanged: a profile that nobody can overlook.
    swapped = profile.replace(b"rXYZ", b"tmp!").replace(b"bXYZ", b"rXYZ").replace(b"tmp!", b"bXYZ")
    pixels = np.full((300, 300, 3), (250, 120, 40), np.uint8)
    path = written(tmp_path / "s.svs", pixels, iccprofile=swapped)
    build_pyramid(path, tmp_path / "scanner", [1])
    build_pyramid(path, tmp_path / "srgb", [1], Settings(colours="srgb"))
    scanner, srgb = (Pyramid(tmp_path / name) for name in ("scanner", "srgb"))
    assert "sRGB" in scanner.source["icc_profile"] and srgb.settings["colours"] == "srgb"
    red, _, blue = scanner.array(1)[:].mean(axis=(1, 2))
    assert red > 240 and blue < 50
    red, _, blue = srgb.array(1)[:].mean(axis=(1, 2))
    assert blue > 240 and red < 50


def test_version_0_4_is_written_for_old_readers(phantom_path, tmp_path):
    build_pyramid(phantom_path, tmp_path / "new", [1, 4], Settings(chunk=128))
    build_pyramid(phantom_path, tmp_path / "old", [1, 4], Settings(chunk=128, ome_zarr="0.4"))
    group = json.loads((tmp_path / "old/image.zarr/.zattrs").read_text())
    assert group["multiscales"][0]["version"] == "0.4" and len(group["omero"]["channels"]) == 3
    array = json.loads((tmp_path / "old/image.zarr/0/.zarray").read_text())
    assert array["zarr_format"] == 2 and array["dimension_separator"] == "/" and array["compressor"]["id"] == "blosc"
    new, old = (Pyramid(tmp_path / name) for name in ("new", "old"))
    for mpp in (1, 4):
        assert (new.array(mpp)[:] == old.array(mpp)[:]).all()
    assert (new.outline == old.outline).all()


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
def test_a_build_that_is_killed_goes_on_and_ends_the_same(tmp_path):
    rgb = np.tile(render(cohort(patients=6)[0]), (3, 4, 1))
    write_slide(tmp_path / "s.svs", rgb)
    program = (
        "import sys; from gigapipe.pyramids import blocks, build, settings; blocks.BLOCK = (256, 256);"
        "build.build_pyramid(sys.argv[1], sys.argv[2], [0.5, 1.3, 4], settings.Settings(chunk=128))"
    )

    def start(folder):
        command = ["python", "-c", program, tmp_path / "s.svs", folder]
        forks = with_forks(dict(os.environ), "python")
        return subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=tmp_path, start_new_session=True, env=forks)

    assert start(tmp_path / "whole").wait() == 0
    partial, marks = tmp_path / ".p.partial" / "work" / "done", {}
    random.seed(0)
    torn = False
    for _ in range(5 * MORE):
        process = start(tmp_path / "p")
        before = len(marks)
        while process.poll() is None and len(list(partial.glob("[bc]*"))) <= before:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.2))
        kill(process)
        if process.returncode == 0:
            break
        found = {path.name: path.stat().st_mtime_ns for path in partial.glob("[bc]*")}
        assert marks.items() <= found.items()  # what was done is not done again
        marks = found
        assert not (tmp_path / "p").exists()
        # What was being written may be torn, at the slide's edge too, where a chunk is less than a whole one.
        if "block-0-0-9" not in found:
            chunk = tmp_path / ".p.partial/image.zarr/0/c/0/0/19"
            chunk.parent.mkdir(parents=True, exist_ok=True)
            chunk.write_bytes(b"torn")
            torn = True
            # And what was half-written may lie there yet.
            (partial.parent.parent / ".overview.png.1.partial").write_bytes(b"torn")
    print(len(marks), "tasks were done when it was killed last")
    assert torn
    assert start(tmp_path / "p").wait() == 0
    assert contents(tmp_path / "p") == contents(tmp_path / "whole")


@pytest.mark.parametrize("settings", [{"shard": 256}, {"ome_zarr": "0.4"}, {}], ids=["shards", "0.4", "white"])
def test_verify_finds_nothing_in_a_whole_store(tmp_path, settings):
    pixels = np.full((700, 900, 3), 255, np.uint8)
    pixels[:, 300:400] = 240  # elsewhere a chunk may be all white
    write_slide(tmp_path / "s.svs", pixels)
    build_pyramid(
        tmp_path / "s.svs", tmp_path / "p", [0.5, 2], Settings(chunk=128, keep_without_tissue=True, **settings)
    )
    assert not Pyramid(tmp_path / "p").outline.any()
    done = gigapipe("verify", tmp_path / "p", "--slide", tmp_path / "s.svs")
    assert "all pixels identical" in done.stdout
    next(path for path in (tmp_path / "p/image.zarr/0").rglob("[0-9]") if path.is_file()).unlink()
    assert "1 files are missing" in gigapipe("verify", tmp_path / "p", check=False).stdout


def test_verify_finds_what_is_missing_damaged_or_another(phantom_path, tmp_path):
    build_pyramid(phantom_path, tmp_path / "p", [0.5, 1.3, 4], Settings(chunk=128))
    done = gigapipe("verify", tmp_path / "p", "--slide", phantom_path)
    assert "all chunks are present and intact" in done.stdout and "all pixels identical" in done.stdout

    def spoilt(change):
        shutil.rmtree(tmp_path / "q", ignore_errors=True)
        shutil.copytree(tmp_path / "p", tmp_path / "q")
        change(tmp_path / "q/image.zarr/0/c/0/1/1")
        done = gigapipe("verify", tmp_path / "q", "--slide", phantom_path, check=False)
        assert done.returncode == 1 and "Traceback" not in done.stdout
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("gigapipe:")]
        return line

    def flip(path):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def replace(path):
        shutil.copy(path.parent.parent / "0" / "0", path)

    assert "1 files are missing" in spoilt(lambda path: path.unlink())
    assert "at 0.5 µm/px its chunk 0/1/1 is damaged" in spoilt(flip)
    assert "at 0.5 µm/px its chunk 0/1/1 is damaged" in spoilt(replace)  # by what is whole elsewhere


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_of_flipped_bits_in_a_store_none_is_silent(phantom_path, tmp_path, version):
    """Not in its chunks, nor in what says how to read them."""
    build_pyramid(phantom_path, tmp_path / "p", [4], Settings(chunk=128, ome_zarr=version))

    def read(folder: Path) -> tuple:
        pyramid = Pyramid(folder)
        verify_chunks(pyramid)
        array = pyramid.array(4)
        pixels = read_pixels(array, (0, array.shape[1]), (0, array.shape[2]))
        return pixels, pyramid.outline, pyramid.source, pyramid.tissue, pyramid.settings

    whole, chance = read(tmp_path / "p"), random.Random(0)
    files = sorted(path for path in (tmp_path / "p/image.zarr").rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    silent = told = 0
    for _ in range(40 * MORE):
        file = chance.choices(files, sizes)[0]
        data = file.read_bytes()
        flipped = bytearray(data)
        place = chance.randrange(len(data) * 8)
        flipped[place // 8] ^= 1 << place % 8
        file.write_bytes(flipped)
        try:
            found = read(tmp_path / "p")
            same = all(
                (a == b).all() if isinstance(a, np.ndarray) else a == b for a, b in zip(found, whole, strict=True)
            )
            silent += not same
        except Exception:  # told
            told += 1
        file.write_bytes(data)
    print(f"{told} of {40 * MORE} flips were told of")
    assert told > 20 * MORE and not silent


def test_a_store_without_checksums_is_used_with_a_word_and_gets_them(phantom_path, tmp_path, caplog):
    build_pyramid(phantom_path, tmp_path / "p", [4], Settings(chunk=128))
    (array,) = arrays(tmp_path / "p")
    del array.attrs["gigapipe"]  # as 0.1 wrote it
    (tmp_path / "p/metadata.sha256").unlink()
    old = Pyramid(tmp_path / "p").array(4)
    read_pixels(old, (0, 10), (0, 10))
    assert "has no checksums" in caplog.text
    assert "1 arrays have checksums now" in gigapipe("verify", tmp_path / "p", "--adopt").stdout
    next(path for path in (tmp_path / "p/image.zarr/0/c").rglob("*") if path.is_file()).unlink()
    with pytest.raises(ValueError, match="its chunk 0/0/0 is missing"):
        check(Pyramid(tmp_path / "p").array(4))


def test_a_canvas_is_shown(phantom_path, tmp_path):
    build_pyramid(phantom_path, tmp_path / "p", [4])
    done = gigapipe("canvas", tmp_path / "p", "--mpp", 4, "--canvas", 64, "--output", tmp_path / "c.png")
    shown = np.asarray(Image.open(tmp_path / "c.png"))
    assert (shown == read_canvas(Pyramid(tmp_path / "p"), 4, 64).transpose(1, 2, 0)).all()
    lost = lost_tissue(Pyramid(tmp_path / "p"), 4, 64)
    assert f"{lost:.0%} of the tissue" in done.stdout and lost > 0


def test_a_survey_tells_every_slides_fate(phantom_path, tmp_path, shared):
    broken = shared / "data/slides/broken/cmu-truncated-50pct.svs"
    gigapipe("pyramid", phantom_path, tmp_path / "pyramids/good", "--mpp", 4)
    gigapipe("pyramid", broken, tmp_path / "pyramids/bad", "--mpp", 4, "--leave-out")
    shutil.copytree(tmp_path / "pyramids/good", tmp_path / "pyramids/same")
    folders = [tmp_path / "pyramids" / name for name in ("good", "bad", "same")]
    assert "slides good and same are the same file" in gigapipe("survey", *folders, "--output", tmp_path).stdout
    assert "slides good and same are the same file" in slides(Place(tmp_path, tmp_path))["same_files"]
    assert "the same file" not in gigapipe("survey", *folders[:2], "--output", tmp_path).stdout
    good, bad = (line.split("\t") for line in (tmp_path / "slides.tsv").read_text().splitlines()[1:])
    assert good[:2] == ["good", "whole"] and bad[0] == "bad" and "cmu-truncated" in bad[1]
    assert Image.open(tmp_path / "slides.png").size[0] == 2 * 192
    with pytest.raises(InputError, match="excluded"):
        Pyramid(tmp_path / "pyramids/bad")


@pytest.mark.parametrize(
    "settings, least, most",
    [({"codec": "rounded"}, 1.3, 2), ({"codec": "jpeg", "ome_zarr": "0.4"}, 2, 60)],
    ids=["rounded", "jpeg"],
)
def test_lossy_codecs_are_smaller_and_say_what_they_lose(phantom_path, tmp_path, settings, least, most):
    build_pyramid(phantom_path, tmp_path / "p", [1, 3.95], Settings(chunk=128))
    build_pyramid(phantom_path, tmp_path / "q", [1, 3.95], Settings(chunk=128, **settings))
    exact, lossy = Pyramid(tmp_path / "p"), Pyramid(tmp_path / "q")
    assert exact.codec == {"name": "zstd", "mean_error": [0, 0], "largest_error": [0, 0]}
    assert lossy.codec["name"] == settings["codec"]
    for i, mpp in enumerate(lossy.resolutions):
        lost = abs(exact.array(mpp)[:].astype(int) - lossy.array(mpp)[:])
        assert lossy.codec["mean_error"][i] == round(lost.mean(), 3) and 0 < lost.mean() < 2
        assert lossy.codec["largest_error"][i] == lost.max() <= most
    sizes = [
        sum(p.stat().st_size for p in (tmp_path / name / "image.zarr/0").rglob("*") if p.is_file()) for name in "pq"
    ]
    assert sizes[0] > least * sizes[1]
    done = gigapipe("verify", tmp_path / "q", "--slide", phantom_path)
    assert f"all pixels identical, except for the loss of codec {settings['codec']}" in done.stdout
    # And its chunks are read as others are.
    array = lossy.array(1)
    assert (read_pixels(array, (100, 300), (0, 200), tmp_path / "near") == array[:, 100:300, :200]).all()


@pytest.mark.parametrize("settings", [{}, {"codec": "jpeg", "ome_zarr": "0.4"}], ids=["zstd", "jpeg"])
def test_what_is_white_is_not_stored(phantom_path, tmp_path, settings):
    for clean in (False, True):
        build_pyramid(phantom_path, tmp_path / str(clean), [4], Settings(chunk=16, clean_background=clean, **settings))
    glass, array = (Pyramid(tmp_path / name).array(4) for name in ("False", "True"))
    rows, columns = (-(-n // 16) for n in array.shape[1:])
    padded = np.full((3, 16 * rows, 16 * columns), 255, np.uint8)
    padded[:, : array.shape[1], : array.shape[2]] = array[:]
    together = array.chunks[0]
    chunks = padded.reshape(3 // together, together, rows, 16, columns, 16)
    assert files_of(array) == int((chunks != 255).any((1, 3, 5)).sum()) < files_of(glass)
