"""Tiles side by side: what threads compute is the same to the bit however many there are, and what fails is said."""

import copy
import dataclasses
import threading
import time

import pytest
import torch
import torch.nn.functional as F
from spatial_cases import awakened
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gigapipe.models.resnet import FrozenBatchNorm2d
from gigapipe.spatial import Mesh, Plan, decompose, plan_streaming, shard, stream
from gigapipe.spatial.check import compare
from gigapipe.spatial.workers import side_by_side
from gigapipe.training.losses import dice_and_cross_entropy


def network(norm: nn.Module) -> nn.Module:
    """With all that tiles share: weights, a norm, random numbers."""
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 16, 5, 2, padding=2), norm, nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)
    middle = nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Dropout(0.3)
    return nn.Sequential(*stem, *middle, nn.Conv2d(24, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


def gradients(model: nn.Module, pixels: torch.Tensor, plan: Plan, precision=torch.float32) -> list[torch.Tensor]:
    """Loss, and gradients of image and parameters."""
    model, pixels = decompose(copy.deepcopy(model), Mesh()), pixels.clone().requires_grad_()
    torch.manual_seed(1)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        loss = F.cross_entropy(model(stream(shard(pixels, Mesh()), plan)).float(), torch.tensor([1]))
    loss.backward()
    return [loss.detach(), pixels.grad, *(p.grad for p in model.parameters())]


@pytest.mark.slow
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", [lambda: awakened(FrozenBatchNorm2d(16)).float(), lambda: nn.BatchNorm2d(16)])
def test_a_gradient_is_the_same_to_the_bit_however_many_threads_compute_tiles(norm, precision):
    model, pixels = network(norm()), torch.rand(1, 3, 170, 230)
    pixels[..., 130:] = 0.25
    found = [
        gradients(model, pixels, Plan(tile=40, kept=frozenset({4}), workers=workers), precision)
        for workers in (1, 2, 3)
    ]
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))
    one_after_another = gradients(model, pixels, Plan(tile=40, kept=frozenset({4})), precision)
    for a, b in zip(found[0], one_after_another, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2 if precision == torch.bfloat16 else 1e-4, atol=1e-4)


def test_threads_are_exact():
    torch.manual_seed(0)
    model = nn.Sequential(*list(network(nn.BatchNorm2d(16)))[:5])
    plan = Plan(tile=30, kept=frozenset({1, 7}), workers=2)
    worst = compare(model, torch.randn(2, 3, 101, 77, dtype=torch.float64), Mesh(), plan)[0]
    assert worst.error <= 1e-10, worst


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d, lambda channels: nn.GroupNorm(2, channels)])
def test_a_plan_keeps_what_norms_look_at_and_its_step_is_exact(norm):
    torch.manual_seed(0)
    layers = [(nn.Conv2d(n, 8, 3, padding=1), norm(8), nn.ReLU(inplace=True)) for n in (3, 8, 8, 8, 8)]
    model = nn.Sequential(*sum(layers, ()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).double()
    shape, options = (1, 3, 1024, 1024), {"base": 0.0, "dtype": torch.float64, "threads": 2}
    undivided = plan_streaming(model, shape, 50e9, **options)
    plan = plan_streaming(model, shape, 0.5 * undivided.peak, **options)
    assert undivided.whole_from == 1 and plan.workers == 2 and plan.peak <= 0.5 * undivided.peak
    assert len(plan.kept & {1, 5, 9, 13, 17}) >= 2 and 1 < plan.time < 2, plan  # those before norms
    few = dataclasses.replace(plan, tiles={index: (24, 32) for index in plan.tiles})
    worst = compare(model, torch.randn(2, 3, 71, 58, dtype=torch.float64), Mesh(), few)[0]
    assert worst.error <= 1e-10, worst


def test_a_reader_is_called_by_one_thread_at_a_time_and_progress_is_in_order():
    pixels, mask = torch.rand(1, 3, 128, 160), (torch.rand(1, 1, 128, 160) < 0.4).float()
    pixels[..., 80:] = 0
    model = decompose(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)), Mesh())
    alone, threads, losses = threading.Lock(), set(), []

    def reader(whole: torch.Tensor):
        def read(rectangle):
            assert alone.acquire(blocking=False)
            time.sleep(0.001)
            threads.add(threading.get_ident())
            alone.release()
            return whole[..., slice(*rectangle.rows), slice(*rectangle.columns)]

        return read

    for workers, ahead in ((1, 0), (2, 0), (2, 2)):
        done = []
        image = stream(
            reader(pixels),
            Plan(tile=32, workers=workers, ahead=ahead),
            Mesh(),
            pixels.shape,
            progress=lambda *a: done.append(a[1:]),  # noqa: B023
        )
        target = stream(reader(mask), mesh=Mesh(), shape=mask.shape, beside=image)
        model.zero_grad()
        loss = dice_and_cross_entropy(model(image), target)
        loss.backward()
        losses.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
        assert done == [(way, i + 1, 20) for way in ("forward", "backward") for i in range(20)]
    assert all(torch.equal(a, b) for one in losses for a, b in zip(one, losses[0], strict=True)) and len(threads) > 1


def test_readers_that_several_threads_can_call_are_not_waited_for():
    """Each waits for another to begin, which one alone would do for ever."""
    pixels, together = torch.rand(1, 3, 64, 128), threading.Barrier(2, timeout=30)

    def read(rectangle):
        together.wait()
        return pixels[..., slice(*rectangle.rows), slice(*rectangle.columns)]

    image = stream(read, Plan(tile=64, workers=2), Mesh(), pixels.shape, by_several_threads=True)
    assert torch.allclose(image.square().mean(), pixels.square().mean())


@pytest.mark.parametrize("which", ["work", "what is found"])
def test_what_fails_in_a_thread_ends_all_and_is_raised(which):
    begun, threads, alive = [], torch.get_num_threads(), threading.active_count()

    def work(index: int):
        begun.append(index)
        if which == "work" and index == 5:
            raise ValueError("tile 5")

        def taken():
            if index == 5:
                raise ValueError("tile 5")

        return taken

    with pytest.raises(ValueError, match="tile 5"):
        side_by_side(1000, 3, work)
    assert len(begun) < 20 and threading.active_count() == alive and torch.get_num_threads() == threads


def test_what_is_found_is_taken_in_order_and_few_wait():
    taken, waiting, most = [], set(), 0

    def work(index: int):
        nonlocal most
        time.sleep(0.02 if index % 3 == 0 else 0)  # the others are done sooner
        waiting.add(index)
        most = max(most, len(waiting))

        def take():
            waiting.discard(index)
            taken.append(index)

        return take

    side_by_side(30, 2, work)
    assert taken == list(range(30)) and 1 < most <= 3


def test_who_counts_operations_sees_them_all():
    model, counted = decompose(nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1)), Mesh()), []
    for workers in (0, 2):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(stream(shard(torch.rand(1, 3, 34, 34), Mesh()), Plan(tile=16, workers=workers)))
        counted.append(counter.get_total_flops())
    assert counted[1] == counted[0] >= 2 * 27 * 8 * 32 * 32
