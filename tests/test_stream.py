"""Streaming: tile by tile is the undivided computation, whatever the tiles, the segments and the ranks."""

import copy
import itertools
import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from forks import with_forks
from launching import ROOT
from spatial_cases import ALL_CASES, Apply, awakened, frozen_resnet18, made
from torch import nn

from gigapipe.models import GigapixelUNet, resnet18, resnet50
from gigapipe.models.resnet import FrozenBatchNorm2d
from gigapipe.spatial import Mesh, NotDecomposed, Plan, constant, decompose, plan_streaming, shard, stream
from gigapipe.spatial.check import compare
from gigapipe.spatial.constant import cells_of, divided, told_by_device
from gigapipe.spatial.recording import Node, Ref
from gigapipe.spatial.tensor import index_of
from gigapipe.spatial.window import Interval, Rectangle
from gigapipe.training.losses import dice_and_cross_entropy_of_classes

TOLERANCE = 1e-10
HEAPS = 0.0, 1e15
"""Bytes that a thread keeps at most of what it frees."""


def half_white(*shape: int) -> torch.Tensor:
    """Images whose right parts are constant."""
    images = torch.rand(shape, dtype=torch.float64) - 0.5
    images[..., shape[-1] // 3 :] = 0.25
    return images


@pytest.mark.slow
@pytest.mark.parametrize("case", ALL_CASES)
def test_every_operation_is_exact_by_tiles_of_7_pixels(case):
    worst = compare(made(case), half_white(2, 3, *ALL_CASES[case].size), Mesh(), Plan(tile=7))[0]
    assert worst.error <= TOLERANCE, worst


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan",
    [
        Plan(tile=64),
        Plan(tile=1000),
        Plan(tile=50, kept=frozenset({4, 18})),
        Plan(tile=77, kept=frozenset({11}), whole_from=35),
        Plan(whole_from=0),
    ],
    ids=["one segment", "one tile", "three segments", "whole from layer3 on", "whole"],
)
def test_a_resnet_of_an_odd_size_is_exact_however_it_is_cut(plan):
    worst = compare(frozen_resnet18(), torch.randn(1, 3, 237, 191, dtype=torch.float64), Mesh(), plan)[0]
    assert worst.error <= TOLERANCE, worst


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["frozen", "none"])
def test_a_bottleneck_resnet_is_exact(norm):
    torch.manual_seed(0)
    model = awakened(resnet50(2, norm, width=16))
    plan = Plan(tile=90, kept=frozenset({4, 14}))
    # Where all is constant, which pixel of a pooling window is its maximum is a matter of rounding, once a norm is part
    # of the convolution before: the gradient goes to one or another of them.
    tied = {"input gradient"} if norm == "frozen" else set()
    for images, left_out in ((half_white(1, 3, 131, 245), tied), (torch.rand(1, 3, 131, 245), set())):
        differences = compare(model, images, Mesh(), plan)
        assert {d.kind for d in differences} >= {"output", "gradient", "input gradient"}
        worst = next(d for d in differences if d.kind not in left_out)
        assert worst.error <= TOLERANCE, worst


def small_network() -> nn.Module:
    """Which sees 27 pixels across."""
    torch.manual_seed(0)
    stem = (
        nn.Conv2d(3, 8, 3, 2, padding=1),
        FrozenBatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, padding=1),
    )
    head = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    return awakened(nn.Sequential(*stem, *head))


