"""What is said of operations: the page that lists them, how one is added, what gathering costs, what hooks see."""

import importlib.util
import os
import subprocess

import pytest
import torch
from forks import with_forks
from launching import ROOT
from spatial_cases import Apply
from torch import nn

from gigapipe.spatial import Mesh, NotDecomposed, Plan, gather, shard, stream
from gigapipe.spatial.check import compare
from gigapipe.spatial.operators import reductions

PAGE = ROOT / "docs/operations.md"


def test_the_page_lists_what_is_registered():
    spec = importlib.util.spec_from_file_location("operations", ROOT / "docs/operations.py")
    operations = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(operations)
    assert PAGE.read_text() == operations.page(PAGE.read_text()), "run python docs/operations.py"


@pytest.mark.slow
def test_an_operation_is_added_as_the_page_says():
    program = PAGE.read_text().split("```python\n")[1].split("```")[0]
    forks = with_forks(dict(os.environ), "python")
    done = subprocess.run(["python", "-c", program], capture_output=True, text=True, cwd=ROOT, env=forks)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.rpartition("error=")[2].rstrip(")\n")) < 1e-12, done.stdout


def test_gathering_says_what_it_costs(ranks):
    messages = ranks("operations.gathering", mesh=(1, 2, 1))
    assert messages == [
        [
            "gigapipe.spatial: in layer 1: flatten of rows and columns together gathers (1, 4, 6, 5) to every rank of "
            "the image, 0.00048 MB"
        ],
        [],
    ]


@pytest.mark.parametrize("size", [(2, 1), (1, 3), (1, 1)])
def test_a_single_row_or_column_joins_the_other(size):
    whole = torch.rand(2, 4, *size)
    image = shard(whole, Mesh())
    for shape in ((2, 4, -1), (2, -1), (2, 2, 2, *size), (8, *size), (2, 4, *size, 1)):
        for given in (image, stream(image, Plan(tile=2))):
            found = given.reshape(shape)
            found = found.computed() if hasattr(found, "computed") else found
            found = gather(found) if hasattr(found, "local") else found
            assert torch.equal(found, whole.reshape(shape)), shape


def test_what_torch_copies_is_a_copy():
    image = shard(torch.rand(1, 2, 4, 4), Mesh())
    before = image.local.clone()
    for copied in (image.roll(4, 2), image.roll(0, 1), image.flip(()), image.repeat(1, 1, 1, 1), torch.cat([image])):
        copied.add_(1)
    assert torch.equal(image.local, before)


@pytest.mark.parametrize("function", [torch.var, torch.std, torch.norm, torch.logsumexp])
def test_sixteen_bits_are_summed_as_torch_sums_them(function):
    # A mean that is large beside the deviation, of which 16 bits would leave nothing.
    whole = (3 + 0.05 * torch.rand(1, 2, 31, 23)).bfloat16()
    expected = function(whole, dim=(2, 3))
    image = shard(whole, Mesh())
    for given in (image, stream(image, Plan(tile=7))):
        assert torch.allclose(function(given, dim=(2, 3)).float(), expected.float(), rtol=0.01)


@pytest.mark.parametrize("dim", [(2, 3), 2, 3, (0, 2), (1, 3)])
def test_sums_of_sixteen_bits_are_made_by_bands(dim, monkeypatch):
    monkeypatch.setattr(reductions, "BAND", 100)
    whole = torch.rand(2, 3, 31, 23).bfloat16().requires_grad_()
    expected = whole.float().mean(dim)
    (gradient,) = torch.autograd.grad(expected.pow(2).sum(), whole)
    image = shard(whole, Mesh())
    for given in (image, stream(image, Plan(tile=7))):
        found = torch.mean(given, dim, dtype=torch.float32)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found.pow(2).sum(), whole)[0], gradient, rtol=0.01, atol=1e-6)


def test_streamed_random_images_are_those_that_are_held():
    image = shard(torch.zeros(1, 2, 15, 13), Mesh())
    for draw in (torch.rand_like, torch.randn_like, lambda x: torch.bernoulli(x + 0.5)):
        torch.manual_seed(3)
        held = gather(draw(image))
        torch.manual_seed(3)
        assert torch.equal(gather(draw(stream(image, Plan(tile=4))).computed()), held) and held.std() > 0.1


def test_check_compares_what_draws_random_images():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(3, 2, 3)

        def forward(self, x):
            x = self.convolution(x)
            return x * torch.randn_like(x) + torch.bernoulli(x.sigmoid())

    assert compare(Noisy(), torch.rand(1, 3, 15, 13), Mesh(), Plan(tile=7))[0].error < 1e-12


def test_check_compares_what_hands_no_gradient_to_the_image():
    model = nn.Sequential(Apply(torch.Tensor.detach), nn.Conv2d(3, 2, 3))
    assert compare(model, torch.rand(1, 3, 15, 13), Mesh())[0].error < 1e-12


def test_a_gradient_that_is_no_image_is_refused():
    image = shard(torch.rand(1, 3, 4, 4), Mesh())
    with pytest.raises(TypeError, match="gradient of a decomposed image"):
        image.grad = torch.zeros(1, 3, 4, 4)


def test_a_mean_by_batch_is_kl_div_s_alone():
    image = shard(torch.rand(2, 3, 4, 4), Mesh())
    with pytest.raises(ValueError, match="batchmean is not a valid value"):
        nn.functional.mse_loss(image, image, reduction="batchmean")


def test_hooks_see_what_class_activation_maps_are_made_of(ranks):
    assert max(ranks("operations.class_activation_map", mesh=(1, 2, 2))) <= 1e-12


def test_a_streamed_image_has_shapes_without_being_computed():
    image = stream(shard(torch.rand(2, 3, 40, 40), Mesh()), Plan(tile=16))
    features = nn.Conv2d(3, 4, 3)(image)
    scale = features.new_empty(len(features), 1, 1, 1).fill_(0.5).expand_as(features)
    assert scale.shape == features.shape and type(scale) is torch.Tensor
    assert not features.recorder.held.keys() - {image.ref}


REFUSED = {
    "windows of attention": (lambda x: x.view(1, 4, 3, 2, 5, 1), "takes rows or columns apart"),
    "groups of rows": (lambda x: x.unflatten(2, (2, 3)), "takes rows or columns apart"),
    "one row": (lambda x: x[:, :, 3], "single rows or columns"),
    "a mask of pixels": (lambda x: x[x > 0], "indexing by an image"),
    "places of maxima": (lambda x: x.max(2), "use amax"),
    "rows repeated": (lambda x: x.repeat(1, 1, 2, 1), "repeat along other dimensions"),
    "a larger image": (lambda x: x[:, :, :1].expand(-1, -1, 6, -1), "by interpolation"),
    "a matrix and an image": (lambda x: torch.eye(6) @ x, "use einsum"),
    "a sum over rows": (lambda x: torch.einsum("bchw,h->bcw", x, torch.ones(6)), "sum over both or neither"),
    "unlike images joined": (lambda x: torch.cat([x, torch.ones(1, 4, 6, 4)], 1), "to one size"),
    "as many classes as there are": (lambda x: torch.nn.functional.one_hot(x.long()), "num_classes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_wrong_on_a_shard_is_refused(case):
    call, message = REFUSED[case]
    image = shard(torch.rand(1, 4, 6, 5), Mesh())
    for given in (image, stream(image, Plan(tile=3))):
        with pytest.raises(NotDecomposed, match=message):
            call(given)
