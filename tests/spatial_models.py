"""Small models, each of which meets one thing that decomposition can get wrong. Name -> (model, image size)."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from gigapipe.models.resnet import AttentionPool2d


class Apply(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


class Branches(nn.Module):
    """Several layers' outputs of one tensor, combined."""

    def __init__(self, combine, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.combine = combine

    def forward(self, x):
        return self.combine(*(layer(x) for layer in self.layers))


class Twice(nn.Module):
    """One layer, called twice, with an in-place activation between and after."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.conv(self.relu(self.conv(x))))


class Checkpointed(nn.Module):
    """Layers whose activations are computed again in the backward pass."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return checkpoint(self.layers, x, use_reentrant=False)


class FrozenBatchNorm(nn.BatchNorm2d):
    """Normalises by its running statistics, in training too."""

    def forward(self, x):
        return F.batch_norm(x, self.running_mean + 0.1, self.running_var, self.weight, self.bias, False)


def after(*layers):
    """Layers after a convolution, whose gradients show what the layers hand back."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *layers)


def simple(groups: bool = False):
    """Five convolutions with strides and a shortcut, as in the measurements of other libraries."""
    norm = (lambda c: nn.GroupNorm(2, c)) if groups else nn.BatchNorm2d
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, padding=3, bias=False), norm(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1),
        Branches(torch.add, nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), norm(16)), nn.Conv2d(8, 16, 1, 2)),
        nn.ReLU(), nn.Conv2d(16, 4, 3, padding=2, dilation=2),
    )  # fmt: skip


CASES = {
    # What other libraries refuse or get wrong.
    "3x3 convolution": (lambda: nn.Conv2d(3, 4, 3, padding=1), (64, 64)),
    "two 3x3 convolutions": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)),
        (64, 64),
    ),
    "3x3 stride 2": (lambda: nn.Conv2d(3, 4, 3, 2, padding=1), (64, 64)),
    "7x7 stride 2": (lambda: nn.Conv2d(3, 4, 7, 2, padding=3), (64, 64)),
    "3x3 stride 2, 62 columns": (lambda: nn.Conv2d(3, 4, 3, 2, padding=1), (64, 62)),
    "3x3, 63 columns": (lambda: nn.Conv2d(3, 4, 3, padding=1), (64, 63)),
    "4x4 stride 2": (lambda: nn.Conv2d(3, 4, 4, 2, padding=1), (64, 64)),
    "3x3 dilation 2": (lambda: nn.Conv2d(3, 4, 3, padding=2, dilation=2), (64, 64)),
    "MaxPool 3/2/1": (lambda: after(nn.MaxPool2d(3, 2, 1)), (64, 64)),
    "BatchNorm": (lambda: after(nn.BatchNorm2d(8)), (37, 23)),
    "GroupNorm": (lambda: after(nn.GroupNorm(4, 8)), (37, 23)),
    "3x3 + 1x1 projection": (
        lambda: Branches(torch.add, nn.Conv2d(3, 4, 3, 2, padding=1), nn.Conv2d(3, 4, 1, 2)),
        (64, 64),
    ),
    "strides, BatchNorm, shortcut": (simple, (101, 77)),
    "strides, GroupNorm, shortcut": (lambda: simple(groups=True), (101, 77)),
    # Convolutions.
    "same, even kernel": (lambda: nn.Conv2d(3, 4, 4, padding="same"), (19, 23)),
    "same, dilated": (lambda: nn.Conv2d(3, 4, (2, 5), padding="same", dilation=(3, 1)), (19, 23)),
    "depthwise 7x7": (lambda: after(nn.Conv2d(8, 8, 7, padding=3, groups=8)), (33, 29)),
    "halo past the neighbour": (lambda: nn.Conv2d(3, 4, 9, padding=12, dilation=3), (17, 15)),
    "no padding": (lambda: nn.Conv2d(3, 4, (5, 1), (3, 2)), (40, 33)),
    "more padding than kernel": (lambda: nn.Conv2d(3, 4, 3, padding=7), (9, 9)),
    "stride larger than kernel": (lambda: nn.Conv2d(3, 4, 2, 5), (31, 44)),
    "fewer pixels than ranks": (lambda: nn.Sequential(*[nn.Conv2d(3, 3, 3, 2, 1) for _ in range(5)]), (33, 17)),
    "deep, of many channels": (lambda: nn.Sequential(nn.Conv2d(3, 64, 3, 2, 1), nn.Conv2d(64, 64, 3, 2, 1)), (14, 13)),
    "reflect": (lambda: nn.Conv2d(3, 4, 5, padding=2, padding_mode="reflect"), (21, 18)),
    "replicate": (lambda: nn.Conv2d(3, 4, 5, padding=(3, 1), padding_mode="replicate"), (21, 18)),
    "circular": (lambda: nn.Conv2d(3, 4, 5, 2, padding=2, padding_mode="circular"), (21, 18)),
    "transposed 2x2": (lambda: after(nn.ConvTranspose2d(8, 4, 2, 2)), (21, 18)),
    "transposed 3x3 stride 2": (lambda: after(nn.ConvTranspose2d(8, 4, 3, 2, 1, output_padding=1)), (21, 18)),
    "transposed, dilated, grouped": (
        lambda: after(nn.ConvTranspose2d(8, 4, 3, 3, 2, output_padding=2, groups=2, dilation=2)),
        (11, 8),
    ),
    "transposed with gaps": (lambda: after(nn.ConvTranspose2d(8, 4, 1, 3, output_padding=2)), (11, 8)),
    # Pools.
    "MaxPool with ceil": (lambda: after(nn.MaxPool2d(3, 2, 1, ceil_mode=True)), (36, 35)),
    "MaxPool dilated": (lambda: after(nn.MaxPool2d((3, 2), (2, 3), (1, 0), dilation=2)), (36, 35)),
    "AvgPool": (lambda: after(nn.AvgPool2d(3, 2, 1)), (36, 35)),
    "AvgPool, ceil, without padding's zeros": (
        lambda: after(nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)),
        (36, 35),
    ),
    "AvgPool, divisor": (lambda: after(nn.AvgPool2d(2, ceil_mode=True, divisor_override=3)), (35, 33)),
    "LPPool": (lambda: after(nn.Sigmoid(), nn.LPPool2d(2, 3, 2)), (35, 33)),
    "global average": (lambda: after(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)), (35, 33)),
    "global maximum": (lambda: after(nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 3)), (35, 33)),
    "attention pooling": (lambda: after(AttentionPool2d(8), nn.Flatten(), nn.Linear(8, 3)), (35, 33)),
    "adaptive average 7x5, flattened": (
        lambda: after(nn.AdaptiveAvgPool2d((7, 5)), nn.Flatten(), nn.Linear(280, 3)),
        (35, 33),
    ),
    "adaptive maximum 6x4": (lambda: after(nn.AdaptiveMaxPool2d((6, 4))), (35, 33)),
    "mean as a method": (lambda: after(Apply(lambda x: x.mean((2, 3)))), (35, 33)),
    # Norms.
    "BatchNorm without affine": (lambda: after(nn.BatchNorm2d(8, affine=False)), (12, 9)),
    "BatchNorm, cumulative": (lambda: after(nn.BatchNorm2d(8, momentum=None)), (12, 9)),
    "BatchNorm without statistics": (lambda: after(nn.BatchNorm2d(8, track_running_stats=False)), (12, 9)),
    "SyncBatchNorm": (lambda: after(nn.BatchNorm2d(8)), (12, 9)),
    "InstanceNorm": (lambda: after(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)), (37, 23)),
    "LayerNorm over channels": (
        lambda: after(Apply(lambda x: x.permute(0, 2, 3, 1)), nn.LayerNorm(8), nn.Linear(8, 5), nn.GELU(),
                      Apply(lambda x: x.permute(0, 3, 1, 2))),
        (37, 23),
    ),
    "LayerNorm by hand": (
        lambda: after(Apply(lambda x: (x - x.mean(1, keepdim=True)) / (x.pow(2).mean(1, keepdim=True) + 1e-6).sqrt())),
        (37, 23),
    ),
    # Resampling.
    "nearest x2": (lambda: after(nn.Upsample(scale_factor=2)), (13, 10)),
    "bilinear x2": (lambda: after(nn.UpsamplingBilinear2d(scale_factor=2)), (13, 10)),
    "bilinear x3": (lambda: after(nn.Upsample(scale_factor=3, mode="bilinear")), (13, 10)),
    "bilinear to 31x17": (lambda: after(nn.Upsample((31, 17), mode="bilinear")), (13, 22)),
    "bilinear x1.7, aligned": (
        lambda: after(nn.Upsample(scale_factor=1.7, mode="bilinear", align_corners=True)),
        (13, 22),
    ),
    "nearest to 31x17": (lambda: after(nn.Upsample((31, 17))), (13, 22)),
    "nearest-exact x0.6": (lambda: after(nn.Upsample(scale_factor=0.6, mode="nearest-exact")), (13, 22)),
    "PixelShuffle": (lambda: after(nn.PixelShuffle(2)), (13, 10)),
    "PixelUnshuffle": (lambda: after(nn.PixelUnshuffle(2)), (14, 10)),
    "pad and crop": (lambda: after(Apply(lambda x: F.pad(x, (3, -2, -1, 4), value=0.5)[:, 1:5, 2:, :-3])), (14, 10)),
    # Shapes of the graph.
    "called twice, in place": (Twice, (14, 10)),
    "cat of branches": (
        lambda: Branches(lambda a, b: torch.cat([a, b], 1), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)),
        (14, 10),
    ),
    "squeeze and excite": (
        lambda: after(
            Branches(torch.mul, nn.Identity(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid()))
        ),
        (14, 10),
    ),
    "split, softmax, activations": (
        lambda: after(Apply(lambda x: sum(c.softmax(1) for c in x.chunk(2, 1))), nn.PReLU(4), nn.Hardswish(), nn.ELU()),
        (14, 10),
    ),
    # So small that ranks own nothing of what is computed again.
    "checkpointed": (
        lambda: after(
            *[Checkpointed(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)) for _ in range(3)],
            Checkpointed(nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 8, 1)),
        ),
        (21, 17),
    ),
    "checkpointed to the last exchange": (
        lambda: Checkpointed(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(2)),
        (9, 7),
    ),
    "frozen BatchNorm of next to nothing": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 4), FrozenBatchNorm(4), nn.Conv2d(4, 2, 1)),
        (7, 7),
    ),
    "padding of next to nothing": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ZeroPad2d((0, 0, 0, 1))), (3, 7)),
    "ceil of what does not fit": (lambda: after(nn.MaxPool2d(3, 2, ceil_mode=True)), (2, 9)),
    "bilinear x2.05": (lambda: after(nn.Upsample(scale_factor=2.05, mode="bilinear")), (10, 10)),
    "a whole image added": (lambda: after(Apply(lambda x: x + torch.arange(14.0).double()[:, None])), (14, 10)),
}  # fmt: skip


def loss(function, classes: bool = False, **options):
    """A dense loss as a model: of the first two channels against a fixed target for a batch of two."""
    generator = torch.Generator().manual_seed(2)
    if classes:
        target = torch.randint(0, 3, (2, 19, 14), generator=generator)
    else:
        target = torch.rand(2, 3, 19, 14, generator=generator, dtype=torch.float64)
    return nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1), nn.Sigmoid(), Apply(lambda x: function(x, target, **options).view(-1))
    )


WEIGHT = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
# Losses see their whole batch: on meshes of one data rank only.
LOSSES = {
    "cross-entropy": (lambda: loss(F.cross_entropy, classes=True), (19, 14)),
    "cross-entropy, weighted, with ignored pixels": (
        lambda: loss(F.cross_entropy, classes=True, weight=WEIGHT, ignore_index=1, label_smoothing=0.1),
        (19, 14),
    ),
    "cross-entropy of probabilities": (lambda: loss(F.cross_entropy), (19, 14)),
    "negative log-likelihood, summed": (
        lambda: loss(F.nll_loss, classes=True, weight=WEIGHT, reduction="sum"),
        (19, 14),
    ),
    "mean square": (lambda: loss(F.mse_loss), (19, 14)),
    "smooth L1": (lambda: loss(F.smooth_l1_loss, beta=0.3), (19, 14)),
    "binary cross-entropy": (lambda: loss(F.binary_cross_entropy), (19, 14)),
    "binary cross-entropy, of logits": (
        lambda: loss(F.binary_cross_entropy_with_logits, pos_weight=WEIGHT[:, None, None]),
        (19, 14),
    ),
    "Dice": (
        lambda: loss(lambda x, t: (2 * (x * t).sum((0, 2, 3)) / (x.sum((0, 2, 3)) + t.sum((0, 2, 3)))).mean()),
        (19, 14),
    ),
}  # fmt: skip
