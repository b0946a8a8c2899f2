"""Losses of every pixel by blocks of rows: the same values and gradients, and that they are computed so at all."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gigapipe.spatial import Mesh, Plan, blocks, decompose, shard, stream
from gigapipe.training.losses import dice_and_cross_entropy, dice_and_cross_entropy_of_classes

ROWS = 3
"""Of a block of the images below, about."""

PLANS = {
    "tiles": Plan(tile=40),
    "tiles, threads": Plan(tile=40, workers=2),
    "kept, then at once": Plan(tile=40, kept=frozenset({2}), whole_from=3, recorded=True),
    "at once": Plan(whole_from=1, recorded=True),
}


class Dense(nn.Module):
    """Logits of four classes of every pixel, interpolated from a third of the rows and half of the columns."""

    def __init__(self, outputs: int = 4):
        super().__init__()
        self.down, self.head = nn.Conv2d(3, 5, 3, (3, 2), padding=1), nn.Conv2d(5, outputs, 1)

    def forward(self, x):
        return F.interpolate(self.head(F.relu(self.down(x))), x.shape[-2:], mode="bilinear")


def dice(logits, classes):
    return dice_and_cross_entropy(logits[:, :1], (classes > 1).to(logits.dtype))


def dice_of_classes(logits, classes):
    return dice_and_cross_entropy_of_classes(logits, classes.to(logits.dtype))


def weighted(logits, classes):
    """A loss whose pixels weigh by themselves, without a gradient of that."""
    with torch.no_grad():
        weight = logits.softmax(1).amax(1, keepdim=True)
    return (weight * (logits - classes.to(logits.dtype)) ** 2).mean()


def in_place(logits, classes):
    found = logits * 2
    found.sub_(classes.to(logits.dtype)).relu_()
    return found.sum()


def joined_along_the_batch(logits, classes):
    return (torch.cat([logits, logits * classes.to(logits.dtype)], 0).sum((0, 2, 3)) ** 2).mean()


def joined_and_used_twice(logits, classes):
    both = torch.cat([logits, logits.sigmoid()], 1)
    return (both * both.detach()).sum((0, 2, 3)).mean() + both.sum((0, 2, 3))[1]


def joined_and_kept(logits, classes):
    return (
        torch.cat([logits.sigmoid(), logits.square(), classes.to(logits.dtype)], 1).sum((0, 2, 3), keepdim=True).std()
    )


def interpolated_twice(logits, classes):
    double = F.interpolate(logits, scale_factor=2.0, mode="bicubic")
    return F.interpolate(double, classes.shape[-2:], mode="nearest").square().mean()


def counted(logits, classes):
    """Of what hands no gradient on."""
    return (logits > 0).to(logits.dtype).mul(classes.to(logits.dtype)).mean() + logits.square().mean()


LOSSES = (
    dice, dice_of_classes, weighted, in_place, joined_along_the_batch, joined_and_used_twice, joined_and_kept,
    interpolated_twice, counted,
)  # fmt: skip


def loss_and_gradients(model, loss, image, classes, plan=None):
    model.zero_grad()
    pixels = image.clone().requires_grad_()
    if plan is None:
        value = loss(model(pixels), classes)
        value.backward()
        return [value.detach(), pixels.grad, *(p.grad.clone() for p in model.parameters())]
    given = shard(pixels, Mesh())
    streamed = stream(given, plan)
    value = loss(model(streamed), stream(shard(classes, Mesh()), beside=streamed))
    value.backward()
    return [value.detach(), pixels.grad, *(p.grad.clone() for p in model.parameters())]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks as high as said above, and a list of how many each tile had."""
    monkeypatch.setattr(blocks, "BLOCK", ROWS * 34 * 4 * 8)
    counts, of = [], blocks.Blocks.of

    def noted(self, out):
        found = list(of(self, out))
        counts.append(len(found))
        return iter(found)

    monkeypatch.setattr(blocks.Blocks, "of", noted)
    return counts


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_by_blocks_is_exact(loss, plan, small_blocks):
    torch.manual_seed(0)
    model = Dense().double()
    image, classes = torch.randn(2, 3, 47, 34, dtype=torch.float64), torch.randint(4, (2, 1, 47, 34))
    expected = loss_and_gradients(model, loss, image, classes)
    decompose(model, Mesh())
    found = loss_and_gradients(model, loss, image, classes, PLANS[plan])
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max().clamp_min(1e-3)
    assert max(small_blocks) > 3, "no tile was computed by blocks"


def test_blocks_are_the_same_to_the_bit_by_any_number_of_threads(small_blocks):
    torch.manual_seed(0)
    model = decompose(Dense(), Mesh())
    image, classes = torch.randn(1, 3, 47, 34), torch.randint(4, (1, 1, 47, 34))
    plans = [Plan(tile=40, workers=1), Plan(tile=40, workers=2), Plan(tile=40, workers=3)]
    first, *others = (loss_and_gradients(model, dice, image, classes, plan) for plan in plans)
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_blocks_of_16_bits_are_summed_in_32(dtype, small_blocks):
    """Of float16 a sum over blocks would be beyond its range, and one pixel of a mean below."""
    ones = torch.ones(1, 1, 300, 340, dtype=dtype)
    streamed = stream(shard(ones, Mesh()), Plan(tile=200))
    image = streamed * 1
    assert image.clamp(0, 1).mean() == 1 and F.mse_loss(image * 1, 1 - image) == 1 and small_blocks


def test_what_parameters_take_part_in_is_not_computed_by_blocks(small_blocks):
    torch.manual_seed(0)
    gain, model = nn.Parameter(torch.rand(4, 1, 1, dtype=torch.float64)), Dense().double()
    image, classes = torch.randn(1, 3, 47, 34, dtype=torch.float64), torch.randint(4, (1, 1, 47, 34))

    def loss(logits, classes):
        return (logits * gain).square().mean()

    expected = [*loss_and_gradients(model, loss, image, classes), gain.grad.clone()]
    gain.grad = None
    decompose(model, Mesh())
    found = [*loss_and_gradients(model, loss, image, classes, PLANS["tiles"]), gain.grad]
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, expected, strict=True))


def test_a_mask_has_no_gradient():
    with pytest.raises(ValueError, match="detach it"):
        dice_and_cross_entropy(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3, requires_grad=True))
