"""Tissue that is found on generated slides of many stains and faults: gigapipe's way, the one before, and a library's.

    python benchmarks/tissue.py [--seeds 3] [--only eosin …] [--pictures FOLDER]

Every slide is a picture of `SIDE` px of 8, 12 or 25 µm, as overviews are, through JPEG; its tissue is known. Printed
are, by scene, the least intersection over union of all seeds, the largest error of a side of the bounding box, in
pixels, and the share of the slide that is found, by its truth. `chroma` is what gigapipe did before: a threshold of 20
grey levels between a pixel's channels, gaps of 200 µm closed. `otsu` is Otsu's threshold of saturation, where
scikit-image is installed. The same seeds make the same numbers.
"""

import argparse
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from gigapipe.slides.tissue import tissue_outline

SIDE = 1000
GLASS = (243, 243, 243)
HE, EOSIN, HAEMATOXYLIN = (205, 150, 185), (236, 221, 230), (150, 172, 205)
BROWN, GREEN, BLUE = (160, 115, 75), (150, 190, 165), (140, 165, 215)
PENS = {"blue": (40, 70, 190), "green": (30, 140, 60), "red": (205, 35, 45), "black": (22, 20, 25)}


@dataclass
class Scene:
    """A slide to be: light that comes through (rows, columns, 3), of 0 to 255, and where its tissue is."""

    mpp: float
    rng: np.random.Generator
    light: np.ndarray = field(init=False)
    truth: np.ndarray = field(init=False)

    def __post_init__(self):
        self.light = np.ones((SIDE, SIDE, 3)) * GLASS
        self.truth = np.zeros((SIDE, SIDE), bool)
        self.rows, self.columns = np.mgrid[:SIDE, :SIDE].astype(float)

    def blob(self, area: float, at: tuple[float, float] | None = None) -> np.ndarray:
        """A wavy island of some mm²."""
        radius = np.sqrt(area * 1e6 / np.pi) / self.mpp
        rest = min(0.5, (1.35 * radius + 30) / SIDE)
        row, column = at or self.rng.uniform(rest, 1 - rest, 2)
        y, x = self.rows - row * SIDE, self.columns - column * SIDE
        angle = np.arctan2(y, x)
        waves = sum(self.rng.uniform(-0.08, 0.08) * np.cos(k * angle + self.rng.uniform(0, 6.28)) for k in range(2, 7))
        return np.hypot(y, x) < radius * (1 + waves)

    def stain(self, where: np.ndarray, colour, counts: bool = True, texture: float = 0.25) -> None:
        """Put a stain of this mean colour there, uneven as tissue is, on the µm of nuclei and of stroma."""
        density = np.log10(np.array(GLASS) / np.array(colour, float))
        strength = np.ones((SIDE, SIDE))
        for width in (0, 2, 12):
            noise = self.rng.normal(0, 1, (SIDE, SIDE))
            noise = ndimage.gaussian_filter(noise, width) if width else noise
            strength += texture / 1.7 * noise / noise.std()
        soft = ndimage.gaussian_filter(where.astype(float), 0.7)
        self.light *= 10 ** -((soft * np.clip(strength, 0.15, 2.5))[..., None] * density)
        if counts:
            self.truth |= where

    def cover(self, where: np.ndarray, colour) -> None:
        """Put something that lets no light through there."""
        soft = ndimage.gaussian_filter(where.astype(float), 0.7)[..., None]
        self.light = self.light * (1 - soft) + np.array(colour) * soft

    def stroke(self, width: float, points: int = 4) -> np.ndarray:
        """Where a pen of some µm went, not over tissue."""
        path = np.linspace(0, 1, 600)
        knots = np.linspace(0, 1, points)
        at = [np.interp(path, knots, self.rng.uniform(0.03, 0.97, points)) * (SIDE - 1) for _ in range(2)]
        line = np.ones((SIDE, SIDE), bool)
        line[at[0].astype(int), at[1].astype(int)] = False
        return (ndimage.distance_transform_edt(line) < width / 2 / self.mpp) & ~ndimage.binary_dilation(
            self.truth, iterations=8
        )

    def dots(self, pitch: float, across: float, inside=(0.08, 0.92), frame: bool = False) -> np.ndarray:
        """A printed array of dots, of so many µm; of a frame only the outer three rows and columns."""
        pitch, begin, end = pitch / self.mpp, inside[0] * SIDE, inside[1] * SIDE
        y, x = ((v - begin + pitch / 2) % pitch - pitch / 2 for v in (self.rows, self.columns))
        on = (np.hypot(y, x) < across / 2 / self.mpp) & (self.rows >= begin - pitch / 2) & (self.rows <= end)
        on &= (self.columns >= begin - pitch / 2) & (self.columns <= end)
        if frame:
            near = np.minimum(np.minimum(self.rows, self.columns) - begin, end - np.maximum(self.rows, self.columns))
            on &= near < 3 * pitch
        return on

    def picture(self, tint=GLASS, noise: float = 1.5) -> np.ndarray:
        pixels = self.light * np.array(tint) / GLASS + self.rng.normal(0, noise, self.light.shape)
        file = io.BytesIO()
        Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
        return np.asarray(Image.open(file).convert("RGB"))


