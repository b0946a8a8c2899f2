"""A convolution that takes over what follows it: the same values and gradients, and that it is taken over at all."""

import copy

import pytest
import torch
import torch.nn.functional as F
from spatial_cases import awakened
from torch import nn

from gigapipe.models.resnet import FrozenBatchNorm2d
from gigapipe.spatial import Mesh, Plan, decompose, shard, stream
from gigapipe.spatial.check import compare
from gigapipe.spatial.fusing import Convolved, fused
from gigapipe.spatial.planning import trace
from gigapipe.spatial.recording import Ref

PLANS = {
    "tiles": Plan(tile=9),
    "tiles, threads": Plan(tile=9, workers=2),
    "kept, then at once": Plan(tile=9, kept=frozenset({2}), whole_from=3, recorded=True),
    "at once": Plan(whole_from=1, recorded=True),
}


class Block(nn.Module):
    """What a function makes of an image with two convolutions, of which one has a frozen norm; then a linear layer."""

    def __init__(self, function):
        super().__init__()
        self.function, self.before = function, nn.Conv2d(3, 4, 3, padding=1)
        self.one, self.other = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 1)
        self.norm, self.fc = FrozenBatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.function(self, F.relu(self.before(x))).mean((2, 3)))


def residual(net, x):
    return F.relu(net.norm(net.one(x)) + net.other(x))


def residual_in_place(net, x):
    y = net.norm(net.one(x))
    y += net.other(x)
    return F.relu(y, inplace=True)


def onto_the_other(net, x):
    y = net.other(x)
    y += net.norm(net.one(x))
    return torch.relu(y)


def changed_meanwhile(net, x):
    y, z = net.one(x), net.other(x)
    z.mul_(2)
    return (y + z).relu()


def used_twice(net, x):
    y = net.norm(net.one(x))
    return F.relu(y) + y


def onto_itself(net, x):
    y = net.one(x)
    return F.relu(y + y)


def not_rectified(net, x):
    return net.norm(net.one(x)) + x


def a_number_a_channel(net, x):
    return F.relu(net.norm(net.one(x)) + net.fc.weight[:1, :, None, None])


def strided(net, x):
    return F.relu(F.conv2d(x, net.one.weight, None, 2, 1) + F.conv2d(x, net.other.weight, net.other.bias, 2))


COMPUTED = {
    residual: 4, residual_in_place: 4, onto_the_other: 4, changed_meanwhile: 7, used_twice: 5, onto_itself: 5,
    a_number_a_channel: 5, strided: 4, not_rectified: 3,
}  # fmt: skip
"""Functions, and how many operations they take with the convolution before them, the mean included."""


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("function", COMPUTED)
def test_what_a_convolution_takes_over_is_exact(function, plan):
    torch.manual_seed(0)
    model = awakened(Block(function)).double()
    worst = compare(model, torch.randn(2, 3, 33, 26, dtype=torch.float64), Mesh(), PLANS[plan])[0]
    assert worst.error <= 1e-10, worst


@pytest.mark.parametrize("function", COMPUTED)
def test_a_convolution_takes_over_norm_addend_and_relu(function):
    nodes = trace(decompose(Block(function), Mesh()), (1, 3, 32, 32), Mesh(), None, torch.float32, "cpu")
    found = fused(nodes[1:], Ref(nodes[-1]))
    assert len(found) == COMPUTED[function], found
    convolutions = [node for node in nodes[1:] if node.function is torch.conv2d]
    assert sum(isinstance(node, Convolved) for node in found.values()) == len(convolutions)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("function", [residual, residual_in_place, strided, not_rectified])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_in_16_bits_gradients_are_as_near_as_undivided_ones(function, plan, memory_format):
    torch.manual_seed(0)
    network = awakened(Block(function)).float().to(memory_format=memory_format)
    pixels = torch.rand(1, 3, 64, 48).to(memory_format=memory_format)

    def gradients(image, dtype) -> torch.Tensor:
        model = decompose(copy.deepcopy(network), Mesh()).to(dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            logits = model(image)
        F.cross_entropy(logits.to(dtype), torch.tensor([1])).backward()
        return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])

    exact = gradients(shard(pixels.double(), Mesh()), torch.float64)
    held = (gradients(shard(pixels, Mesh()), torch.float32) - exact).norm() / exact.norm()
    found = gradients(stream(shard(pixels, Mesh()), PLANS[plan]), torch.float32)
    assert found.shape == exact.shape and (found - exact).norm() / exact.norm() < 2 * held < 0.05


def test_what_ends_in_relu_has_its_gradient_twice_and_after_a_change_in_place():
    """Of the output of a segment a backward pass takes where it is zero; but only if that is still there."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x, change=torch.Tensor.sub_):
            return self.other(change(F.relu(self.one(x)), 0.05)).square().mean()

    torch.manual_seed(0)
    model, image = Net().double(), torch.randn(1, 3, 33, 26, dtype=torch.float64)
    (2 * model(image, torch.sub)).backward()  # torch itself refuses the other
    expected = [p.grad.clone() for p in model.parameters()]
    decompose(model, Mesh())
    for plan in (Plan(tile=9, kept=frozenset({2})), Plan(tile=9, kept=frozenset({2}), whole_from=3)):
        model.zero_grad()
        loss = model(stream(shard(image, Mesh()), plan))
        loss.backward(retain_graph=True)
        loss.backward()
        assert all(torch.allclose(p.grad, e, rtol=1e-10) for p, e in zip(model.parameters(), expected, strict=True))
