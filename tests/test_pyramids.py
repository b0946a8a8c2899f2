"""Pyramids against a float64 area mean written in ten lines, and canvases against the pyramid they are cut from."""

import json
import shutil

import numpy as np
import pytest
import zarr
from conftest import gigapipe

from gigapipe.errors import InputError
from gigapipe.pyramids import Pyramid
from gigapipe.pyramids.build import build_pyramid
from gigapipe.pyramids.canvas import corner, lost_tissue, read_canvas
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
    build_pyramid(phantom_path, tmp_path / "p", resolutions, chunk=128)
    with Slide(phantom_path) as slide:
        assert_exact(Pyramid(tmp_path / "p"), slide)


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
    build_pyramid(tmp_path / "white.svs", tmp_path / "white", [4])
    white = Pyramid(tmp_path / "white")
    assert white.tissue == {"box_um": [0, 0, 350, 450], "fraction": 0}
    build_pyramid(phantom_path, tmp_path / "p", [4])
    tissue = Pyramid(tmp_path / "p").tissue
    assert 0.2 < tissue["fraction"] < 0.6
    top, left, bottom, right = tissue["box_um"]
    assert 250 < bottom - top < 420 and 250 < right - left < 420


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
    with pytest.raises(InputError, match="holds 4 µm/px, not 2"):
        Pyramid(tmp_path / "p").array(2)
    shutil.rmtree(tmp_path / "p" / "image.zarr")
    with pytest.raises(InputError, match="no pyramid"):
        Pyramid(tmp_path / "p")
