"""Regions that were drawn, as masks and as a slide's tissue; and slides in which there is no tissue."""

import json

import numpy as np
import pytest
import zarr
from launching import gigapipe
from PIL import Image

from gigapipe.errors import InputError
from gigapipe.pyramids import Pyramid
from gigapipe.pyramids.build import build_pyramid
from gigapipe.pyramids.canvas import read_canvas
from gigapipe.pyramids.masks import read_mask
from gigapipe.pyramids.settings import Settings
from gigapipe.pyramids.survey import contact_sheet, summary, table
from gigapipe.slides.phantom import cohort, render, write_slide
from gigapipe.slides.regions import fill, read_labels, read_regions

SHAPE = 700, 900
BOX, HOLE, OTHER = (
    [[[100, 50], [500, 50], [500, 450], [100, 450]]],
    [[200, 150], [300, 150], [300, 250]],
    [[[600, 500], [800, 500], [800, 600], [600, 600]]],
)


def feature(rings, name=None, kind="Polygon"):
    kept = {"classification": {"name": name, "color": [200, 0, 0]}} if name else {}
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": rings}, "properties": kept}


def asap(*areas):
    text = "<ASAP_Annotations><Annotations>"
    for number, (points, kind, group) in enumerate(areas):
        text += f'<Annotation Name="A{number}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58"><Coordinates>'
        for order, (x, y) in reversed(list(enumerate(points))):  # their order is what Order says
            text += f'<Coordinate Order="{order}" X="{x}" Y="{y}" />'
        text += "</Coordinates></Annotation>"
    return text + '</Annotations><AnnotationGroups><Group Name="Tumor"/></AnnotationGroups></ASAP_Annotations>'


def test_polygons_are_filled_by_their_pixels_centres():
    ring = np.array([[3.2, 2.6], [17.9, 4.1], [13.3, 18.2], [9.7, 8.8], [1.4, 15.7]])
    mask = np.zeros((20, 20), bool)
    fill(mask, [ring])
    x, y = np.meshgrid(np.arange(20) + 0.5, np.arange(20) + 0.5)
    expected = np.zeros((20, 20), bool)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, 0), strict=True):
        expected ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    assert (mask == expected).all() and 100 < mask.sum() < 200


def test_annotations_of_qupath_and_asap_are_read_with_holes_classes_and_what_is_ignored(tmp_path):
    whole = [
        feature(BOX, "Tumor"),
        feature([OTHER], "Stroma", "MultiPolygon"),
        feature([[1, 2], [3, 4]], None, "LineString"),
    ]
    files = {
        "a.geojson": {"type": "FeatureCollection", "features": whole},
        "list.json": whole,
        "b.xml": asap((BOX[0], "Polygon", "Tumor"), (OTHER[0], "Rectangle", "None"), ([[3, 4]], "Dot", "Tumor")),
    }
    for name, value in files.items():
        (tmp_path / name).write_text(value if isinstance(value, str) else json.dumps(value))
        mask = read_regions(tmp_path / name, SHAPE, (70, 90))
        assert mask.sum() == 40 * 40 + 20 * 10 and mask[5:45, 10:50].all()
        assert read_regions(tmp_path / name, SHAPE, (70, 90), ("Tumor",)).sum() == 1600
    cut = [feature([*BOX, HOLE], "Tumor"), feature([[[100, 50], [500, 50], [500, 150], [100, 150]]], "Ignore*")]
    (tmp_path / "cut.geojson").write_text(json.dumps(cut))
    mask = read_regions(tmp_path / "cut.geojson", SHAPE, SHAPE)
    assert mask.sum() == pytest.approx(400 * 300 - 100 * 100 / 2, rel=0.01) and not mask[:150].any()


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.geojson", "{", "cannot be read"),
        ("a.geojson", '{"type": "Topology"}', "'Topology' is not valid in GeoJSON"),
        ("a.geojson", json.dumps(feature([[1, 2], [3, 4]], None, "LineString")), "it contains no areas"),
        ("a.geojson", json.dumps(feature([[[0, 0], [5000, 0], [5000, 90]]])), "outside the slide of 900 × 700 px"),
        ("a.geojson", json.dumps(feature([[["x", 0], [5, 0], [5, 9]]])), "cannot be read"),
        ("a.xml", "<Annotations/>", "are not from ASAP: the file begins with <Annotations>"),
        ("a.xml", "no xml", "cannot be read"),
        ("a.xml", asap(), "it contains no areas"),
    ],
)
def test_annotations_that_are_none_are_refused_in_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as refused:
        read_regions(tmp_path / name, SHAPE, SHAPE)
    assert name in str(refused.value) and "\n" not in str(refused.value)


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    write_slide(folder / "phantom.svs", render(cohort(patients=6)[0]))
    write_slide(folder / "white.svs", np.full((*SHAPE, 3), 243, np.uint8))
    return folder


