"""What is compared with undivided torch, on ranks and by tiles: small models, each of which meets one thing that
decomposition can get wrong; dense losses; and each operation that is registered, by itself.
"""

import collections
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from gigapipe.models import resnet18
from gigapipe.models.resnet import AttentionPool2d, Gain, GatedAttentionPool2d
from gigapipe.spatial.tensor import DECOMPOSED


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    size: tuple[int, int]
    """Rows and columns of the image."""


def awakened(model: nn.Module) -> nn.Module:
    """In float64, with statistics and gains that do something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, Gain):
            nn.init.constant_(module.gain, 0.5)
    return model.double()


def frozen_resnet18() -> nn.Module:
    """ResNet-18 with a quarter of its channels."""
    torch.manual_seed(0)
    return awakened(resnet18(2, "frozen", width=16))


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
    "gated attention pooling": (lambda: after(GatedAttentionPool2d(8), nn.Flatten(), nn.Linear(8, 3)), (35, 33)),
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
    "bicubic x2": (lambda: after(nn.Upsample(scale_factor=2, mode="bicubic")), (13, 10)),
    "bicubic x0.6": (lambda: after(nn.Upsample(scale_factor=0.6, mode="bicubic")), (23, 20)),
    "bicubic to 31x17, aligned": (lambda: after(nn.Upsample((31, 17), mode="bicubic", align_corners=True)), (13, 22)),
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

ROWS, COLUMNS = 14, 10
OTHER = torch.linspace(0.05, 1, ROWS * COLUMNS, dtype=torch.float64).round(decimals=1).view(ROWS, COLUMNS)
"""A plain tensor as large as the image, of which each rank needs its rectangle."""
KERNEL = torch.linspace(-1, 1, 4 * 4 * 9, dtype=torch.float64).view(4, 4, 3, 3)
MATRIX = KERNEL.flatten(1)[:, :4]


def tied(x):
    """With values that are the largest, or the smallest, in several places."""
    return x.clamp(0.45, 0.55)


def channels_last(x):
    return x.permute(0, 2, 3, 1)


# How operations are called on an image (batch, 4 channels, rows, columns) of values from 0.1 to 0.9, if not as f(x).
ALIKE = {
    "add sub mul div pow maximum minimum lt le gt ge __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__": (
        lambda f, x: f(x, OTHER)
    ),
    "__truediv__ __rdiv__ __pow__ __rpow__ __lt__ __le__ __gt__ __ge__ logical_and logical_or": (
        lambda f, x: f(x, OTHER)
    ),
    "add_ sub_ mul_ div_ __iadd__ __isub__ __imul__ __idiv__": lambda f, x: f(x.clone(), OTHER),
    "eq ne __eq__ __ne__": lambda f, x: f(x.round(decimals=1), OTHER),
    "__and__ __or__": lambda f, x: f(x > 0.4, OTHER > 0.6),
    "__invert__ logical_not": lambda f, x: f(x > 0.4),
    "clamp clip": lambda f, x: f(x, 0.3, 0.6),
    "sum mean": lambda f, x: (f(x, (2, 3)), f(x, 1), f(x).view(-1), f(x, 2), f(x, (1, 3), True)),
    "var std": lambda f, x: (f(x, (2, 3)), f(x, 1, correction=0), f(x).view(-1), f(x, 3, True, True), f(x, False)),
    "var_mean std_mean": lambda f, x: (*f(x, (2, 3), keepdim=True), *f(x, (1, 2)), *f(x, 1)),
    "norm": lambda f, x: (f(x).view(-1), f(x, 2, 1), f(x, 1, (2, 3), True), f(x, math.inf, 3), f(x, 3.0, (2, 3))),
    "vector_norm": lambda f, x: (f(x, 2, 1), f(x * 0, 2, (2, 3)), f(x, 0, (2, 3)), f(x, -math.inf, (2, 3))),
    "logsumexp": lambda f, x: (f(x, 1), f(x, (2, 3), True), f(x, 2)),
    "reshape view": lambda f, x: (
        f(x, (2, 2, 2, ROWS, -1)),
        f(x, (8, 1, ROWS, COLUMNS)).sum(0)[None],
        f(x, (2, 4, -1)),
        f(x, (-1,))[None],
    ),
    "unflatten": lambda f, x: f(x, 1, (2, 2)),
    "view_as reshape_as": lambda f, x: f(x, x.new_zeros(2, 2, 2, ROWS, COLUMNS)),
    "new_zeros new_ones": lambda f, x: (f(x, 2, 3), x + f(x, x.shape), x * f(x, (2, 1, 1, 1))),
    "new_empty": lambda f, x: (f(x, (2, 3)).fill_(2), f(x, x.shape).fill_(0.5)),
    "new_full": lambda f, x: (f(x, (2, 3), 0.5), f(x, x.shape, 0.5)),
    "new_tensor": lambda f, x: x * f(x, [[0.5], [2.0]]).view(2, 1, 1, 1),
    "unbind": lambda f, x: f(x, 1),
    "__iter__": lambda f, x: tuple(f(x.transpose(0, 1))),
    "swapaxes swapdims": lambda f, x: f(x, 1, 3),
    "movedim moveaxis": lambda f, x: (f(x, 1, -1), f(x, (1, 2), (3, 1))),
    "roll": lambda f, x: (f(x, 3, 2), f(x, (-2, 1, 5), (1, 2, 3))),
    "flip": lambda f, x: (f(x, (2,)), f(x, (1, 3))),
    "select": lambda f, x: f(x, 1, 2),
    "index_select": lambda f, x: f(x, 1, torch.tensor([2, 0, 2])),
    "repeat_interleave": lambda f, x: f(x, 2, 1),
    "kl_div": lambda f, x: (f(x, OTHER.expand(x.shape)), f(x, OTHER.expand(x.shape), reduction="batchmean")),
    "matmul __matmul__": lambda f, x: (f(channels_last(x), MATRIX.T), f(channels_last(x), MATRIX[0])),
    "rms_norm": lambda f, x: f(channels_last(x), (4,), KERNEL[0, :, 0, 0]),
    "amax amin": lambda f, x: (f(x, 1), f(x, (2, 3)), f(tied(x)).view(-1), f(tied(x), 2), f(x, (0, 3), True)),
    "max min argmax softmax log_softmax softmin glu flatten": lambda f, x: f(x, 1),
    "chunk split": lambda f, x: f(x, 2, 1),
    "cat concat": lambda f, x: (
        f([x, x.exp()], 1),
        f([OTHER.expand(2, 3, -1, -1), x, torch.empty(2, 0, *OTHER.shape)], 1),
    ),
    "pixel_shuffle pixel_unshuffle": lambda f, x: f(x, 2),
    "upsample interpolate": lambda f, x: f(x, (17, 23), mode="bilinear"),
    "mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits": (
        lambda f, x: f(x, OTHER.expand(x.shape))
    ),
    "cross_entropy nll_loss": lambda f, x: f(x, (OTHER * 3).long().expand(2, -1, -1)),
    "dropout dropout2d alpha_dropout feature_alpha_dropout": lambda f, x: f(x, 0.5, False),
    "avg_pool2d max_pool2d max_pool2d_with_indices": lambda f, x: f(x, 3, 2, 1),
    "max_unpool2d": lambda f, x: f(*F.max_pool2d(x, 2, return_indices=True), 2, output_size=x.shape[-2:]),
    "adaptive_avg_pool2d adaptive_max_pool2d": lambda f, x: f(x, (3, 2)),
    "addcmul addcdiv": lambda f, x: f(x, x.exp(), OTHER),
}
CALLS = {name: call for names, call in ALIKE.items() for name in names.split()} | {
    "elu_": lambda f, x: f(x - 0.5),
    "clamp_": lambda f, x: f(x.clone(), 0.3, 0.6),
    "fill_": lambda f, x: f(x.clone(), 0.3),
    "threshold": lambda f, x: f(x, 0.5, 0.2),
    "where": lambda f, x: f(OTHER > 0.4, x, -x) if f is torch.where else f(x, OTHER > 0.4, -x),
    "lerp": lambda f, x: f(x, OTHER.expand(x.shape), 0.3),
    "full_like": lambda f, x: f(x, 0.7),
    "masked_fill": lambda f, x: f(x, OTHER > 0.4, 0.7),
    "to": lambda f, x: f(x, torch.float64),
    "type_as": lambda f, x: f(x, x),
    "prelu": lambda f, x: f(x - 0.5, torch.linspace(0.1, 0.4, 4, dtype=torch.float64)),
    "conv2d": lambda f, x: f(x, KERNEL, padding=1),
    "conv_transpose2d": lambda f, x: f(x, KERNEL, stride=2),
    "linear": lambda f, x: f(channels_last(x), MATRIX),
    "narrow": lambda f, x: f(x, 1, 1, 2),
    "permute": lambda f, x: f(x, (0, 2, 3, 1)),
    "transpose": lambda f, x: f(x, 1, 3),
    "unsqueeze": lambda f, x: f(x, 2),
    "squeeze": lambda f, x: f(x[:, :1], 1),
    "__getitem__": lambda f, x: (
        f(x, (slice(None), 1, slice(2, None), slice(1, -3))),
        f(x, (..., slice(1, None, 2), slice(None, None, 3))),
        f(x, (0, None, [2, 0], slice(None), None)),
        f(x, (torch.tensor([1, 0]), torch.tensor([3, 1]))),
        f(x, (slice(None), torch.tensor([True, False, True, True]))),
        f(x, (torch.tensor([1, 0])[:, None], slice(None), slice(2, 9), ...)),
    ),
    "stack": lambda f, x: f([x, OTHER.expand(x.shape)], -1),
    "expand": lambda f, x: (f(x[:, :1], -1, 3, -1, -1), f(x, (5, *x.shape)).sum(0)),
    "expand_as": lambda f, x: (f(x[:, :1], x), x * f(x.mean((2, 3), keepdim=True), x)),
    "repeat": lambda f, x: (f(x, 1, 2, 1, 1), f(x, 3, 1, 1, 1, 1).mean(0)),
    "local_response_norm": lambda f, x: f(x, 3),
    "one_hot": lambda f, x: f((x[:, 0] * 5).long(), 6),
    "einsum": lambda f, x: (
        f("bchw,dc->bdhw", x, MATRIX), f("bchw, bdhw -> bcd", x, x.exp()), f("bchw,hw->bchw", x, OTHER),
        f("bihw,bihw->bhw", [x, x]), f("bchw,c", x, MATRIX[0]),
        f("bc...,dc->bd...", x, MATRIX), f("bc...,c->b...", x, MATRIX[0]),
    ),
    "normalize": lambda f, x: f(x, 2, 1),
    "pad": lambda f, x: (f(x, (1, 2, 3, -2), value=0.5), f(x, (0, 1, 0, 0, 2, -1, 1, 0))[1:]),
    "batch_norm": lambda f, x: f(x, None, None, training=True),
    "group_norm": lambda f, x: f(x, 2),
    "layer_norm": lambda f, x: f(channels_last(x), (4,)),
    "lp_pool2d": lambda f, x: f(x, 2, 3),
}  # fmt: skip


def spelling(function: Callable) -> tuple[str, str]:
    """Where a user finds an operation, and its name there: ("Tensor", "add")."""
    return next(found for there, found in SPELLINGS[id(function)] if there is function)


def _spellings() -> dict[int, list[tuple[object, tuple[str, str]]]]:
    """What there is in torch by its id, with where it is found; of several places and names the first comes first."""
    found = collections.defaultdict(list)
    for place, home in (("torch", torch), ("Tensor", torch.Tensor), ("F", F), ("linalg", torch.linalg)):
        for name in sorted(dir(home), key=lambda name: name.startswith("_")):  # the public one, if there are two
            there = getattr(home, name, None)
            found[id(there)].append((there, (place, name)))
    return found


SPELLINGS = _spellings()


class Operation(nn.Module):
    """An operation of the features of a convolution; both are given back, so that there is always a gradient."""

    def __init__(self, function: Callable, call: Callable):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Sigmoid())
        self.function, self.call = function, call

    def forward(self, image):
        features = self.features(image) * 0.8 + 0.1
        found = self.call(self.function, features)
        found = found if isinstance(found, tuple) else (found,)
        return features, *(f.double().view(-1) if f.dim() == 0 else f.double() for f in found)


DIFFERENTIATION = {torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward}
"""What asks for gradients; its cases are in contract_cases.py."""
RANDOM = {torch.rand_like, torch.randn_like, torch.bernoulli, torch.Tensor.bernoulli}
"""What torch draws otherwise: compared over meshes, as dropout is."""
REFUSED = {F.adaptive_max_pool2d_with_indices}
"""What is registered to say what to use instead."""


def _operation(function: Callable) -> Case:
    call = CALLS.get(spelling(function)[1], lambda f, x: f(x.clone()))  # clone, for it may work in place
    return Case(lambda: Operation(function, call), (ROWS, COLUMNS))


COMPARED = [
    function
    for function, ours in DECOMPOSED.items()
    if ours.__module__.startswith("gigapipe.spatial") and function not in REFUSED | DIFFERENTIATION | RANDOM
]
"""Torch's functions that have a decomposed form. Those of patch encoders
and of a loss of masks are of no torch function, and are in test_patches.py and test_blocks.py."""

OPERATIONS = {".".join(spelling(function)): _operation(function) for function in COMPARED}
"""Each torch function that has a decomposed form, by name. One that is called otherwise than f(x) stands in `CALLS`."""

ALL_CASES = {name: Case(*case) for name, case in {**CASES, **LOSSES, **OPERATIONS}.items()}
OF_A_BATCH = {*LOSSES, *(name for name in OPERATIONS if "loss" in name or "entropy" in name)}
"""They see their whole batch: on meshes of one data rank only."""


def made(name: str) -> nn.Module:
    """The model of a case, the same each time."""
    torch.manual_seed(0)
    model = ALL_CASES[name].make()
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if name == "SyncBatchNorm" else model
