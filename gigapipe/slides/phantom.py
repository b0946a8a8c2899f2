"""The phantom cohort: generated slides for which the correct answer is known; a test instrument, and the default input.

Every slide is a pyramidal Aperio file at 0.5 µm/px: a piece of stained tissue on white glass, with stain and texture
that vary from slide to slide, patients with one or two slides, and several sites. It contains two signals, or three.

**The class** is the arrangement of nuclei, and nothing else. Tissue contains groups of six nuclei of 6 µm. In class
`acinar` the six form a ring of 28 µm (a gland around its lumen). In class `solid` two are in the middle and four around
them. Both groups have the same number of nuclei, hence the same stain, and the same second moment. So the classes
differ only in a structure of 28 µm: if a pixel is larger than that, they differ in the fourth order of (14 µm / pixel),
and cannot be distinguished; at a few µm per pixel a network can.

**The confounder** gives each site its own stain colour, and associates sites with classes. With `confounder=0`, the
default, there is neither. With `confounder=1` a site has one class only, and the classes alternate along the scale of
colours: a site's own colour predicts the class of its slides, and the colours of the other sites predict the wrong one.
Random folds are misled, site-preserved folds are not. Values in between apply to that share of the patients.

**Regions**, if requested, are in the tissue of every slide, whatever its class: `tumour`, where the tissue is darker
and groups are four times as dense as elsewhere, and `necrosis`, without nuclei and with more eosin. A mask shows them,
and the number `tumour_share` is the share of tumour in the tissue, from 0.1 to 0.6, similar for all slides of a
patient.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gigapipe.atomic import atomic_file
from gigapipe.errors import InputError
from gigapipe.plural import counted

MPP = 0.5
CLASSES = ("acinar", "solid")
REGIONS = ("tumour", "necrosis")
TUMOUR, NECROSIS = 1, 2
"""Their values in pictures."""
NECROSIS_SHARE = 0.12  # of the tissue
NUCLEUS = 6.0  # diameter, µm
RING = 14.0  # radius of the ring of six, µm
CORE = 3.6  # distance of the two inner nuclei of a solid group from its centre, µm
SHELL = np.sqrt((6 * RING**2 - 2 * CORE**2) / 4)  # of the four outer ones: equal second moments, µm
PITCH = 48.0  # of the groups, µm; no two of them touch
TISSUE_RADIUS = 190.0  # µm
WHITE = 244.0
# Optical densities of the two stains, haematoxylin and eosin, in R, G, B.
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11])


@dataclass(frozen=True)
class Phantom:
    """One slide of the cohort, as a row of the sample sheet; `seed` makes its pixels."""

    slide: str
    patient: str
    site: str
    label: str
    source: str
    site_colour: float
    seed: tuple[int, int]
    mask: str = ""
    """Where the picture of its regions is, if it has any."""
    tumour_share: float | None = None


def cohort(
    seed: int = 0,
    patients: int = 40,
    sites: int = 4,
    confounder: float = 0.0,
    regions: bool = False,
    folder: str = ".",
) -> list[Phantom]:
    """The slides of a cohort, each to be written to `folder`; determined by the arguments alone.

    Classes are balanced over patients. Raises InputError if `confounder` is not between 0 and 1, or there is only one
    site to confound.
    """
    if not 0 <= confounder <= 1 or (confounder and sites < 2):
        raise InputError(
            f"confounder {confounder} with {counted(sites, 'site')}: give a value between 0 and 1, and at "
            "least two sites"
        )
    rng, of_regions = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    slides: list[Phantom] = []
    for patient in range(patients):
        label = patient % 2
        # Without the confounder sites take turns over pairs of patients, one of either class.
        site = patient // 2 % sites
        if rng.random() < confounder:  # even sites have one class, odd ones the other
            site = site - site % 2 + label
            site = site if site < sites else label
        share = of_regions.uniform(0.13, 0.57)
        for _ in range(rng.integers(1, 3)):
            name = f"PH-{patient:03d}-{chr(ord('A') + sum(s.patient == f'PH-{patient:03d}' for s in slides))}"
            slides.append(
                Phantom(
                    slide=name,
                    patient=f"PH-{patient:03d}",
                    site=f"site-{site}",
                    label=CLASSES[label],
                    source=str(Path(folder) / f"{name}.svs"),
                    site_colour=site / (sites - 1) if confounder else 0.0,
                    seed=(seed, len(slides)),
                    mask=str(Path(folder) / f"{name}.png") if regions else "",
                    tumour_share=round(share + of_regions.uniform(-0.03, 0.03), 4) if regions else None,
                )
            )
    return slides


def sheet_row(phantom: Phantom) -> dict[str, str]:
    """The columns of the sample sheet."""
    row = {key: value for key, value in asdict(phantom).items() if key not in ("site_colour", "seed")}
    return {key: str(value) for key, value in row.items() if value not in ("", None)}


def render(phantom: Phantom) -> np.ndarray:
    """The slide's pixels at `MPP`: (rows, columns, 3), uint8 RGB."""
    from scipy import ndimage  # here, for each job of the workflow reads its cohort, and few make pixels

    rng = np.random.default_rng(phantom.seed)
    rows, columns = rng.integers(960, 1120, 2)
    tissue = _tissue(rng, rows, columns)
    groups = _groups(rng, tissue)
    arranged = groups[:, None] + _arrangement(phantom.label, rng.uniform(0, 2 * np.pi, len(groups)))
    lone = _lone_nuclei(rng, tissue, groups)
    if phantom.tumour_share is not None:
        regions = _regions(phantom, tissue)
        arranged, lone = arranged[_kept(phantom, regions, groups)], lone[_at(regions, lone) != NECROSIS]
    nuclei = np.concatenate([arranged.reshape(-1, 2), lone])
    haematoxylin = 0.06 * tissue + _stamp(nuclei, tissue.shape, rng.uniform(0.9, 1.2))
    texture = ndimage.zoom(rng.normal(0, 1, (rows // 60 + 2, columns // 60 + 2)), 60, order=1)[:rows, :columns]
    eosin = tissue * (0.25 + 0.04 * texture) * rng.uniform(0.85, 1.15)
    if phantom.tumour_share is not None:
        haematoxylin[regions == TUMOUR] += 0.12
        eosin[regions == NECROSIS] *= 2
    # Sites differ in their eosin's hue, from pink to orange; how much of it there is differs from slide to slide.
    hue = np.array([0, 0, 0.6 * phantom.site_colour + rng.normal(0, 0.006)])
    noise = rng.normal(0, 2, (rows, columns))
    picture = np.empty((rows, columns, 3), np.uint8)
    for colour, (of_haematoxylin, of_eosin) in enumerate(zip(HAEMATOXYLIN, EOSIN + hue, strict=True)):
        density = haematoxylin * of_haematoxylin
        density += eosin * of_eosin
        light = np.power(10, np.negative(density, out=density), out=density)
        light *= WHITE
        light += noise
        picture[..., colour] = np.clip(light, 0, 255, out=light)
    return picture


def region_labels(phantom: Phantom) -> np.ndarray:
    """Which of `REGIONS` each pixel of the slide shows: (rows, columns), uint8, 1 the first, 0 none of them."""
    rng = np.random.default_rng(phantom.seed)
    return _regions(phantom, _tissue(rng, *rng.integers(960, 1120, 2)))


def _tissue(rng, rows: int, columns: int) -> np.ndarray:
    """An island with a wavy outline near the slide's middle: (rows, columns), float32, soft at the edge."""
    y, x = np.mgrid[:rows, :columns].astype(np.float32) * MPP
    y -= (rows * MPP) / 2 + rng.uniform(-40, 40)
    x -= (columns * MPP) / 2 + rng.uniform(-40, 40)
    angle = np.arctan2(y, x)
    outline = sum(rng.uniform(-0.05, 0.05) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(2, 6))
    return np.clip((TISSUE_RADIUS * (0.9 + outline) - np.hypot(y, x)) / 4, 0, 1).astype(np.float32)


def _regions(phantom: Phantom, tissue: np.ndarray) -> np.ndarray:
    """Each region around a point of the tissue, with a wavy outline, of exactly its share of the tissue's pixels."""
    from scipy import ndimage

    rng = np.random.default_rng([*phantom.seed, 1])
    labels, inside = np.zeros(tissue.shape, np.uint8), tissue > 0.5
    y, x = np.mgrid[: tissue.shape[0], : tissue.shape[1]].astype(np.float32) * MPP
    for value, share in ((TUMOUR, phantom.tumour_share), (NECROSIS, NECROSIS_SHARE)):
        free = np.flatnonzero(inside & (labels == 0))
        row, column = np.divmod(rng.choice(free), tissue.shape[1])
        waves = ndimage.zoom(rng.normal(0, 12, [n // 120 + 2 for n in tissue.shape]), 120, order=1)
        distance = np.hypot(y - row * MPP, x - column * MPP) + waves[: tissue.shape[0], : tissue.shape[1]]
        count = round(share * inside.sum())
        labels.flat[free[np.argsort(distance.flat[free], kind="stable")[:count]]] = value
    return labels


def _kept(phantom: Phantom, regions: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Which of the groups at these centres there are: all in tumour, none in necrosis, elsewhere a quarter."""
    region = _at(regions, groups)
    drawn = np.random.default_rng([*phantom.seed, 2]).random(len(groups)) < 0.25
    return (region == TUMOUR) | (drawn & (region != NECROSIS))


def _at(regions: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The region at each of `points` (n, 2), in µm."""
    row, column = np.rint(points / MPP).astype(int).T
    return regions[row, column]


def _inside(tissue: np.ndarray, points: np.ndarray, margin: float) -> np.ndarray:
    """Those of `points` (n, 2), in µm, that lie in the tissue with all that is within `margin` µm of them."""
    ring = margin * np.array([[np.sin(a), np.cos(a)] for a in np.arange(8) * np.pi / 4])
    pixels = np.rint((points[:, None] + ring) / MPP).astype(int)
    limits = np.array(tissue.shape) - 1
    on_slide = ((pixels >= 0) & (pixels <= limits)).all(axis=(1, 2))
    pixels = np.clip(pixels, 0, limits)
    return points[on_slide & (tissue[pixels[..., 0], pixels[..., 1]] > 0.99).all(axis=1)]


def _groups(rng, tissue: np.ndarray) -> np.ndarray:
    """Centres of the groups of six, (n, 2) in µm: a jittered grid, some places left free."""
    reach = SHELL + NUCLEUS / 2
    extent = np.array(tissue.shape) * MPP
    grid = np.stack(np.meshgrid(*(np.arange(rng.uniform(0, PITCH), e, PITCH) for e in extent), indexing="ij"), -1)
    jitter = PITCH / 2 - reach - 1
    points = grid.reshape(-1, 2) + rng.uniform(-jitter, jitter, (grid.size // 2, 2))
    points = points[rng.random(len(points)) < rng.uniform(0.7, 1.0)]
    return _inside(tissue, points, reach)


def _arrangement(label: str, turns: np.ndarray) -> np.ndarray:
    """Offsets (groups, 6, 2), in µm, of the nuclei of groups turned by `turns` (groups,)."""
    if label == "acinar":
        radius, angle = np.full(6, RING), np.arange(6) * np.pi / 3
    else:
        radius = np.array([CORE, CORE, *[SHELL] * 4])
        angle = np.array([0, np.pi, *(np.arange(4) + 0.5) * np.pi / 2])
    angle = angle + turns[:, None]
    return np.stack([radius * np.sin(angle), radius * np.cos(angle)], -1)


def _lone_nuclei(rng, tissue: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Nuclei (n, 2), in µm, scattered between the groups: as many as a slide happens to have."""
    from scipy.spatial import cKDTree

    points = rng.uniform(0, 1, (int(rng.uniform(30, 150)), 2)) * tissue.shape * MPP
    points = _inside(tissue, points, NUCLEUS / 2)
    distance, _ = cKDTree(groups).query(points)
    return points[distance > SHELL + NUCLEUS]


def _stamp(nuclei: np.ndarray, shape: tuple[int, int], density: float) -> np.ndarray:
    """Haematoxylin density (rows, columns), float32, of soft discs at `nuclei` (n, 2), in µm."""
    radius = NUCLEUS / 2 / MPP
    reach = int(np.ceil(radius)) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = density * np.clip(radius + 0.5 - np.hypot(y, x), 0, 1).astype(np.float32)
    picture = np.zeros(np.array(shape) + 2 * reach, np.float32)
    for row, column in np.rint(nuclei / MPP).astype(int):
        picture[row : row + 2 * reach + 1, column : column + 2 * reach + 1] += disc
    return picture[reach:-reach, reach:-reach]


def write_labels(path: Path, labels: np.ndarray) -> None:
    """Write the values (rows, columns), uint8, of regions as a picture."""
    from PIL import Image

    with atomic_file(path) as partial:
        Image.fromarray(labels).save(partial, "PNG")


def write_slide(path: Path, rgb: np.ndarray, quality: int = 90, tile: int = 256) -> None:
    """Write uint8 RGB (rows, columns, 3) at `MPP` as an Aperio slide: tiled JPEG levels, each a quarter a side."""
    import tifffile

    rows, columns = rgb.shape[:2]
    header = f"Aperio Image Library v12.0.0\r\n{columns}x{rows} [0,0 {columns}x{rows}] ({tile}x{tile})"
    with atomic_file(path) as partial, tifffile.TiffWriter(partial) as file:
        for level in range(3):
            description = f"{header} JPEG/RGB Q={quality}|AppMag = 20|MPP = {MPP}"
            if level:
                rgb = rgb[: rgb.shape[0] // 4 * 4, : rgb.shape[1] // 4 * 4]
                means = rgb.reshape(rgb.shape[0] // 4, 4, rgb.shape[1] // 4, 4, 3).mean(axis=(1, 3))
                rgb = np.rint(means).astype(np.uint8)
                description = f"{header} -> {rgb.shape[1]}x{rgb.shape[0]} JPEG/RGB Q={quality}"
            file.write(
                rgb,
                tile=(tile, tile),
                photometric="rgb",
                compression="jpeg",
                subfiletype=int(level > 0),
                compressionargs={"level": quality},
                description=description,
                metadata=None,
                software=False,
            )