CLASSES = ["Tumor", "Stroma", "Necrosis"]


def test_classes_of_annotations_have_values_of_their_own_and_the_last_lies_on_top(tmp_path):
    inner = [[[200, 150], [400, 150], [400, 300], [200, 300]]]
    drawn = [
        feature(inner, "Necrosis"), feature(BOX, "Tumor"), feature(OTHER, "Stroma"),
        feature([[[610, 510], [620, 510], [620, 520], [610, 520]]], "Ignore*"), feature(OTHER, "Vessel"),
    ]  # fmt: skip
    (tmp_path / "drawn.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": drawn}))
    labels, others = read_labels(tmp_path / "drawn.geojson", SHAPE, SHAPE, CLASSES)
    assert labels.dtype == np.uint8 and others == ["Vessel"]
    assert labels[100, 150] == 1 and labels[200, 300] == 3 and labels[550, 700] == 2
    assert labels[515, 615] == 0 and labels[600, 100] == 0
    counts = np.bincount(labels.ravel())
    assert counts.tolist()[1:] == [400 * 400 - 200 * 150, 200 * 100 - 100, 200 * 150]
    labels, _ = read_labels(tmp_path / "drawn.geojson", SHAPE, SHAPE, ["Necrosis", "Tumor"])
    assert labels[200, 300] == 2 and not (labels == 1).any()
    (tmp_path / "drawn.xml").write_text(asap((BOX[0], "Polygon", "Tumor"), (OTHER[0], "Rectangle", "Stroma")))
    labels, _ = read_labels(tmp_path / "drawn.xml", SHAPE, (70, 90), CLASSES)
    assert np.bincount(labels.ravel()).tolist()[1:] == [1600, 200]
    with pytest.raises(InputError, match="no area of a class Fat; it has Necrosis, Stroma, Tumor, Vessel"):
        read_labels(tmp_path / "drawn.geojson", SHAPE, SHAPE, ["Fat"])


def test_a_picture_s_values_are_its_classes(tmp_path):
    values = np.zeros((70, 90), np.uint8)
    values[10:30, 5:50], values[40:60, 60:80] = 1, 3
    grey = Image.fromarray(values)
    palette = grey.copy()
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    np.save(tmp_path / "values.npy", values.astype(np.int64))
    for name, picture in {"grey": grey, "palette": palette, "deep": Image.fromarray(values.astype(np.uint16))}.items():
        picture.save(tmp_path / f"{name}.png")
    for name in ("grey.png", "palette.png", "deep.png", "values.npy"):
        labels, others = read_labels(tmp_path / name, SHAPE, (140, 180), CLASSES)
        assert (labels == values.repeat(2, 0).repeat(2, 1)).all() and others == [], name
    grey.convert("RGB").save(tmp_path / "colours.png")
    np.save(tmp_path / "shares.npy", values / 2)
    for name, classes, message in (
        ("grey.png", CLASSES[:2], "has the value 3, but there are 2 classes: 1 is Tumor"),
        ("colours.png", CLASSES, "a colour image .RGB., not an image of class values"),
        ("shares.npy", CLASSES, "values are float64; they must be whole numbers"),
        ("grey.png", ["Tumor", "Tumor"], "give each once"),
    ):
        with pytest.raises(InputError, match=message):
            read_labels(tmp_path / name, SHAPE, SHAPE, classes)


