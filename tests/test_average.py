"""A moving average of the weights, and learning rates that fall towards the image."""

import pytest
import torch
from torch import nn

from gigapipe.models import resnet18
from gigapipe.training.average import Average
from gigapipe.training.optimizer import SHARE, AdamW, groups, set_learning_rate


def test_an_average_is_that_of_the_weights_after_each_step_and_leaves_them_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[2].requires_grad_(False)
    held: dict[str, torch.Tensor] = {}
    average = Average(model, 0.8, held)
    expected = {name: value.detach().clone() for name, value in model.named_parameters()}
    for step in range(1, 60):
        with torch.no_grad():
            for name, value in model.named_parameters():
                if value.requires_grad:
                    value += torch.rand_like(value)
                    decay = min(0.8, step / (step + 9))
                    expected[name] = decay * expected[name] + (1 - decay) * value
        average.update(step)
        if step == 30:  # as a checkpoint goes on
            average = Average(model, 0.8, held := {name: value.clone() for name, value in held.items()})
    assert set(held) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    with average.in_place():
        for name, value in model.named_parameters():
            torch.testing.assert_close(value.detach(), expected[name])
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    average.restart()
    assert torch.equal(held["0.bias"], before["0.bias"])


def test_learning_rates_rise_from_layer_to_layer():
    model = resnet18(2, width=8)
    layers = groups(model, 0.01)
    assert [id(p) for layer in layers for p in layer["params"]] == [id(p) for p in model.parameters()]
    shares = [layer[SHARE] for layer in layers]
    assert shares[0] == pytest.approx(0.01) and shares[-1] == 1
    factors = [after / before for before, after in zip(shares, shares[1:-1], strict=False)]  # the last has two groups
    assert factors == pytest.approx([factors[0]] * len(factors)) and factors[0] > 1
    optimizer = torch.optim.AdamW(layers, lr=1.0)
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5 * share for share in shares])
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    assert [len(layer["params"]) for layer in groups(tied, 0.1)] == [1, 1, 1]


@pytest.mark.parametrize("first_layer_rate", [1.0, 0.1])
def test_norms_and_biases_do_not_decay(first_layer_rate):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    optimizer = AdamW(groups(model, first_layer_rate), lr=0.5, weight_decay=0.1)
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    set_learning_rate(optimizer, 0.5)
    optimizer.step()
    for name, parameter in model.named_parameters():
        shrinks = name in ("0.weight", "3.weight")
        rate = 0.5 * (first_layer_rate if name == "0.weight" else 1)
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, 1 - 0.1 * rate * shrinks))
