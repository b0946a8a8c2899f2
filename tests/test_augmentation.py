"""How slides look in training: drawn from seed, epoch and slide alone, and the same on any part of a slide."""

import dataclasses

import pytest
import torch

from gigapipe.training.augmentation import HED, Augmentation, AugmentationRanges

AUGMENTATION = AugmentationRanges("all", shift=0.1, stain=0.2, brightness=0.1, contrast=0.3)
STRONG = Augmentation(stains=(1.2, 0.8, 1.1), brightness=0.9, contrast=1.2)


def test_a_look_depends_on_seed_epoch_and_slide_and_on_nothing_else():
    augmentations = {
        (seed, epoch, slide): AUGMENTATION.draw(seed, epoch, slide)
        for seed in (0, 1)
        for epoch in (0, 1)
        for slide in ("a", "b", "TCGA-05-4244-01Z-00-DX1")
    }
    assert len({dataclasses.astuple(augmentation) for augmentation in augmentations.values()}) == len(augmentations)
    assert augmentations[0, 1, "b"] == AUGMENTATION.draw(0, 1, "b")


def test_looks_fill_their_limits_and_keep_to_them():
    augmentations = [AUGMENTATION.draw(0, epoch, "slide") for epoch in range(400)]
    assert {augmentation.symmetry for augmentation in augmentations} == set(range(8))
    for values, low, high in (
        ([part for augmentation in augmentations for part in augmentation.shift], -0.1, 0.1),
        ([factor for augmentation in augmentations for factor in augmentation.stains], 0.8, 1.2),
        ([augmentation.brightness for augmentation in augmentations], 0.9, 1.1),
        ([augmentation.contrast for augmentation in augmentations], 1 / 1.3, 1.3),
    ):
        assert low <= min(values) < low + 0.05 * (high - low)
        assert high >= max(values) > high - 0.05 * (high - low)
    assert AugmentationRanges("none").draw(0, 0, "slide") == Augmentation()


def test_colours_change_pixel_by_pixel_and_glass_stays_white():
    image = torch.rand(1, 3, 30, 40).contiguous(memory_format=torch.channels_last)
    image[..., :5] = 0
    coloured = STRONG.colour(image)
    assert (coloured[..., :5] == 0).all() and (coloured[..., 5:] - image[..., 5:]).abs().mean() > 0.01
    assert coloured.min() >= 0 and coloured.max() <= 1
    part = STRONG.colour(image[:, :, 7:19, 3:24])
    torch.testing.assert_close(part, coloured[:, :, 7:19, 3:24], rtol=0, atol=1e-6)
    assert Augmentation(symmetry=5, shift=(0.1, 0.2)).colour(image) is image


@pytest.mark.parametrize("stain", range(3))
def test_a_stain_that_is_twice_as_strong_has_twice_its_optical_density(stain):
    density = 0.4 * HED[stain] + 0.1 * HED[(stain + 1) % 3]
    stains = [1.0, 1.0, 1.0]
    stains[stain] = 2.0
    found = Augmentation(stains=tuple(stains)).colour((1 - torch.exp(-density)).view(1, 3, 1, 1)).view(3)
    expected = 0.8 * HED[stain] + 0.1 * HED[(stain + 1) % 3]
    torch.testing.assert_close(-torch.log1p(-found), expected, rtol=1e-4, atol=1e-5)