@pytest.mark.parametrize("tile", [24, 96], ids=["whole tiles", "cells of tiles"])
@pytest.mark.parametrize("kept", [(), (2, 4)], ids=["one segment", "three segments"])
@pytest.mark.parametrize("far", [False, True], ids=["on the host", "on a device"])
def test_what_is_constant_is_computed_once_with_the_same_gradients(kept, tile, far, monkeypatch):
    if far:  # asked about all at once, as a GPU is
        monkeypatch.setattr(constant, "on_host", lambda x: False)
    pixels, label = half_white(1, 3, 150, 400), torch.tensor([1])
    model = small_network()
    F.cross_entropy(model(pixels), label).backward()
    expected = [p.grad for p in model.parameters()]
    asked = []

    def read(rectangle):
        asked.append(rectangle)
        return pixels[..., slice(*rectangle.rows), slice(*rectangle.columns)]

    streaming = decompose(small_network().to(memory_format=torch.channels_last), Mesh())
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    image = stream(read, Plan(tile=tile, kept=frozenset(kept)), Mesh(), pixels.shape, torch.float64)
    F.cross_entropy(streaming(image), label).backward()
    for found, grad in zip(streaming.parameters(), expected, strict=True):
        torch.testing.assert_close(found.grad, grad, rtol=1e-10, atol=1e-12)
    # Forward all is read, backward only what no pixel stands for: the left third, and the other borders.
    tiles = -(-150 // tile) * -(-400 // tile)
    forward, backward = (sum(r.shape[0] * r.shape[1] for r in part) for part in (asked[:tiles], asked[tiles:]))
    assert backward < 0.75 * forward


def test_a_device_tells_of_all_cells_at_once_what_a_host_finds_one_by_one():
    """Of cells that overlap, of an image that has one value in most of them, in some for each row or column alone, and
    in some but for one pixel of one channel."""
    torch.manual_seed(0)
    values = torch.randint(3, (2, 3, 4, 5)).repeat_interleave(6, 2).repeat_interleave(6, 3).float()
    values[0, 1, 7, 13], values[..., 12:18, :6], values[..., 18:, 6:12] = 9, torch.rand(6)[:, None], torch.rand(6)
    values[1, 2, 23, 29] = torch.nan
    image = shard(values, Mesh())
    outer = Rectangle(Interval(100, 124), Interval(50, 80))
    starts = [
        [Interval(o.start + i, o.start + i + n) for n in (1, 5, 6) for i in range(0, o.size - 5, 3)] for o in outer
    ]
    cells = [Rectangle(*pair) for pair in itertools.product(*starts)]
    node = Node(1)
    node.results = (image,)
    ref = Ref(node)
    told = told_by_device([{node: cell} for cell in cells], {ref: (values, outer)})[ref]
    expected = {cell: constant.constant(values[index_of(image, cell, outer)], (2, 3)) for cell in cells}
    assert told == {cell: value for cell, value in expected.items() if value is not None}
    assert 20 < len(told) < len(cells) - 20


@pytest.mark.parametrize("constant", ["none", "two", "scattered", "all"])
def test_what_is_computed_of_a_tile_and_its_constant_cells_cover_it_once(constant):
    cells = cells_of(Rectangle(Interval(3, 26), Interval(100, 131)))
    flat = [cell for row in cells for cell in row]
    chosen = {"none": [], "two": flat[8:10], "scattered": flat[::5], "all": flat}[constant]
    division = divided(cells, dict.fromkeys(chosen))
    covered = torch.zeros(26, 131)
    for rows, columns in [*division.computed, *division.cells]:
        covered[slice(*rows), slice(*columns)] += 1
    assert (covered[3:, 100:] == 1).all() and covered.sum() == 23 * 31
    assert len(division.computed) == {"none": 1, "two": 4, "all": 0}.get(constant, len(division.computed))


@pytest.mark.parametrize("size", [(237, 191), (128, 192)])
def test_the_gigapixel_unet_is_exact_and_has_4492_parameters(size):
    torch.manual_seed(0)
    model = GigapixelUNet()
    assert sum(p.numel() for p in model.parameters()) == 4492
    worst = compare(model, torch.randn(1, 3, *size, dtype=torch.float64), Mesh(), Plan(tile=60))[0]
    assert worst.error <= TOLERANCE, worst


def loss_of_tissue(logits, mask):
    p, each = logits.sigmoid(), F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    entropy, both, ours, theirs = torch.cat([each, p * mask, p, mask], 1).sum((0, 2, 3))
    return entropy / mask.numel() + 1 - 2 * both / (ours + theirs)


@pytest.mark.parametrize("outputs, loss", [(1, loss_of_tissue), (4, dice_and_cross_entropy_of_classes)])
def test_a_dense_loss_is_summed_over_tiles_of_image_and_mask(outputs, loss):
    torch.manual_seed(0)
    model = GigapixelUNet(outputs).double()
    pixels, mask = torch.rand(1, 3, 190, 130, dtype=torch.float64), (torch.rand(1, 1, 190, 130) < 0.4).double()
    mask[..., 60:100] *= outputs - 1 or 1  # other classes, one of which is nowhere

    expected = loss(model(pixels), mask)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    streaming = decompose(copy.deepcopy(model), Mesh())
    image = stream(shard(pixels, Mesh()), Plan(tile=50))
    tiles = []
    image.recorder.progress = lambda _, *done: tiles.append(done)
    found = loss(streaming(image), stream(shard(mask, Mesh()), beside=image))
    found.backward()
    assert abs(found.item() / expected.item() - 1) <= TOLERANCE
    for ours, theirs in zip(streaming.parameters(), gradients, strict=True):
        torch.testing.assert_close(ours.grad, theirs, rtol=1e-10, atol=1e-13)
    assert tiles == [("forward", i + 1, 12) for i in range(12)] + [("backward", i + 1, 12) for i in range(12)]


@pytest.mark.parametrize("whole_from", [1, 4, 15, 40])
def test_an_image_that_is_read_meets_one_that_is_no_longer_streamed(whole_from):
    torch.manual_seed(0)
    model, mesh = GigapixelUNet().double(), Mesh()
    pixels, mask = torch.rand(1, 3, 130, 90, dtype=torch.float64), torch.rand(1, 1, 130, 90, dtype=torch.float64)
    F.mse_loss(model(pixels), mask).backward()

    def reader(whole):
        return lambda r: whole[..., slice(*r.rows), slice(*r.columns)]

    streaming = decompose(copy.deepcopy(model), mesh)
    streaming.zero_grad()
    plan = Plan(tile=50, kept=frozenset({whole_from - 1}), whole_from=whole_from)
    image = stream(reader(pixels), plan, mesh, pixels.shape, torch.float64)
    target = stream(reader(mask), None, mesh, mask.shape, torch.float64, beside=image)
    F.mse_loss(streaming(image), target).backward()
    for ours, theirs in zip(streaming.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-13)


def fused_around_a_change(x, convolution, norm):
    y = convolution(x)
    x = F.relu_(x)
    return norm(y) + x


def fused_without_arguments(x, convolution, norm):
    return norm(F.conv2d(x, convolution.weight))


def fused_half(x, convolution, norm):
    return norm(F.conv2d(x.bfloat16(), convolution.weight.bfloat16())).float()


@pytest.mark.parametrize("function", [fused_around_a_change, fused_without_arguments, fused_half])
def test_a_convolution_and_its_frozen_norm_are_one_and_what_they_were(function):
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(3, 3, 1), awakened(FrozenBatchNorm2d(3)).float()
    pixels = torch.randn(1, 3, 40, 30)
    with torch.no_grad():
        expected = function(pixels.clone(), convolution, norm)
        found = function(stream(shard(pixels, Mesh()), Plan(tile=9)) * 1, convolution, norm).computed().local
    tolerance = {"rtol": 0.02, "atol": 0.05} if function is fused_half else {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(found, expected, **tolerance)


@pytest.mark.slow
def test_trainable_batch_norm_between_kept_images_is_exact():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 101, 77, dtype=torch.float64)
    worst = compare(resnet18(2, width=16), images, Mesh(), Plan(tile=40, kept=frozenset({4, 11, 18, 34})))[0]
    assert worst.error <= TOLERANCE, worst


@pytest.mark.slow
def test_what_is_read_tile_by_tile_is_what_is_held():
    torch.manual_seed(0)
    pixels, label = torch.rand(1, 3, 300, 200), torch.tensor([1])
    asked = []

    def read(rectangle):
        asked.append(rectangle.shape)
        return pixels[..., slice(*rectangle.rows), slice(*rectangle.columns)]

    model = decompose(resnet18(2, width=16).eval(), Mesh())
    found = []
    for image, ahead in ((shard(pixels, Mesh()), 0), (read, 0), (read, 1)):
        model.zero_grad()
        streamed = stream(image, Plan(tile=64, kept=frozenset({18}), ahead=ahead), Mesh(), pixels.shape)
        F.cross_entropy(model(streamed), label).backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for one in found[1:] for a, b in zip(found[0], one, strict=True))
    assert len(asked) == 2 * 2 * 5 * 4 and max(rows * columns for rows, columns in asked) < 300 * 200 / 3


