"""Where tissue is found on pictures whose tissue is known: many stains, many faults, and what is said of each."""

import numpy as np
import pytest
from scipy import ndimage

from gigapipe.slides import tissue
from gigapipe.slides.tissue import find_tissue, tissue_outline
from gigapipe.slides.verdicts import DOUBTFUL, FINE, NONE

SIDE, MPP = 320, 8.0
GLASS, HE, EOSIN, HAEMATOXYLIN = (243, 243, 243), (205, 150, 185), (236, 221, 230), (150, 172, 205)
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]


def disc(row: float, column: float, radius: float) -> np.ndarray:
    return np.hypot(ROWS - row, COLUMNS - column) < radius


TISSUE = disc(150, 170, 105) & ~disc(150, 120, 12)  # 2.2 mm², with a lumen of 190 µm


def stained(colour, where=TISSUE, glass=GLASS) -> np.ndarray:
    """A picture whose stain is as uneven as tissue's, before noise: (rows, columns, 3)."""
    rng = np.random.default_rng(0)
    texture = ndimage.gaussian_filter(rng.normal(0, 1, where.shape), 2)
    strength = ndimage.gaussian_filter(where.astype(float), 0.7) * (1 + 0.2 * texture / texture.std())
    return np.array(glass) * (np.array(colour) / np.array(GLASS)) ** strength[..., None]


def scanned(light: np.ndarray) -> np.ndarray:
    noisy = light + np.random.default_rng(1).normal(0, 1.5, light.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def found(picture: np.ndarray):
    return find_tissue(picture, picture.shape[:2], (MPP, MPP))


def assert_found(picture: np.ndarray, truth: np.ndarray = TISSUE, iou: float = 0.93) -> None:
    mask, whole = tissue_outline(picture, MPP), truth | disc(150, 120, 12)
    assert (mask & whole).sum() / (mask | whole).sum() > iou
    for axis in (0, 1):
        ends, true = (np.flatnonzero(m.any(axis))[[0, -1]] for m in (mask, truth))
        assert abs(ends - true).max() <= 2


@pytest.mark.parametrize(
    "colour",
    [HE, EOSIN, HAEMATOXYLIN, (160, 115, 75), (150, 190, 165), (140, 165, 215), (195, 80, 75), (70, 105, 190)],
)
def test_tissue_of_any_stain_is_found_with_its_lumina(colour):
    picture = scanned(stained(colour))
    assert_found(picture)
    assert found(picture).verdict == (DOUBTFUL if colour == EOSIN else FINE)


@pytest.mark.parametrize("glass", [(250, 240, 215), (222, 234, 246), (236, 226, 240), (198, 198, 195), (262, 262, 262)])
def test_tinted_dim_and_burnt_out_glass_is_glass(glass):
    for colour in (HE, EOSIN, HAEMATOXYLIN):
        assert_found(scanned(stained(colour, glass=glass)))


@pytest.mark.parametrize("ink", [(40, 70, 190), (30, 140, 60), (205, 35, 45), (22, 20, 25)])
def test_ink_is_no_tissue_whatever_the_stain(ink):
    stroke = (abs(ROWS - COLUMNS - 150) < 25) & ~ndimage.binary_dilation(TISSUE, iterations=6)
    for colour in (HE, EOSIN, HAEMATOXYLIN):
        light = stained(colour)
        light[stroke] = ink
        assert_found(scanned(light))
    light = np.full((SIDE, SIDE, 3), 243.0)
    light[stroke] = ink
    assert found(scanned(light)).verdict == NONE


def test_edges_frames_dust_and_what_was_not_scanned_are_no_tissue():
    light = stained(EOSIN, glass=(246, 240, 225))
    light[-12:] = 5
    light[:4] *= 0.6
    light[:, -5:] *= (0.5, 0.7, 0.9)
    light[disc(30, 20, 4)] = (90, 88, 86)
    assert_found(scanned(light))
    for fill in (0, 255):
        picture = scanned(stained(HE, glass=(232, 229, 236)))
        picture[:30], picture[:, :40] = fill, fill
        assert_found(picture)


@pytest.mark.parametrize("spots", [EOSIN, (225, 190, 212), (190, 130, 170)])
def test_printed_spots_and_debris_join_no_tissue(spots):
    pitch = 200 / MPP
    dots = np.hypot(*((v % pitch - pitch / 2) for v in (ROWS, COLUMNS))) < 50 / MPP
    light = stained(HE)
    light[dots & ~ndimage.binary_dilation(TISSUE, iterations=9)] = spots
    light[disc(20, 20, 5) | disc(300, 290, 7)] = HE
    assert_found(scanned(light))


def test_small_tissue_is_found_and_slides_full_of_it_are_doubtful():
    small = disc(100, 200, 12)  # 0.03 mm²
    assert_found(scanned(stained(HAEMATOXYLIN, small)), small, iou=0)
    full = found(scanned(stained(HE, np.ones((SIDE, SIDE), bool))))
    assert full.fraction > 0.99 and full.verdict == DOUBTFUL and "no glass" in full.why


def test_nothing_is_said_to_be_nothing_and_why():
    empty = found(scanned(np.full((SIDE, SIDE, 3), 240.0)))
    assert (empty.verdict, empty.fraction, empty.outline.any()) == (NONE, 0, False) and "colour of glass" in empty.why
    cells = ndimage.gaussian_filter(TISSUE.astype(float), 3)[..., None]
    for glow in ((20, 60, 220), (30, 200, 40), (200, 200, 200)):
        dark = found(scanned(4 + cells * glow))
        assert dark.verdict == NONE and "fluorescence" in dark.why
    assert found(scanned(255 - stained(HE))).verdict == NONE


def test_what_is_near_and_how_wide_pieces_are_is_found_as_by_distance_transforms():
    rng, distance = np.random.default_rng(0), ndimage.distance_transform_edt
    for _ in range(100):
        blurred = ndimage.gaussian_filter(rng.random(rng.integers(3, 90, 2)), rng.choice([0.6, 2, 8]))
        mask = blurred > np.quantile(blurred, rng.choice([0.3, 0.7, 0.95]))
        reach, sampling = rng.choice([0.7, 1.5, 5, 13.5]), tuple(rng.choice([1, 0.7, 2.3], 2))
        assert np.array_equal(tissue._near(mask, reach, sampling), distance(~mask, sampling=sampling) <= reach)
        widest = distance(np.pad(mask, 1)).max()
        found = tissue._greatest_half_width(mask, reach)
        assert found == widest or reach <= found <= widest
