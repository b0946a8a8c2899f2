"""Regions of a slide that a person has drawn, as masks and labels: pictures, and the annotations of QuPath and of ASAP.

Annotations count pixels of level 0, from the corner of what was scanned. Their areas count, whatever their class, or
only those of some classes. What QuPath ignores (classes whose name ends in `*`, such as `Ignore*`) is cut out. Points
and lines have no area.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from gigapipe.disks import raise_passing
from gigapipe.errors import InputError

ANNOTATIONS = {".geojson", ".json", ".xml"}
IGNORED = "*"
"""With which QuPath's names of classes end that do not count."""
MOST_CLASSES = 255
"""That 8 bits tell apart, beside none."""
BEYOND = 0.02
"""Of the slide's length: annotations may lie outside by so much, as a hand does, not more."""


class Area(NamedTuple):
    """A polygon: its outline first, then its holes, each (points, 2): columns and rows of level 0."""

    name: str
    rings: list[np.ndarray]


def read_regions(
    path: Path, slide_shape: tuple[int, int], shape: tuple[int, int], classes: tuple[str, ...] = ()
) -> np.ndarray:
    """Which pixels of a picture of `shape` of the whole slide, of `slide_shape` in level 0, lie in what was drawn.

    (rows, columns), bool, by the pixels' centres. `path` is annotations in GeoJSON (.geojson, .json) or ASAP's XML, of
    which only `classes` count if any are given; or any picture that Pillow reads, or an array (rows, columns) in a .npy
    file, of the whole slide at any resolution, not zero where the region is.

    Raises InputError, naming the file: it cannot be read, is of another shape than the slide, or has no such area.
    """
    if path.suffix.lower() in ANNOTATIONS:
        areas = _on_slide(path, slide_shape)
        names = sorted({area.name for area in areas})
        for name in classes:
            if name not in names:
                raise InputError(f"annotations {path}: has no area of class {name}; it has {', '.join(names)}")
        kept, ignored = _divided(areas)
        counted = (area for area in kept if not classes or area.name in classes)
        return _filled(counted, slide_shape, shape) & ~_filled(ignored, slide_shape, shape)
    opened = _opened(path)
    if isinstance(opened, Image.Image):
        opened = np.asarray(opened.convert("RGB") if opened.mode in ("P", "PA", "LA", "RGBA") else opened)
    picture = np.asarray(opened.any(2) if opened.ndim == 3 else opened)
    return np.asarray(_sampled(picture, path, slide_shape, shape) != 0)


