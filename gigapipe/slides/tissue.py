"""Where the tissue is: what differs in colour from the slide's own glass, and is neither ink, nor print, nor shadow.

The glass is the brightest even colour that the slide has enough of. Every pixel's optical density is taken against it,
so that tinted glass has none. What darkens all colours alike (dust, bubbles, black frames and ink, shadows of edges)
has density, but no difference between its channels; every stain has. How large a difference is asked for follows from
the spread of the glass itself, and from how strong the slide's own stain is.

Gaps narrower than `GAP`, and holes that tissue encloses up to `HOLE` across (lumina, alveoli, fat cells), are tissue.
Pieces that are small beside the largest (printed spots, debris) are not, nor what lies at the picture's border alone.

A mask has a verdict: `fine`; `doubtful`, and why; or `none`, where nothing was found, and why.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from gigapipe.slides.verdicts import DOUBTFUL, FINE, NONE

# µm.
SMOOTHING = 2.0
GAP = 50.0  # between the dots of spotted arrays it is 80 or more
HOLE = 250.0  # across, if it were round
SPECK = 50.0  # across: smaller pieces are none, whatever the others are, on a slide of 1 mm or more
PRINT, THIN = 240.0, 150.0  # across: smaller pieces than the one, or thinner than the other, beside larger ones
MARGIN = 16.0
COARSE = 4.0  # per pixel: in finer pictures tissue is scattered before its gaps are closed
# Optical density (the decimal logarithm of glass by pixel).
LEAST = 0.012  # of the difference between channels that tissue has at least; the faintest eosin has 0.03
TINT = 0.12  # of that difference between glass and white, at most
FAINT = 0.05  # of that difference: where a slide's strong stain has less, its tissue is doubtful
INK = 0.45  # of that difference, from which on a pure colour is ink's
BARE, SHADE = 0.02, 0.08  # of what is as bright as glass, and of what may lie in the lamp's shade, at most
# Shares.
STRONG = 0.2  # of the slide's own strong stain, that tissue has at least
GREY = 0.2  # of what a pixel's density exceeds `SHADE` by: what differs less between channels is grey
ENOUGH = 0.02  # of the even area, that glass is
SMALL, SPECKS = 0.01, 0.0025  # of the largest piece's area: less than the one, and than `PRINT`, or than the other
EDGE = 0.02  # of the slide's length: what lies within that of its border is the border's
COMPACT = 0.25  # of the stain's area: where large pieces are more of it, it is not scattered
STROKE = 1e-4  # of the slide's area: less ink is none
UNDER = 0.05  # of the slide's length: ink that is no wider than twice that, and lies between stain, lies on stain
ALL = 0.97  # of the slide's area: where tissue covers more, there is no glass to trust
MARKED = 0.1  # of the tissue's area: where there is more ink, it is told of
# Grey levels.
WHITE, DIM, BLACK, UNEVEN = 245, 150, 60, 6
FEW = 25  # pixels: what is found of less is doubtful
FAR = 48  # pixels: beyond, a distance transform is faster than sums along rows


@dataclass
class _Stain:
    """Where there is stain (rows, columns), and what was seen on the way."""

    mask: np.ndarray
    strength: float = 0.0
    """The difference of the channels' densities of the strong part of it."""
    ink: int = 0
    """Pixels of ink."""
    doubts: list[str] = field(default_factory=list)
    dark: bool = False
    """Bright on black."""


def _within_two(extreme: np.ufunc, image: np.ndarray) -> np.ndarray:
    """The `extreme` of the 5 × 5 pixels about each of an image (rows, columns), as scipy's filters find it, sooner."""
    for axis in (0, 1):
        found = image.copy()
        for reach in (1, 2):
            before, behind = (np.s_[:-reach], np.s_[reach:]) if axis == 0 else (np.s_[:, :-reach], np.s_[:, reach:])
            extreme(found[before], image[behind], out=found[before])
            extreme(found[behind], image[before], out=found[behind])
        image = found
    return image


