"""The ResNets: torchvision's names and sizes, its checkpoints, and what normalises."""

import pytest
import torch

from gigapipe.errors import InputError
from gigapipe.models import NORMS, POOLS, RESNETS, resnet18, resnet50
from gigapipe.models.pretrained import take_imagenet
from gigapipe.models.resnet import AttentionPool2d
from gigapipe.published_weights import OFFICIAL


@pytest.mark.parametrize(
    "network, parameters", [("resnet18", 11689512), ("resnet34", 21797672), ("resnet50", 25557032)]
)
def test_networks_have_torchvision_s_parameters(network, parameters):
    model = RESNETS[network]()
    assert sum(p.numel() for p in model.parameters()) == parameters
    names = set(model.state_dict())
    assert {
        "conv1.weight",
        "bn1.running_var",
        "layer2.0.downsample.1.bias",
        "layer4.1.conv2.weight",
        "fc.bias",
    } <= names
    assert ("layer1.0.conv3.weight" in names) == (network == "resnet50")


def test_a_torchvision_checkpoint_is_taken_by_name_but_for_the_last_layer():
    theirs, ours = resnet18(1000), resnet18(2, "frozen", "attention")
    theirs.bn1.running_mean.normal_()
    head, score = ours.fc.weight.clone(), ours.avgpool.project.weight.clone()
    take_imagenet(ours, "resnet18", theirs.state_dict(), "weights w.pth")
    # What it makes of darkness is what torchvision's makes of normalised colours, but for what lies beyond the border.
    rgb = torch.rand(1, 3, 40, 40)
    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in OFFICIAL["resnet18"][2:4])
    theirs.eval()
    expected = theirs.bn1(theirs.conv1((rgb - mean) / deviation))[..., 2:-2, 2:-2]
    torch.testing.assert_close(ours.bn1(ours.conv1(1 - rgb))[..., 2:-2, 2:-2], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(ours.layer3[1].conv2.weight, theirs.layer3[1].conv2.weight)
    assert torch.equal(ours.fc.weight, head) and torch.equal(ours.avgpool.project.weight, score)
    for model in (resnet50(2), resnet18(2, "group")):
        with pytest.raises(InputError, match="weights w.pth: not of this network and norm"):
            take_imagenet(model, "resnet18", theirs.state_dict(), "weights w.pth")


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_a_network_with_any_norm_learns_a_batch_by_heart(norm):
    torch.manual_seed(0)
    model, labels = RESNETS["resnet10"](2, norm, width=16).train(), torch.tensor([0, 1, 0, 1])
    images = torch.rand(4, 3, 64, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 < 0.5 < losses[0], losses


@pytest.mark.parametrize("pool", POOLS)
def test_a_small_network_of_any_pool_takes_images_of_any_size(pool):
    torch.manual_seed(0)
    model = RESNETS["resnet10"](3, "group", pool, 8)
    assert model.fc.in_features == 64 and sum(p.numel() for p in model.parameters()) < 100_000
    sizes = [model(torch.rand(2, 3, rows, columns)).shape for rows, columns in ((64, 64), (97, 50))]
    assert sizes == [(2, 3), (2, 3)]


def test_attention_begins_as_the_average_and_can_look_at_one_place():
    features = torch.rand(2, 8, 5, 7)
    pool = AttentionPool2d(8)
    torch.nn.init.zeros_(pool.score.weight)
    torch.testing.assert_close(pool(features), features.mean((2, 3), keepdim=True))
    features[:, :, 3, 4] += 10
    torch.nn.init.constant_(pool.project.weight, 0.1)
    torch.nn.init.constant_(pool.project.bias, -3.0)
    torch.nn.init.constant_(pool.score.weight, 1.0)
    torch.testing.assert_close(pool(features)[..., 0, 0], features[:, :, 3, 4], rtol=1e-4, atol=1e-4)


def test_frozen_statistics_stay():
    model = resnet18(2, "frozen").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