def of_stain(colour, area: float = 12.0, tint=GLASS, pieces: int = 2) -> Callable[[Scene], np.ndarray]:
    def make(scene: Scene) -> np.ndarray:
        for _ in range(pieces):
            scene.stain(scene.blob(area / pieces), colour)
        return scene.picture(tint)

    return make


def with_pen(colour, stain=HE) -> Callable[[Scene], np.ndarray]:
    def make(scene: Scene) -> np.ndarray:
        scene.stain(scene.blob(10), stain)
        for _ in range(3):
            scene.cover(scene.stroke(scene.rng.uniform(300, 1000)), colour)
        return scene.picture()

    return make


def two_stains(scene: Scene) -> np.ndarray:
    """Haematoxylin and, in a third of the tissue, brown."""
    where = scene.blob(14)
    scene.stain(where, HAEMATOXYLIN)
    scene.stain(where & scene.blob(6, (0.5, 0.5)), BROWN)
    return scene.picture()


def masson(scene: Scene) -> np.ndarray:
    where = scene.blob(16, (0.5, 0.5))
    blue = where & (ndimage.gaussian_filter(scene.rng.normal(0, 1, where.shape), 15) > 0)
    scene.stain(where & ~blue, (190, 70, 90))
    scene.stain(blue, (90, 120, 190))
    return scene.picture()


def framed(scene: Scene) -> np.ndarray:
    scene.stain(scene.blob(10, (0.45, 0.55)), HE)
    picture = scene.picture((246, 240, 225)).copy()
    for i, width in enumerate((60, 0, 130, 25)):
        turned = np.rot90(picture, i)
        turned[:width] = scene.rng.integers(0, 8, turned[:width].shape)
    return picture


def edged(scene: Scene) -> np.ndarray:
    """Shadows and coloured fringes where the scan and the cover slip end."""
    scene.stain(scene.blob(10, (0.45, 0.55)), EOSIN)
    scene.light[:14] *= 0.6
    scene.light[:, -9:] *= np.array([0.5, 0.7, 0.9])
    scene.light[880:886] *= 0.8
    return scene.picture()


def filled(value: int) -> Callable[[Scene], np.ndarray]:
    def make(scene: Scene) -> np.ndarray:
        scene.stain(scene.blob(8, (0.3, 0.35)), HE)
        picture = scene.picture((232, 229, 236)).copy()
        picture[650:], picture[:, 700:] = value, value
        scene.truth[650:], scene.truth[:, 700:] = False, False
        return picture

    return make


def dusty(scene: Scene) -> np.ndarray:
    """Grey dust, fibres and bubbles."""
    scene.stain(scene.blob(8), HAEMATOXYLIN)
    clear = ~ndimage.binary_dilation(scene.truth, iterations=10)
    for _ in range(60):
        row, column, radius = *scene.rng.uniform(0, SIDE, 2), scene.rng.uniform(0.5, 4)
        scene.cover((np.hypot(scene.rows - row, scene.columns - column) < radius) & clear, (90, 88, 86))
    for _ in range(4):
        row, column, radius = *scene.rng.uniform(0, SIDE, 2), scene.rng.uniform(20, 120)
        distance = np.hypot(scene.rows - row, scene.columns - column)
        scene.cover((abs(distance - radius) < 1.5) & clear, (120, 122, 125))
        scene.light[(distance < radius) & clear] *= 0.97
    return scene.picture()