def _median(values: np.ndarray) -> float:
    """Of uint8 (pixels,), of which there is one at least; by counting, as it has but 256 values."""
    up_to = np.cumsum(np.bincount(values, minlength=256))
    return float(np.searchsorted(up_to, [(up_to[-1] - 1) // 2, up_to[-1] // 2], side="right").mean())


def _glass(channels: list[np.ndarray], filled: np.ndarray) -> np.ndarray | None:
    """The colour of the glass (3,), of smoothed channels (rows, columns), uint8. None if nothing looks like it.

    It is even over areas, not scattered. What is `filled` (rows, columns) with white is taken only where nothing else
    is.
    """
    sums = channels[0].astype(np.uint16) + channels[1] + channels[2]
    brightness = (sums // 3).astype(np.uint8)
    highest, lowest = (_within_two(extreme, brightness) for extreme in (np.maximum, np.minimum))
    even = highest - lowest <= UNEVEN
    even &= brightness > DIM
    for among in (even & ~filled, even):
        counts = np.bincount(brightness[among], minlength=256)
        mass = np.convolve(counts, np.ones(7), "same")
        for level in np.flatnonzero(mass >= max(ENOUGH * counts.sum(), ENOUGH / 4 * brightness.size))[::-1]:
            if mass[level] < mass[max(0, level - 3) : level + 4].max():
                continue
            near = among & (abs(brightness.astype(np.int16) - level) <= 3)
            colour = np.array([_median(channel[near]) for channel in channels])
            if np.log10(colour.max() / colour.min()) <= TINT:
                return colour
    return None


def _is_cut_straight(mask: np.ndarray) -> bool:
    """Whether most of a mask's outline runs along rows and columns for long, as that of tiles does."""
    along, straight = 0, 0
    for axis in (0, 1):
        changes = np.count_nonzero(np.diff(mask, axis=axis), axis=1 - axis)
        along += changes.sum()
        straight += changes[changes > 0.15 * mask.shape[1 - axis]].sum()
    return straight > 0.5 * along


def _pieces(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pieces of a mask: their numbers (rows, columns), from 1 on, and areas in pixels."""
    pieces, number = ndimage.label(mask)
    return pieces, np.bincount(pieces.ravel(), minlength=number + 1)[1:]


def _half_widths(mask: np.ndarray, pieces: np.ndarray, number: int) -> np.ndarray:
    """Half the greatest width of each of `number` pieces (rows, columns) of a mask: (number,), in pixels."""
    found = np.zeros(number + 1)
    np.maximum.at(found, pieces[mask], ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1][mask])
    return found[1:]


def _greatest_half_width(mask: np.ndarray, enough: float) -> float:
    """Half the greatest width of a mask (rows, columns), in pixels; or a lower bound of it that is at least `enough`.

    The bound comes from blocks of pixels, whose distance transform takes a sixteenth of the time.
    """
    side = 4
    rows, columns = (n // side for n in mask.shape)
    blocks = mask[: rows * side, : columns * side].reshape(rows, side, columns, side).all(axis=(1, 3))
    # Distances are between the blocks' centres; those between their pixels are less by at most a block's diagonal.
    least = side * ndimage.distance_transform_edt(np.pad(blocks, 1)).max() - 1.5 * side
    return least if least >= enough else float(ndimage.distance_transform_edt(np.pad(mask, 1)).max())


def _of_pieces(pieces: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    return np.concatenate([[False], chosen])[pieces]


def _beyond_edges(mask: np.ndarray) -> np.ndarray:
    """The pieces of a mask that do not lie at the picture's border alone."""
    pieces, _ = ndimage.label(mask)
    kept = [
        all(p.stop > EDGE * n and p.start < n - EDGE * n for p, n in zip(place, mask.shape, strict=True))
        for place in ndimage.find_objects(pieces)
    ]
    return _of_pieces(pieces, np.array(kept, bool))


def _ink(difference: np.ndarray, pure: np.ndarray) -> np.ndarray:
    """Where there is ink, of pixels that have a `pure` colour: strong, and not the dark part of a stain beside it."""
    strong = pure & (difference > INK)
    if not strong.any():
        return strong
    pieces, number = ndimage.label(pure)
    core = ndimage.binary_erosion(pure, iterations=3)
    weak = core & ~strong
    of_core, of_weak = (np.bincount(pieces[part], minlength=number + 1) for part in (core, weak))
    mean = np.bincount(pieces[weak], difference[weak], number + 1) / np.maximum(of_weak, 1)
    strong &= difference > np.where(of_weak > 0.2 * of_core, 3 * mean, 0)[pieces]
    return ndimage.binary_opening(strong)


def _stained(channels: list[np.ndarray], filled: np.ndarray, reach: int) -> _Stain:
    """Where there is stain, by smoothed channels (rows, columns), uint8. Ink mixes with others within its `reach`."""
    if not _is_cut_straight(filled):  # glass that is as white as can be, then
        filled = np.zeros_like(filled)
    glass = _glass(channels, filled)
    most = np.maximum(np.maximum(channels[0], channels[1]), channels[2])
    black = most < BLACK
    amid_black = black.mean() > (0.2 if glass is None else 0.5) and not _is_cut_straight(black)
    if amid_black or (glass is None and np.median(most) < DIM / 2):
        return _Stain(np.zeros(filled.shape, bool), dark=True)
    levels = np.maximum(np.arange(256, dtype=np.float32), 8)
    colour = np.full(3, WHITE) if glass is None else glass
    red, green, blue = (np.log10(np.float32(colour[i]) / levels)[channels[i]] for i in range(3))
    highest = np.maximum(np.maximum(red, green), blue)
    difference = highest - np.minimum(np.minimum(red, green), blue)
    bare = difference[(abs(highest) < BARE) & ~filled][::7]  # a sample is enough
    least = LEAST
    if bare.size:
        middle = np.median(bare)
        least = max(LEAST, middle + 9 * np.median(abs(bare - middle)))
    stained = (difference > least) & (highest > LEAST / 2) & (difference >= GREY * (highest - SHADE)) & ~black & ~filled
    found = _Stain(stained, doubts=["it shows no glass to compare with"] if glass is None else [])
    ink = _ink(difference, stained & ((green < red) | ((red < 0.25 * green) & (blue > 0.6 * green))))
    found.ink = int(ink.sum())
    if found.ink < STROKE * ink.size:
        found.ink = 0
    if found.ink:
        near = ndimage.binary_dilation(ink, iterations=reach)
        rest = stained & ~near
        pieces, area = _pieces(near)
        half_width = _half_widths(near, pieces, len(area))
        if rest.sum() < 0.01 * found.ink:  # what is compact is stain, then, and only strokes are ink
            rest = stained & _of_pieces(pieces, area <= 4 * np.pi * half_width**2)
            if rest.any():
                found.doubts.append("it has the colour of ink")
                found.ink = int((ink & ~rest).sum())
        stained = rest
    stained = _beyond_edges(stained)
    within = ndimage.binary_erosion(stained, iterations=2)
    if not within.any():
        within = stained
    if within.any():
        found.strength = float(np.percentile(difference[within], 75))
        stained &= difference > STRONG * found.strength
    if found.ink and stained.any():  # what lies between solid stain, under ink
        across = min(half_width.max(), UNDER * max(near.shape))
        part = _around(near, int(across) + 2)
        stained[part] |= near[part] & _closed(ndimage.binary_opening(stained[part], iterations=4), across)
    found.mask = stained
    return found


def _around(mask: np.ndarray, edge: int) -> tuple[slice, ...]:
    """The rectangle of a mask that holds all of it, and so many pixels about it."""
    ends = [np.flatnonzero(mask.any(axis=axis))[[0, -1]] + [-edge, edge + 1] for axis in (1, 0)]
    return tuple(slice(max(0, first), last) for first, last in ends)


def _near(mask: np.ndarray, reach: float, sampling: Sequence[float] = (1.0, 1.0)) -> np.ndarray:
    """Where a mask (rows, columns), bool, is at most `reach` away: a mask of the same shape.

    Distances are Euclidean, between centres of pixels of the size `sampling` (rows, columns), in the unit of `reach`.
    The result is that of a distance transform, to the pixel; up to `FAR` pixels in a tenth to a third of its time.
    """
    (down, across), (rows, columns) = sampling, mask.shape
    most = int(reach / across) + 1
    if not mask.any():
        return np.zeros_like(mask)
    if most > FAR:
        return ndimage.distance_transform_edt(~mask, sampling=sampling) <= reach
    count = np.zeros((rows, columns + 1 + 2 * most), np.int32)  # of the mask's pixels up to each column
    np.cumsum(mask, axis=1, out=count[:, most + 1 : most + 1 + columns])
    count[:, most + 1 + columns :] = count[:, most + columns, None]
    near = np.zeros_like(mask)
    for row in range(min(rows, int(reach / down) + 1)):
        within = np.flatnonzero(np.sqrt((row * down) ** 2 + (np.arange(most + 1) * across) ** 2) <= reach)
        if not within.size:
            break
        first, last = most - within[-1], most + 1 + within[-1]
        beside = count[:, last : last + columns] != count[:, first : first + columns]
        near[row:] |= beside[: rows - row]
        near[: rows - row] |= beside[row:]
    return near


def _closed(mask: np.ndarray, reach: float) -> np.ndarray:
    """With what lies between its parts, where that is narrower than twice the `reach`, in pixels."""
    edge = int(reach) + 2
    near = _near(np.pad(mask, edge), reach)
    return ~_near(~near, reach)[edge:-edge, edge:-edge]


def _without_holes(mask: np.ndarray, most: float) -> np.ndarray:
    """With the holes of at most so many pixels that it encloses."""
    holes, number = ndimage.label(~mask)
    small = np.bincount(holes.ravel(), minlength=number + 1) <= most
    small[np.concatenate([holes[[0, -1]].ravel(), holes[:, [0, -1]].ravel()])] = False
    small[0] = False
    return mask | small[holes]


def _large(mask: np.ndarray, mpp: float, length: int) -> np.ndarray:
    """The pieces of a mask that are no specks, prints or debris, on a slide of so many pixels' length."""
    pieces, area = _pieces(mask)
    largest, printed = area.max(), np.pi / 4 * (PRINT / mpp) ** 2
    few = max(min(SPECK / mpp, length / 20) ** 2, min(printed, SMALL * largest), SPECKS * largest)
    thin = THIN / 2 / mpp
    thin = min(thin, _greatest_half_width(mask, 4 * thin) / 4)
    inner = ~_near(np.pad(~mask, 1, constant_values=True), np.nextafter(thin, 0))[1:-1, 1:-1]
    wide = np.bincount(pieces[inner], minlength=len(area) + 1)[1:] > 0
    return _of_pieces(pieces, (area >= few) & wide)


def _pieces_of_tissue(stained: np.ndarray, mpp: float, length: int) -> np.ndarray:
    """Stain with its gaps and holes, without specks, prints and debris, on a slide of so many pixels' length."""
    if mpp >= COARSE:  # where tissue is of a piece, and prints within a gap of it would join it
        large = _large(stained, mpp, length)
        if large.sum() > COMPACT * stained.sum():
            stained = large
    return _large(_without_holes(_closed(stained, GAP / 2 / mpp), np.pi / 4 * (HOLE / mpp) ** 2), mpp, length)


def _look(rgb: np.ndarray, mpp: float) -> tuple[np.ndarray, str, str]:
    """The mask (rows, columns), its verdict, and why."""
    sigma = max(SMOOTHING / mpp, 0.7)
    channels = [np.ascontiguousarray(rgb[..., i]) for i in range(3)]
    filled = np.minimum(np.minimum(channels[0], channels[1]), channels[2]) == 255
    found = _stained([ndimage.gaussian_filter(c, sigma, truncate=3) for c in channels], filled, round(5 + 2 * sigma))
    mask = found.mask.copy()
    if found.mask.any():
        part = _around(mask, 2)
        mask[part] = _pieces_of_tissue(mask[part], mpp, max(mask.shape))
    if found.dark:
        return mask, NONE, "it is bright on black, as fluorescence is, not light through stained tissue"
    if not mask.any():
        what = "is ink" if found.ink else "are specks or edges" if found.mask.any() else ""
        return (
            mask,
            NONE,
            "what differs in colour from its glass " + what if what else "all of it has the colour of glass",
        )
    doubts = found.doubts
    if mask.mean() > ALL and not doubts:
        doubts.append(f"it covers {mask.mean():.0%} of the slide")
    if mask.sum() < FEW:
        doubts.append(f"it is no more than {mask.sum()} pixels of {mpp:.3g} µm")
    if found.strength < FAINT:
        doubts.append(f"its stain is faint, {found.strength:.3f} in optical density")
    if found.ink > MARKED * mask.sum():
        doubts.append(f"there is ink beside it, {found.ink / mask.sum():.0%} of its area")
    return mask, DOUBTFUL if doubts else FINE, "; ".join(doubts)


def tissue_outline(rgb: np.ndarray, mpp: float) -> np.ndarray:
    """Mask (rows, columns), bool, of tissue and its narrow gaps, in uint8 RGB (rows, columns, 3) at `mpp` µm per pixel.

    Nothing random is in it, and nothing of other slides.
    """
    return _look(rgb, mpp)[0]


@dataclass(frozen=True)
class Tissue:
    """Where a slide has tissue."""

    box_um: list[float]
    """Its bounding box: top, left, bottom, right, in µm from the slide's corner; of all the slide if it has none."""
    fraction: float
    """Its share of the slide's area; 0 if it has none."""
    outline: np.ndarray
    """The tissue's outline on the whole slide (rows, columns), bool, and `MARGIN` µm or a pixel around it."""
    outline_mpp: list[float]
    """µm per row and column of that picture."""
    verdict: str
    """What the mask is worth: `FINE`, `DOUBTFUL` or `NONE`."""
    why: str
    """What speaks against it, or where it is from; empty if nothing."""


def find_tissue(picture: np.ndarray, shape: tuple[int, int], slide_mpp: tuple[float, float]) -> Tissue:
    """Where a slide has tissue, by a picture (row, column, 3), uint8 RGB, of the whole of it.

    The slide has `shape` (rows, columns), with `slide_mpp` µm each.
    """
    mpp = [n * own / pixels for n, own, pixels in zip(shape, slide_mpp, picture.shape, strict=False)]
    return of_mask(*_look(picture, max(mpp)), mpp)


def of_mask(mask: np.ndarray, verdict: str, why: str, mpp: list[float]) -> Tissue:
    """The tissue of a slide by a mask (rows, columns), bool, of the whole of it, at `mpp` µm per row and column."""
    extent = [n * m for n, m in zip(mask.shape, mpp, strict=True)]
    if not mask.any():
        return Tissue([0.0, 0.0, *extent], 0.0, mask, mpp, verdict, why)
    reach = max(MARGIN, 1.5 * max(mpp))
    part = _around(mask, int(reach / min(mpp)) + 1)
    outline = np.zeros_like(mask)
    outline[part] = _near(mask[part], reach, mpp)
    ends = [np.flatnonzero(mask.any(axis=axis))[[0, -1]] + [0, 1] for axis in (1, 0)]
    (top, bottom), (left, right) = (end * m for end, m in zip(ends, mpp, strict=True))
    return Tissue([float(v) for v in (top, left, bottom, right)], float(mask.mean()), outline, mpp, verdict, why)