def test_dropout_by_tiles_drops_what_it_drops_of_the_whole():
    model = decompose(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Dropout2d(0.3), nn.Dropout(0.3)), Mesh())
    image = shard(torch.rand(1, 3, 40, 30), Mesh())
    torch.manual_seed(3)
    whole = model(image)
    torch.manual_seed(3)
    torch.testing.assert_close(model(stream(image, Plan(tile=9))).computed().local, whole.local)
    assert (whole.local == 0).double().mean() > 0.4


@pytest.mark.slow
def test_a_plan_says_what_memory_a_step_will_take():
    limit = 250_000_000
    command = [sys.executable, ROOT / "benchmarks/streaming.py", "--worker", str(limit), "--sizes", "1024"]
    done = subprocess.run([*command, "--precisions", "float32", "--steps", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["expected"] <= limit
    assert 0.75 <= found["expected"] / found["peak"] <= 1.25, found


@pytest.mark.slow
def test_a_plan_streams_no_more_than_it_must():
    model = resnet18(2).eval()
    roomy, tight = (plan_streaming(model, (1, 3, 4096, 4096), memory) for memory in (50e9, 4e9))
    assert roomy.whole_from == 1 and not roomy.kept and roomy.recorded and 0.7 < roomy.time < 1
    assert tight.kept and tight.peak <= 4e9 and roomy.time < tight.time < 2
    with pytest.raises(ValueError, match="at least .* GB are needed"):
        plan_streaming(model, (1, 3, 4096, 4096), 1e6)


@pytest.mark.slow
def test_a_heap_that_keeps_what_is_freed_is_planned_to_grow_with_the_tiles_and_no_further():
    model = resnet18(2).eval()
    plans = [plan_streaming(model, (1, 3, 2048, 2048), 9e8, base=4e8, threads=2, heap=heap) for heap in HEAPS]
    without, with_any = (plan.peak for plan in plans)
    assert without < with_any < 9e8


def test_what_is_changed_in_place_is_held_until_its_last_use():
    """Also what is changed first, for that is a copy of the input."""
    changed = nn.ReLU(inplace=True)
    first = nn.Tanh(), nn.Sequential(nn.Tanh(), changed), changed
    models = [decompose(nn.Sequential(one, nn.MaxPool2d(3, 2, 1)), Mesh()) for one in first]
    with torch.no_grad():
        peaks = [plan_streaming(model, (1, 8, 512, 512), 50e9, base=0.0).peak for model in models]
    assert peaks == [1.25 * 8 * 512**2 * 4] * 3


def test_a_plan_for_a_model_that_drops_out_draws_no_numbers_of_its_own():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Dropout(0.3), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1))
    torch.manual_seed(3)
    plan_streaming(model, (1, 3, 300, 300), 50e9)
    after = torch.rand(1)
    torch.manual_seed(3)
    torch.randint(2**62, (1,))  # drawn once, when the model was traced
    assert torch.equal(torch.rand(1), after)