def read_labels(
    path: Path, slide_shape: tuple[int, int], shape: tuple[int, int], classes: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Which of `classes` each pixel shows of a picture of `shape` of the whole slide, of `slide_shape` in level 0.

    (rows, columns), uint8, by the pixels' centres: 1 is the first class, 0 none of them. `path` is annotations, as
    `read_regions` reads them, whose areas count by the name of their class; where areas overlap, the class that comes
    last in `classes` counts. Or it is a picture of one channel or of a palette, or a .npy file, of the whole slide at
    any resolution, whose values are these numbers. Beside it come the names of drawn classes that are none of these.

    Raises InputError, naming the file: it cannot be read, is of another shape than the slide, has no area of such a
    class, or a value of none.
    """
    if len(classes) > MOST_CLASSES or len(set(classes)) < len(classes):
        raise InputError(f"classes {', '.join(classes)}: give each once, and at most {MOST_CLASSES}")
    if path.suffix.lower() not in ANNOTATIONS:
        return _values(path, slide_shape, shape, classes), []
    areas, ignored = _divided(_on_slide(path, slide_shape))
    names = {area.name for area in areas}
    if not names & set(classes):
        raise InputError(
            f"annotations {path}: has no area of a class {' or '.join(classes)}; it has {', '.join(sorted(names))}"
        )
    labels = np.zeros(shape, np.uint8)
    for value, name in enumerate(classes, start=1):
        labels[_filled((area for area in areas if area.name == name), slide_shape, shape)] = value
    labels[_filled(ignored, slide_shape, shape)] = 0
    return labels, sorted(names - set(classes))


def _values(path: Path, slide_shape: tuple[int, int], shape: tuple[int, int], classes: Sequence[str]) -> np.ndarray:
    """The classes of a picture, whose values they are."""
    picture = _opened(path)
    if isinstance(picture, Image.Image):
        if len(picture.getbands()) > 1:
            raise InputError(
                f"mask {path}: is a colour image ({picture.mode}), not an image of class values; save it as greyscale, "
                "or with a palette"
            )
        picture = np.asarray(picture)
    if picture.dtype.kind not in "buif" or (picture.dtype.kind == "f" and (picture != np.rint(picture)).any()):
        raise InputError(
            f"mask {path}: its values are {picture.dtype}; they must be whole numbers, the values of the classes"
        )
    values = _sampled(picture, path, slide_shape, shape)
    if values.min() < 0 or values.max() > len(classes):
        strange = values[(values < 0) | (values > len(classes))][0]
        raise InputError(
            f"mask {path}: has the value {int(strange)}, but there are {len(classes)} classes: 1 is {classes[0]}, 0 is "
            "no class; correct it, or give all classes"
        )
    return values.astype(np.uint8)


def _opened(path: Path) -> "np.ndarray | Image.Image":
    try:
        if path.suffix == ".npy":
            return np.load(path)
        Image.MAX_IMAGE_PIXELS = None  # slides are larger than what Pillow takes for an attack
        picture = Image.open(path)
        picture.load()
        return picture
    except (OSError, ValueError) as error:
        raise_passing(error)
        raise InputError(f"mask {path}: cannot be read ({error}); correct it in the sample sheet") from None


def _sampled(picture: np.ndarray, path: Path, slide_shape: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """What a picture of the whole slide has where the pixels of one of `shape` have their centres."""
    if picture.ndim != 2:
        raise InputError(f"mask {path}: has {picture.ndim} axes, not rows and columns")
    stretch = picture.shape[0] / picture.shape[1] * slide_shape[1] / slide_shape[0]
    if not 0.95 < stretch < 1.05:
        raise InputError(
            f"mask {path}: is {picture.shape[0]} × {picture.shape[1]}, but the slide has the shape {slide_shape[0]} × "
            f"{slide_shape[1]}; it must show the whole slide, not rotated"
        )
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(shape, picture.shape, strict=True))
    return picture[np.ix_(rows, columns)]


def _on_slide(path: Path, slide_shape: tuple[int, int]) -> list[Area]:
    """The areas of annotations. InputError if one lies outside the slide."""
    areas, extent = read_annotations(path), np.array(slide_shape[::-1])
    for area in areas:
        if (area.rings[0] < -BEYOND * extent).any() or (area.rings[0] > (1 + BEYOND) * extent).any():
            raise InputError(
                f"annotations {path}: an area of class {area.name} reaches to {area.rings[0].max(0).round().tolist()}, "
                f"outside the slide of {slide_shape[1]} × {slide_shape[0]} px; do they belong to this slide, and are "
                "they in pixels?"
            )
    return areas


def _divided(areas: list[Area]) -> tuple[list[Area], list[Area]]:
    """Those that count, and those that are cut out of them."""
    return [a for a in areas if not a.name.endswith(IGNORED)], [a for a in areas if a.name.endswith(IGNORED)]


def _filled(areas: Iterable[Area], slide_shape: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    mask, scale = np.zeros(shape, bool), np.array(shape[::-1]) / np.array(slide_shape[::-1])
    for area in areas:
        fill(mask, [ring * scale for ring in area.rings])
    return mask


def fill(mask: np.ndarray, rings: list[np.ndarray]) -> None:
    """Set the pixels of a mask (rows, columns) whose centres lie within an odd number of rings, each (points, 2).

    Points are columns and rows, in pixels from the outer corner of the first.
    """
    crossed: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for ring in rings:
        begins, ends = ring, np.roll(ring, -1, 0)
        for (x0, y0), (x1, y1) in zip(
            *np.where(begins[:, 1:] <= ends[:, 1:], (begins, ends), (ends, begins)), strict=True
        ):
            first, last = (min(max(int(np.ceil(y - 0.5)), 0), len(mask)) for y in (y0, y1))
            if first < last:
                rows = np.arange(first, last)
                crossed[0].append(rows)
                crossed[1].append(x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0))
    if not crossed[0]:
        return
    rows, columns = (np.concatenate(part) for part in crossed)
    columns = np.clip(np.ceil(columns - 0.5).astype(int), 0, mask.shape[1])
    top, left = rows.min(), columns.min()
    turns = np.zeros((rows.max() + 1 - top, columns.max() + 1 - left), bool)
    np.logical_xor.at(turns, (rows - top, columns - left), True)
    inside = np.logical_xor.accumulate(turns, axis=1)[:, :-1]
    mask[top : top + inside.shape[0], left : left + inside.shape[1]] |= inside


def read_annotations(path: Path) -> list[Area]:
    """The areas in a file of annotations. InputError if it cannot be read, or has none."""
    try:
        text = path.read_bytes()
        areas = list(_of_asap(text, path) if path.suffix.lower() == ".xml" else _of_geojson(json.loads(text)))
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, ElementTree.ParseError) as error:
        raise_passing(error)
        raise InputError(
            f"annotations {path}: cannot be read ({type(error).__name__}: {error}); export them again from QuPath as "
            "GeoJSON, or from ASAP as XML"
        ) from None
    areas = [area for area in areas if len(area.rings[0]) >= 3]
    if not areas:
        raise InputError(f"annotations {path}: it contains no areas, only points or lines, or nothing; draw an area")
    return areas


def _of_geojson(value, name: str = "unclassified") -> Iterator[Area]:
    """Areas of GeoJSON's objects (RFC 7946), or of a list of them, as QuPath once wrote."""
    if isinstance(value, list):
        for one in value:
            yield from _of_geojson(one)
        return
    kind = value["type"]
    if kind == "FeatureCollection":
        yield from _of_geojson(value["features"])
    elif kind == "Feature":
        kept = (value.get("properties") or {}).get("classification") or {}
        kept = kept if isinstance(kept, str) else kept.get("name") or ": ".join(kept.get("names") or [])
        yield from _of_geojson(value["geometry"] or {"type": "Point"}, kept or name)
    elif kind == "GeometryCollection":
        for one in value["geometries"]:
            yield from _of_geojson(one, name)
    elif kind in ("Polygon", "MultiPolygon"):
        for rings in [value["coordinates"]] if kind == "Polygon" else value["coordinates"]:
            yield Area(name, [_points([point[:2] for point in ring]) for ring in rings])
    elif kind not in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        raise ValueError(f"type {kind!r} is not valid in GeoJSON")


def _of_asap(text: bytes, path: Path) -> Iterator[Area]:
    root = ElementTree.fromstring(text)
    if root.tag != "ASAP_Annotations":
        raise InputError(
            f"annotations {path}: are not from ASAP: the file begins with <{root.tag}>; export them from ASAP"
        )
    for annotation in root.iter("Annotation"):
        if annotation.get("Type") in ("Polygon", "Spline", "Rectangle"):
            group = annotation.get("PartOfGroup", "None")
            points = sorted(annotation.iter("Coordinate"), key=lambda point: float(point.get("Order", 0)))
            ring = _points(
                [[point.attrib["X"].replace(",", "."), point.attrib["Y"].replace(",", ".")] for point in points]
            )
            yield Area("unclassified" if group == "None" else group, [ring])


def _points(values: list) -> np.ndarray:
    points = np.array(values, float).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise ValueError("a coordinate is not a number")
    return points
