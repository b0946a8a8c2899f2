"""Patch encoders: networks without a decomposed form see a canvas patch by patch, whoever holds which part of it."""

import sys
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from cohorts import training, weights
from launching import gigapipe
from torch import nn

from gigapipe import named
from gigapipe.configuration import Configuration
from gigapipe.errors import InputError
from gigapipe.models.networks import Headed, classifier, take_by_name
from gigapipe.models.patches import Patches
from gigapipe.pyramids import Pyramid
from gigapipe.pyramids.canvas import read_canvas
from gigapipe.spatial import Mesh, Plan, decompose, gather, shard, stream
from gigapipe.spatial.places import Places, places

ENCODER = """
import torch
from torch import nn

class Encoder(nn.Module):
    '''A transformer: everything in a patch looks at everything else in it.'''

    def __init__(self, channels=8):
        super().__init__()
        torch.manual_seed(3)
        self.tokens = nn.Conv2d(3, channels, 4, 4)
        self.layer = nn.TransformerEncoderLayer(channels, 2, 16, dropout=0.5, batch_first=True)

    def forward(self, x):
        return self.layer(self.tokens(x).flatten(2).mT).amax(1)

def image():
    return nn.Conv2d(3, 4, 3)
"""
HEAD = ("--network", "patch_encoders.py:Encoder", "--patch", 16)


@pytest.fixture
def encoder(tmp_path, monkeypatch) -> Iterator[nn.Module]:
    (tmp_path / "patch_encoders.py").write_text(ENCODER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    named.code_of.cache_clear()
    yield classifier("patch_encoders.py:Encoder", {}, 2, 40, "batch", "average", 64, 16).features.encoder.eval()
    sys.modules.pop("patch_encoders", None)


def patch_by_patch(encoder: nn.Module, image: torch.Tensor, padding: tuple[int, ...]) -> torch.Tensor:
    """(1, channels, rows, columns); the padding is that of torch's `pad`."""
    padded = F.pad(image, padding)
    rows = [torch.cat([encoder(patch) for patch in row.split(16, 3)]) for row in padded.split(16, 2)]
    return torch.stack(rows).movedim(2, 0)[None]


@torch.no_grad()
def test_each_place_is_what_the_encoder_makes_of_a_patch(encoder):
    image = torch.rand(1, 3, 70, 50)
    image[:, :, 20:, 30:] = 0  # white patches, too
    expected = patch_by_patch(encoder, image, (7, 7, 5, 5))
    mesh, model = Mesh(), Patches(encoder, 16, 8)
    torch.testing.assert_close(model(image), expected)
    seen = []
    encoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    decompose(model, mesh)
    held, streamed = model(shard(image, mesh)), model(stream(shard(image, mesh), Plan(tile=32)))
    for found in (held, streamed.computed()):
        torch.testing.assert_close(gather(found), expected)
    assert 0 < sum(seen) < 2 * 20  # not each of those that are white
    assert places(model, (1, 3, 50, 50)) == Places(16, 7.5 - 7)


def test_a_probe_and_attention_on_patches_are_methods_like_others(encoder, small_cohort, tmp_path):
    """Alike on ranks that divide slides; what is predicted is what torch alone makes of the patches."""
    for name, mesh, more in (
        ("one", (1, 1, 1), ("--train", "probe")),
        ("two", (1, 1, 2), ("--train", "probe")),
        ("mil", (1, 1, 1), ("--train", "head", "--pool", "gated", "--least-steps", 0)),
    ):
        arguments = training(small_cohort, tmp_path / name / "model.pt", mesh, network=HEAD, more=more)
        gigapipe(*arguments, ranks=mesh[2])
    one, two, mil = (weights(tmp_path / name / "model.pt") for name in ("one", "two", "mil"))
    torch.testing.assert_close(one["fc.weight"], two["fc.weight"], rtol=1e-3, atol=1e-5)
    assert torch.equal(mil["features.encoder.tokens.weight"], encoder.tokens.weight)
    assert mil["avgpool.score.weight"].any()  # began as zeros

    common = ["--folds", small_cohort / "folds.tsv", "--pyramids", small_cohort / "pyramids", "--network", HEAD[1]]
    gigapipe("predict", *common, "--model", tmp_path / "one/model.pt", "--output", tmp_path / "predictions.tsv")
    table = pd.read_csv(tmp_path / "predictions.tsv", sep="\t")
    with torch.no_grad():
        said = []
        for slide in table["slide"]:
            pixels = read_canvas(Pyramid(small_cohort / "pyramids" / slide), 8.0, 52)
            features = patch_by_patch(encoder, 1 - torch.from_numpy(pixels)[None] / 255, (6, 6, 6, 6)).mean((2, 3))
            said.append(F.linear(features, one["fc.weight"], one["fc.bias"]).softmax(1)[0, 1].item())
    np.testing.assert_allclose(table["score"], said, rtol=1e-4)


def test_weights_of_an_encoder_are_taken_by_name(encoder):
    model = classifier("patch_encoders.py:Encoder", {}, 2, 40, "batch", "average", 64, 16)
    assert isinstance(model, Headed)
    given = {name: torch.full_like(value, 2.0) for name, value in encoder.state_dict().items()}
    assert take_by_name(model, given, "w").startswith(f"w: {len(given)} of the network's {len(given)} weights")
    assert (model.features.encoder.tokens.weight == 2).all()


@pytest.mark.parametrize(
    "options, said",
    [
        ({"patch": 16}, "patch: resnet18 sees the whole canvas"),
        ({"patch": 16, "network": "patch_encoders.py:net"}, "a patch encoder is not trained; found train: all"),
        ({"patch": 0, "network": "patch_encoders.py:net"}, "training.patch: must be 1 or more|patch"),
    ],
)
def test_what_does_not_go_with_patches_is_said(options, said):
    with pytest.raises(InputError, match=said):
        Configuration.of({"training": options})


def test_what_is_no_patch_encoder_is_said(encoder):
    with pytest.raises(InputError, match=r"makes \(1, 4, 14, 14\) of one patch of 16 px; it must return features"):
        classifier("patch_encoders.py:image", {}, 2, 40, "batch", "average", 64, 16)