def whole(colour, share_of_glass: float) -> Callable[[Scene], np.ndarray]:
    def make(scene: Scene) -> np.ndarray:
        scene.stain(scene.rows >= share_of_glass * SIDE, colour)
        return scene.picture()

    return make


def tiny(colour, area: float) -> Callable[[Scene], np.ndarray]:
    return of_stain(colour, area, pieces=1)


def spotted(colour, dot, section=HE, frame: bool = False, across: float = 100, pitch: float = 200):
    """A section on an array of printed dots, with debris."""

    def make(scene: Scene) -> np.ndarray:
        extent = (SIDE * scene.mpp / 1000) ** 2
        scene.stain(scene.blob(0.2 * extent, (0.42, 0.6)), section)
        dots = scene.dots(pitch, across, frame=frame) & ~scene.truth
        scene.stain(dots, dot, counts=False, texture=0.1)
        for _ in range(40):
            row, column = scene.rng.uniform(0, SIDE, 2)
            speck = np.hypot(scene.rows - row, scene.columns - column) < scene.rng.uniform(10, 70) / scene.mpp
            scene.stain(speck & ~scene.truth, colour, counts=False)
        return scene.picture((238, 232, 238), noise=2.5)

    return make


def fat(scene: Scene) -> np.ndarray:
    """A section half of which is fat: cells of 90 µm with walls of 10 µm, of glass within."""
    where = scene.blob(0.25 * (SIDE * scene.mpp / 1000) ** 2, (0.5, 0.5))
    solid = where & (scene.columns < SIDE / 2)
    scene.stain(solid, HE)
    pitch = 90 / scene.mpp
    y, x = (scene.rows + 0.3 * scene.columns) % pitch, (scene.columns - 0.2 * scene.rows) % pitch
    wall = np.minimum(np.minimum(y, pitch - y), np.minimum(x, pitch - x)) * scene.mpp
    share = np.clip((10 / 2 + scene.mpp / 2 - wall) / scene.mpp, 0, min(1, 10 / scene.mpp))
    density = np.log10(np.array(GLASS) / np.array(HE))
    scene.light *= 10 ** -((share * (where & ~solid))[..., None] * density)
    scene.truth |= where
    return scene.picture()


SCENES: dict[str, Callable[[Scene], np.ndarray]] = {
    "H&E": of_stain(HE),
    "faint eosin": of_stain(EOSIN),
    "haematoxylin": of_stain(HAEMATOXYLIN),
    "brown": of_stain(BROWN),
    "haematoxylin and brown": two_stains,
    "green": of_stain(GREEN),
    "strong green": of_stain((70, 140, 95)),
    "blue": of_stain(BLUE),
    "strong blue": of_stain((70, 105, 190)),
    "masson": masson,
    "red chromogen": of_stain((195, 80, 75)),
    "faint grey-blue": of_stain((222, 226, 234)),
    "H&E, yellow glass": of_stain(HE, tint=(250, 240, 215)),
    "eosin, yellow glass": of_stain(EOSIN, tint=(250, 240, 215)),
    "eosin, blue glass": of_stain(EOSIN, tint=(222, 234, 246)),
    "haematoxylin, lilac glass": of_stain(HAEMATOXYLIN, tint=(236, 226, 240)),
    "brown, dark glass": of_stain(BROWN, tint=(198, 198, 195)),
    "eosin, burnt-out glass": of_stain(EOSIN, tint=(262, 262, 262)),
    **{f"{name} pen": with_pen(colour) for name, colour in PENS.items()},
    **{f"{name} pen, haematoxylin": with_pen(colour, HAEMATOXYLIN) for name, colour in PENS.items()},
    **{f"{name} pen, eosin": with_pen(colour, EOSIN) for name, colour in PENS.items()},
    "black frame": framed,
    "scan edges": edged,
    "filled with white": filled(255),
    "filled with black": filled(0),
    "dust and bubbles": dusty,
    "all H&E": whole(HE, 0),
    "nearly all H&E": whole(HE, 0.04),
    "nearly all eosin": whole(EOSIN, 0.06),
    "1 mm² H&E": tiny(HE, 1),
    "0.1 mm² eosin": tiny(EOSIN, 0.1),
    "0.1 mm² haematoxylin": tiny(HAEMATOXYLIN, 0.1),
    "spots": spotted(HE, (225, 190, 212)),
    "faint spots": spotted(HE, (236, 221, 230)),
    "strong spots": spotted(HE, (190, 130, 170)),
    "spots, pale section": spotted(HE, (225, 200, 215), section=(222, 190, 208)),
    "frame of spots": spotted(HE, (120, 90, 110), frame=True, across=100, pitch=180),
    "fat": fat,
}


