"""The tissue task: masks, learning them on whole slides, and what is found, as a user runs it."""

import numpy as np
import pandas as pd
import pytest
import yaml
import zarr
from launching import gigapipe
from PIL import Image
from projects import fresh_copy, make_results, snakemake

from gigapipe.evaluation.overlap import dice
from gigapipe.pyramids import Pyramid
from gigapipe.pyramids.build import build_pyramid
from gigapipe.pyramids.masks import make_mask, read_mask
from gigapipe.slides import phantom
from gigapipe.slides.tissue import tissue_outline

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tissue")
    phantom.write_slide(folder / "p.svs", phantom.render(phantom.cohort(patients=6)[0]))
    build_pyramid(folder / "p.svs", folder / "p", [2.0, 8.0])
    return folder / "p"


@pytest.mark.slow
def test_the_outline_is_where_a_phantom_has_tissue():
    for slide in phantom.cohort(patients=6):
        rng = np.random.default_rng(slide.seed)
        tissue = phantom._tissue(rng, *rng.integers(960, 1120, 2)) > 0.5
        assert dice(tissue_outline(phantom.render(slide), phantom.MPP), tissue) > 0.98


def test_a_mask_is_made_by_rule_or_taken_from_a_picture(pyramid, tmp_path):
    gigapipe("mask", pyramid, tmp_path / "found", "--mpp", 2)
    found = read_mask(tmp_path / "found")
    assert found.shape == Pyramid(pyramid).array(2.0).shape[1:] and 0.2 < found[:].mean() < 0.6
    label = zarr.open_group(tmp_path / "found/image.zarr", mode="r")["labels/tissue"]
    scale = label.attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"]
    assert scale == [2.0, 2.0]

    drawn = np.zeros((31, 30), bool)
    drawn[10:20, 5:25] = True
    np.save(tmp_path / "drawn.npy", drawn)
    Image.fromarray(drawn.astype(np.uint8) * 255).save(tmp_path / "drawn.png")
    for name in ("drawn.npy", "drawn.png"):
        gigapipe("mask", pyramid, tmp_path / name[-3:], "--mpp", 2, "--drawn", tmp_path / name)
        mask = read_mask(tmp_path / name[-3:])[:]
        rows, columns = mask.shape
        assert mask.mean() == pytest.approx(drawn.mean(), rel=0.05)
        assert mask[rows * 10 // 31 + 2 : rows * 20 // 31 - 2, columns // 6 + 2 : columns * 5 // 6 - 2].all()
    (tmp_path / "torn.png").write_bytes(b"no picture")
    done = gigapipe("mask", pyramid, tmp_path / "x", "--mpp", 2, "--drawn", tmp_path / "torn.png", check=False)
    assert done.returncode == 1 and "torn.png: cannot be read" in done.stdout and "Traceback" not in done.stdout
    assert not (tmp_path / "x").exists()


def test_a_real_slide_s_mask_lies_where_its_rule_finds_tissue(shared, tmp_path):
    build_pyramid(shared / "data/slides/CMU-1-Small-Region.svs", tmp_path / "p", [8.0])
    drawn = shared / "data/masks/tissue-mask-cmu-1-small-region.npy"
    gigapipe("mask", tmp_path / "p", tmp_path / "drawn", "--mpp", 8, "--drawn", drawn)
    gigapipe("mask", tmp_path / "p", tmp_path / "ours", "--mpp", 8)
    drawn, ours = (read_mask(tmp_path / name)[:] for name in ("drawn", "ours"))
    print(dice(ours, drawn), drawn.mean(), ours.mean())
    assert dice(ours, drawn) > 0.8


def test_a_mask_of_another_shape_is_refused_and_one_of_any_mode_read(pyramid, tmp_path):
    np.save(tmp_path / "turned.npy", np.ones((30, 90)))
    done = gigapipe("mask", pyramid, tmp_path / "x", "--mpp", 2, "--drawn", tmp_path / "turned.npy", check=False)
    assert done.returncode == 1 and "is 30 × 90, but the slide has the shape" in done.stdout
    rows, columns = Pyramid(pyramid).array(8.0).shape[1:]
    grey = np.zeros((rows, columns, 2), np.uint8)
    grey[: rows // 2, :, 0] = 255
    grey[..., 1] = 255  # opacity
    for mode in ("LA", "RGBA", "P", "L", "1"):
        Image.fromarray(grey, "LA").convert("L" if mode in "P1" else mode).convert(mode).save(tmp_path / f"{mode}.png")
        make_mask(Pyramid(pyramid), 8.0, tmp_path / mode, tmp_path / f"{mode}.png")
        assert read_mask(tmp_path / mode)[:].mean() == pytest.approx(0.5, abs=0.02), mode


@pytest.mark.slow
def test_a_sheet_may_name_masks_for_some_slides_and_no_labels(tmp_path):
    project = fresh_copy(tmp_path)
    np.save(project / "drawn.npy", np.ones((40, 40)))
    rows = [
        {"slide": f"s{i}", "patient": f"p{i}", "source": f"s{i}.svs", "mask": "drawn.npy" if i == 0 else ""}
        for i in range(3)
    ]
    for row in rows:
        (project / row["source"]).write_bytes(b"")
    pd.DataFrame(rows).to_csv(project / "sheet.tsv", sep="\t", index=False)
    (project / "own.yaml").write_text(yaml.safe_dump({"slides": "sheet.tsv", "folds": {"number": 3}}))
    both = ["--configfile", "config/tissue.yaml", "own.yaml"]
    _, output = snakemake(project, "-n", "--printshellcmds", *both)
    assert output.count("--drawn drawn.npy") == 1 and output.count("gigapipe mask") == 3
    assert output.count("gigapipe train-tissue") == 3 and "--unlabelled" in output
    (project / "drawn.npy").unlink()
    status, output = snakemake(project, "-n", *both, check=False)
    assert status and "no such file: drawn.npy" in output


@pytest.mark.slow
def test_the_workflow_learns_tissue_on_two_ranks_with_a_memory_limit(tmp_path):
    project = fresh_copy(tmp_path)
    make_results(project, [8.0], leave=1, results="results/tissue", patients=6)
    config = {
        "phantom": {"patients": 6},
        "resolutions": [{"mpp": 8, "mesh": [1, 2, 1]}],
        "folds": {"number": 3},
        "training": {"epochs": 8, "memory": "2GiB"},
    }
    (project / "small.yaml").write_text(yaml.safe_dump(config))
    snakemake(project, "--cores", 2, "--configfile", "config/tissue.yaml", "small.yaml")
    results = project / "results/tissue"
    table = pd.read_csv(results / "dice.tsv", sep="\t")
    print((results / "dice.md").read_text())
    assert len(table) == len(phantom.cohort(patients=6))
    assert table["dice"].mean() > 0.9
    for row in table.itertuples():
        folder = results / f"8um/fold-{row.fold}/tissue"
        found, mask = read_mask(folder / row.slide)[:], read_mask(results / f"masks/8um/{row.slide}")[:]
        assert dice(found, mask) == pytest.approx(row.dice, abs=1e-5)
        assert np.asarray(Image.open(folder / f"{row.slide}.png")).shape == (*found.shape, 3)
    log = (results / "logs/train/8um/fold-0.log").read_text()
    assert "expected: at most" in log and "validation_dice" in log