def test_what_is_drawn_overrules_what_is_found(slides, tmp_path):
    (tmp_path / "tissue.geojson").write_text(json.dumps([feature(BOX, "Tumor"), feature(OTHER)]))
    Image.fromarray(np.pad(np.ones((4, 4), np.uint8), ((0, 3), (1, 4)))).save(tmp_path / "tissue.png")
    done = gigapipe(
        "pyramid", slides / "white.svs", tmp_path / "p", "--mpp", 4, "--tissue", tmp_path / "tissue.geojson"
    )
    tissue = Pyramid(tmp_path / "p").tissue
    assert np.allclose(tissue["box_um"], [25, 50, 300, 400], atol=1) and tissue["verdict"] == "fine"
    assert tissue["why"] == "as annotated in tissue.geojson" and "as annotated in tissue.geojson" in done.stdout
    build_pyramid(slides / "white.svs", tmp_path / "q", [4], Settings(tissue=str(tmp_path / "tissue.png")))
    assert np.allclose(Pyramid(tmp_path / "q").tissue["box_um"], [0, 50, 200, 250], atol=1)
    gigapipe(
        "mask", tmp_path / "p", tmp_path / "m", "--mpp", 4, "--drawn", tmp_path / "tissue.geojson", "--class", "Tumor"
    )
    assert int(read_mask(tmp_path / "m")[:].sum()) == pytest.approx(50 * 50, rel=0.05)
    done = gigapipe(
        "pyramid", slides / "white.svs", tmp_path / "x", "--mpp", 4, "--tissue", tmp_path / "none.png", check=False
    )
    assert done.returncode == 1 and "none.png: cannot be read" in done.stdout and "Traceback" not in done.stdout


def test_a_slide_without_tissue_is_refused_left_out_or_kept_whole_on_request(slides, tmp_path):
    done = gigapipe("pyramid", slides / "white.svs", tmp_path / "white", "--mpp", 4, check=False)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("gigapipe:")]
    assert done.returncode == 1 and "white.svs: no tissue was found: all of it has the colour of glass" in line
    gigapipe("pyramid", slides / "white.svs", tmp_path / "white", "--mpp", 4, "--leave-out")
    kept = Settings(keep_without_tissue=True, clean_background=True)
    build_pyramid(slides / "white.svs", tmp_path / "kept", [4], kept)
    build_pyramid(slides / "phantom.svs", tmp_path / "phantom", [4])
    pyramid = Pyramid(tmp_path / "kept")
    assert pyramid.tissue["verdict"] == "none" and pyramid.tissue["fraction"] == 0
    assert (pyramid.array(4)[:] == 243).all()
    assert (read_canvas(pyramid, 4, 64, masked=True) == 243).all()

    names = ["kept", "phantom", "white"]
    rows = table(names, tmp_path).set_index("slide")
    assert list(rows["verdict"]) == ["none", "fine", "none"] and list(rows["fate"])[:2] == ["whole", "whole"]
    line = "3 slides: 1 with tissue, 1 kept without tissue (kept), 1 left out without tissue (white)"
    assert summary(rows.reset_index()) == line
    sheet = np.asarray(contact_sheet(names, tmp_path))[: 192 + 14, :192]  # of the slide that is kept, all of it 243
    picture, name = (sheet == 243).all(axis=2), (sheet != 243).any(axis=2) & (sheet < 200).any(axis=2)
    (top, bottom), (first, last) = (np.flatnonzero(where.any(axis=1))[[0, -1]] for where in (picture, name))
    assert bottom - top > 50 and bottom < first < bottom + 8 and last < 192 + 14
    (tmp_path / "phantom/metadata.sha256").unlink()
    group = zarr.open_group(tmp_path / "phantom/image.zarr", mode="r+")
    kept = dict(group.attrs["gigapipe"])
    group.attrs["gigapipe"] = kept | {
        "tissue": {key: kept["tissue"][key] for key in ("box_um", "fraction")}
    }  # as of 0.1
    assert list(table(names, tmp_path)["verdict"]) == ["none", "not judged", "none"]
    assert summary(table(names, tmp_path)) == line
    done = gigapipe("survey", *(tmp_path / name for name in names), "--output", tmp_path / "survey")
    assert line in done.stdout
