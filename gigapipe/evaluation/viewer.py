"""What Neuroglancer shows of a slide: its pyramid, its tissue, and the maps of every resolution over it.

Neuroglancer (https://github.com/google/neuroglancer) reads OME-Zarr in a web browser. What its page shows is told in
the part of its address behind `#!`, as JSON. Its package brings that page as files; no other part of it is used.
"""

import importlib.util
import json
from pathlib import Path
from urllib.parse import quote

import numpy as np

from gigapipe.errors import InputError
from gigapipe.pyramids.folders import NAME
from gigapipe.pyramids.made_of import attributes_of
from gigapipe.pyramids.maps import ActivationMap, read_map
from gigapipe.pyramids.store import Pyramid

MICROMETRE = [1e-6, "m"]
WINDOW = 1000, 600
"""Px of a window, columns and rows, that shows a whole slide at first."""
COLOURS = """\
void main() {
  emitRGB(vec3(toNormalized(getDataValue(0)), toNormalized(getDataValue(1)), toNormalized(getDataValue(2))));
}
"""
TISSUE = "void main() { emitRGBA(vec4(0.0, 0.63, 0.0, toRaw(getDataValue()) > 0u ? 0.4 : 0.0)); }\n"
EVIDENCE = """\
#uicontrol float range slider(min={least}, max={most}, default={usual}, step={least})
void main() {{
  float evidence = {evidence};
  float strength = clamp(evidence / range, -1.0, 1.0);
  emitRGBA(vec4(strength > 0.0 ? vec3(0.70, 0.09, 0.17) : vec3(0.13, 0.40, 0.67), abs(strength)));
}}
"""
"""Red where a place speaks for a class, blue where against it, as in the pictures of maps."""


def page_folder() -> Path:
    """Where the files of its page are. InputError if they are not installed."""
    found = importlib.util.find_spec("neuroglancer")
    folder = Path((found.submodule_search_locations or ["."])[0] if found else ".") / "static/client"
    if not (folder / "index.html").exists():
        raise InputError("serve: neuroglancer is not installed; install it with pip install 'gigapipe[serve]'")
    return folder


def maps_of(results: Path, slide: str) -> dict[Path, str]:
    """The folders of a slide's maps, coarsest resolution first; of each what it is of: `8 µm`, or `probe, 8 µm`."""
    found = {}
    for path in sorted(results.glob(f"*um/**/maps/{slide}/{NAME}")):
        resolution, *method = path.relative_to(results).parts[:-3]
        found[path.parent] = float(resolution.removesuffix("um")), ", ".join([*method, f"{resolution[:-2]} µm"])
    return {folder: name for folder, (_, name) in sorted(found.items(), key=lambda item: -item[1][0])}


def why_not(pyramid: Path) -> str:
    """Why a pyramid is not shown; empty if it is."""
    found = attributes_of(pyramid)
    if found is None:
        return "there is no pyramid"
    if (found.get("codec") or {}).get("name") == "jpeg":
        return "its codec jpeg is not read by web viewers"
    return ""


def state(results: Path, slide: str, address: str) -> str:
    """The part of the page's address behind `#!`; `address` is that at which the results are, ending in a slash.

    Raises InputError if the slide has no pyramid that can be shown, or a damaged map.
    """
    folder = results / "pyramids" / slide
    if reason := why_not(folder):
        raise InputError(f"slide {slide}: {reason}")
    pyramid = Pyramid(folder)
    height, width = (
        length * mpp for length, mpp in zip(pyramid.source["shape"], reversed(pyramid.source["mpp"]), strict=True)
    )

    def layer(name: str, store: Path, shader: str, scale: tuple[float, float] | None, **more) -> dict:
        source: dict = {"url": f"zarr://{address}{quote(store.relative_to(results).as_posix())}/"}
        if scale:  # or it would show one channel at a time: `^` marks a dimension that a shader sees whole
            down, across = ([um * 1e-6, "m"] for um in scale)
            source["transform"] = {"outputDimensions": {"c^": [1, ""], "y": down, "x": across}}
        return {"type": "image", "name": name, "source": source, "shader": shader, "opacity": 1} | more

    layers = [layer(slide, folder / NAME, COLOURS, pyramid.scale(pyramid.resolutions[0]))]
    if (folder / NAME / "labels/tissue").exists():
        layers.append(layer("tissue", folder / NAME / "labels/tissue", TISSUE, None, visible=False))
    for number, (of_map, of) in enumerate(reversed(maps_of(results, slide).items())):
        found = read_map(of_map)
        for label, shader in shaders(found):
            name = f"{label}, {of}"
            scale = found.place_um, found.place_um
            layers.append(layer(name, of_map / NAME, shader, scale, opacity=0.6, visible=number == 0))
    shown = {
        "dimensions": {"x": MICROMETRE, "y": MICROMETRE},
        "position": [width / 2, height / 2],
        "crossSectionScale": max(width / WINDOW[0], height / WINDOW[1]),
        "layers": layers,
        "layout": "xy",
        "showAxisLines": False,
        "showDefaultAnnotations": False,
        "crossSectionBackgroundColor": "#ffffff",
    }
    return quote(json.dumps(shown))


def shaders(found: ActivationMap) -> list[tuple[str, str]]:
    """The name of each of a map's layers, and how it is drawn: of two classes the second; of a number it alone."""
    count = len(found.values)
    said = []
    for this in range(count) if count > 2 else [count - 1]:
        terms = [f"(getDataValue({i}) + {found.bias[i]:.8f})" for i in range(count)]
        others = [term for i, term in enumerate(terms) if i != this]
        evidence = terms[this] + (f" - ({' + '.join(others)}) / {len(others):.1f}" if others else "")
        most = max(float(np.abs(found.evidence(found.classes[this])).max()), 1e-6)
        limits = {"least": f"{most / 100:.8f}", "most": f"{most * 2:.8f}", "usual": f"{most:.8f}"}
        said.append((found.classes[this], EVIDENCE.format(evidence=evidence, **limits)))
    return said