def test_planning_leaves_a_model_as_it_was():
    model = resnet18(2)
    before = copy.deepcopy(model.state_dict())
    plan = plan_streaming(model, (1, 3, 512, 512), 50e9)
    assert plan.peak > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.slow
def test_the_example_of_the_docs_runs(tmp_path):
    page = (ROOT / "docs/streaming.md").read_text()
    (tmp_path / "example.py").write_text(page.split("```python\n")[1].split("```")[0])
    forks = with_forks(dict(os.environ), "python")
    done = subprocess.run(
        ["python", "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=120, env=forks
    )
    assert done.returncode == 0 and "loss" in done.stdout, done.stderr


def test_a_step_leaves_nothing_behind():
    """What a segment kept is gone when its gradients are made, though the image is still at hand."""
    model = decompose(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1)), Mesh())
    image = stream(shard(torch.rand(1, 3, 64, 64), Mesh()), Plan(tile=16, kept=frozenset({2})))
    loss = model(image).sum()
    held = [ref for ref in image.recorder.held if not ref.node.is_source]
    assert len(held) == 1
    loss.backward()
    assert [ref for ref in image.recorder.held if not ref.node.is_source] == []


def test_a_buffer_that_changes_before_it_is_used_is_noticed():
    norm = nn.BatchNorm2d(3).eval()
    model = decompose(nn.Sequential(norm, nn.AdaptiveAvgPool2d(1)), Mesh())
    loss = model(stream(shard(torch.rand(1, 3, 20, 20), Mesh()), Plan(tile=8))).sum()
    norm.running_mean.add_(1)
    with pytest.raises(RuntimeError, match="layer 0 works with was changed in place"):
        loss.backward()


def test_sums_of_numbers_that_floats_cannot_count_are_whole():
    image = stream(shard(torch.full((1, 1, 64, 64), 2**20 + 1), Mesh()), Plan(tile=16))
    assert image.sum().item() == 64 * 64 * (2**20 + 1)


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_a_reader_without_a_shape_or_a_mesh_is_refused():
    with pytest.raises(ValueError, match="no shape of its own"):
        stream(lambda rectangle: torch.zeros(1, 3, *rectangle.shape), mesh=Mesh())
    with pytest.raises(ValueError, match="no mesh of its own"):
        stream(lambda rectangle: torch.zeros(1, 3, *rectangle.shape), shape=(1, 3, 20, 20))


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda x: x.permute(0, 2, 3, 1).mul_(2), "may share memory"),
        (lambda x: x + shard(torch.rand(1, 3, 20, 20), Mesh()), "streamed and a decomposed"),
        (lambda x: torch.fft.fft2(x), "fft"),
        (lambda x: Swish.apply(x), "Swish"),
    ],
)
def test_what_cannot_be_streamed_is_refused_with_the_layer_s_name(function, message):
    model = decompose(nn.Sequential(nn.Identity(), Apply(function)), Mesh())
    with pytest.raises(NotDecomposed, match="in layer 1") as raised:
        model(stream(shard(torch.rand(1, 3, 20, 20), Mesh()), Plan(tile=8)))
    assert message in str(raised.value) and ";" in str(raised.value)