def chroma(rgb: np.ndarray, mpp: float) -> np.ndarray:
    """What gigapipe did before."""
    red, green, blue = (np.ascontiguousarray(rgb[..., channel]) for channel in range(3))
    difference = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    difference[green.astype(np.int16) - red > 15] = 0
    reach = 100 / mpp
    mask = np.pad(ndimage.gaussian_filter(difference.astype(np.float32), 2 / mpp) > 20, int(reach) + 2)
    if mask.any():
        mask = ndimage.distance_transform_edt(ndimage.distance_transform_edt(~mask) <= reach) > reach
    mask = mask[int(reach) + 2 : -int(reach) - 2, int(reach) + 2 : -int(reach) - 2]
    pieces, _ = ndimage.label(mask)
    small = np.bincount(pieces.ravel()) < (50 / mpp) ** 2
    small[0] = False
    return mask & ~small[pieces]


def otsu(rgb: np.ndarray, mpp: float) -> np.ndarray:
    from skimage.color import rgb2hsv
    from skimage.filters import threshold_otsu
    from skimage.morphology import binary_closing, disk, remove_small_objects

    saturation = ndimage.median_filter(rgb2hsv(rgb)[..., 1], 5)
    mask = binary_closing(saturation > threshold_otsu(saturation), disk(2))
    return remove_small_objects(mask, 64)


def box(mask: np.ndarray) -> np.ndarray | None:
    if not mask.any():
        return None
    return np.concatenate([np.flatnonzero(mask.any(axis))[[0, -1]] for axis in (1, 0)])


def made(names: list[str], seeds: int) -> Iterator[tuple[str, np.ndarray, np.ndarray, float]]:
    for name in names:
        for seed in range(seeds):
            scene = Scene((8.0, 12.0, 25.0)[seed % 3], np.random.default_rng([seed, len(name)]))
            picture = SCENES[name](scene)
            yield name, picture, scene.truth, scene.mpp


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=SCENES, default=list(SCENES))
    parser.add_argument("--pictures", type=Path, help="a folder for what was made, and the outlines of what was found")
    args = parser.parse_args()
    methods = {"gigapipe": tissue_outline, "chroma": chroma}
    try:
        otsu(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8), 1.0)
        methods["otsu"] = otsu
    except ImportError:
        pass
    rows: dict[str, dict[str, list]] = {}
    seconds = dict.fromkeys(methods, 0.0)
    number = 0
    for name, picture, truth, mpp in made(args.only, args.seeds):
        number += 1
        for method, find in methods.items():
            begun = time.perf_counter()
            found = find(picture, mpp)
            seconds[method] += time.perf_counter() - begun
            iou = (found & truth).sum() / max(1, (found | truth).sum())
            error = abs(box(found) - box(truth)).max() if found.any() else np.inf
            rows.setdefault(name, {}).setdefault(method, []).append((iou, error, found.mean() / truth.mean()))
            if args.pictures and method == "gigapipe":
                args.pictures.mkdir(parents=True, exist_ok=True)
                shown = picture.copy()
                shown[found ^ ndimage.binary_erosion(found)] = (0, 160, 0)
                shown[truth ^ ndimage.binary_erosion(truth)] = (0, 0, 0)
                Image.fromarray(shown).save(args.pictures / f"{name}-{mpp:g}.png")
    print("| slide | " + " | ".join(f"{method}: IoU | box | share" for method in methods) + " |")
    print("|---|" + "---:|---:|---:|" * len(methods))
    for name, found_by in rows.items():
        cells = []
        for of_seeds in found_by.values():
            iou, error, share = zip(*of_seeds, strict=True)
            worst = max(share, key=lambda s: abs(np.log(max(s, 1e-9))))
            cells.append(f"{min(iou):.3f} | {max(error):.0f} | {worst:.2f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print("seconds a picture: " + ", ".join(f"{method} {total / number:.2f}" for method, total in seconds.items()))


if __name__ == "__main__":
    main()
