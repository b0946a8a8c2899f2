"""What is said of operations: the page that lists them, how one is added, what gathering costs, what hooks see."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from launching import ROOT
from torch import nn

from gigapipe.spatial import Mesh, NotDecomposed, Plan, shard, stream

PAGE = ROOT / "docs/operations.md"


def test_the_page_lists_what_is_registered():
    spec = importlib.util.spec_from_file_location("operations", ROOT / "docs/operations.py")
    operations = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(operations)
    assert PAGE.read_text() == operations.page(PAGE.read_text()), "run python docs/operations.py"


def test_an_operation_is_added_as_the_page_says():
    program = PAGE.read_text().split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
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
