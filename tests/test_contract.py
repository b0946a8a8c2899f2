"""The contract: however a model is called and its gradients asked for, they are the undivided ones, or all refuse."""

import copy
import functools
import io
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from contract_cases import CASES, IN_PLACE, INVALID, REFUSED, STREAMED
from launching import gigapipe, run_program
from torch import nn

from gigapipe.spatial import Mesh, NotDecomposed, Plan, decompose, recompose, shard, stream
from gigapipe.spatial.check import compare, compare_ways

MESHES = 3  # 2 × 2 ranks of an image; two data ranks of 2, where images are streamed, too; four data ranks


@functools.cache
def rows() -> list[dict]:
    return run_program("contract.py", 4)


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_undivided_ones_and_alike_on_all_ranks(case):
    found = [row for row in rows() if row.get("case") == case]
    assert len(found) == MESHES + (case in STREAMED)
    for row in found:
        assert row["error"] <= 1e-10 and row["alike"], row


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_refused_on_every_rank_with_one_line(case):
    found = [row for row in rows() if row.get("refused") == case]
    assert found
    for row in found:
        assert len(set(row["said"])) == 1 and row["message"] in row["said"][0] and ";" in row["said"][0], row


@pytest.mark.parametrize("case", IN_PLACE)
def test_changes_in_place_reach_what_they_reach_in_torch_or_are_refused(case):
    (row,) = [row for row in rows() if row.get("in place") == case]
    for how in ("held", "streamed"):
        assert row[how] == "refused" or row[how] <= 1e-12, row


@pytest.mark.parametrize("case", INVALID)
def test_what_torch_refuses_is_refused_on_every_rank(case):
    (row,) = [row for row in rows() if row.get("invalid") == case]
    assert "nothing" not in row["said"], row


def test_meshes_and_communicators_go_with_their_owner():
    assert [row["meshes"] for row in rows() if "meshes" in row] == [0]


# --- One rank: what is streamed means what it means held ---


def frozen_encoder(x, first, second):
    with torch.no_grad():
        x = first(x)
    return second(x).square().mean()


def frozen_head(x, first, second):
    features = first(x)
    with torch.no_grad():
        scale = features.mean()
    return (second(features) * scale).square().mean()


def detached(x, first, second):
    x = first(x)
    return second(x.detach()).square().mean() + (x * x.detach()).mean()


def changed_without_gradients(x, first, second):
    x = first(x) * 1
    with torch.no_grad():
        x.mul_(3)
    return second(x).square().mean()


def nothing_with_gradients(x, first, second):
    with torch.no_grad():
        return second(first(x)).square().mean()


def of_ones(x, first, second):
    return second(torch.ones_like(first(x))).square().mean()


def frozen_meanwhile(x, first, second):
    first.requires_grad_(False)
    x = first(x)
    first.requires_grad_(True)
    return second(x).square().mean()


@pytest.mark.parametrize("kept", [frozenset(), frozenset({1})], ids=["one segment", "two segments"])
@pytest.mark.parametrize("image_has_gradient", [False, True], ids=["", "image with gradient"])
@pytest.mark.parametrize(
    "function",
    [
        frozen_encoder,
        frozen_head,
        detached,
        changed_without_gradients,
        nothing_with_gradients,
        of_ones,
        frozen_meanwhile,
    ],
)
def test_no_gradient_means_the_same_plain_held_and_streamed(function, image_has_gradient, kept):
    pixels = torch.rand(1, 3, 21, 17, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for how in ("plain", "held", "streamed"):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, 3, 1, 1).double(), nn.Conv2d(4, 2, 3).double()]
        whole = pixels.clone().requires_grad_(image_has_gradient)
        image = whole if how == "plain" else shard(whole, Mesh())
        loss = function(stream(image, Plan(tile=8, kept=kept)) if how == "streamed" else image, *layers)
        if loss.requires_grad:
            loss.backward()
        found.append([loss.requires_grad, loss.detach(), whole.grad, *(p.grad for m in layers for p in m.parameters())])
    for theirs in found[1:]:
        for a, b in zip(found[0], theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13) if isinstance(a, torch.Tensor) else None
            assert (a is None) == (b is None) and (not isinstance(a, bool) or a == b), (a, b)


# --- gigapipe check ---


class DropsOutByFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.linear, self.unused = nn.Conv2d(3, 6, 3), nn.Linear(6, 4), nn.Linear(2, 2)

    def forward(self, x):
        x = F.dropout2d(self.convolution(x), 0.3, self.training).mean((2, 3))
        return self.linear(F.dropout(x, 0.2, self.training)) * torch.rand(len(x), 1, dtype=x.dtype)


@pytest.mark.parametrize("plan", [None, Plan(tile=9)], ids=["held", "streamed"])
@pytest.mark.parametrize("compared", [compare, compare_ways])
def test_what_is_drawn_at_random_is_no_difference(compared, plan):
    found = compared(DropsOutByFunction(), torch.rand(2, 3, 19, 15), Mesh(), plan)
    assert len(found) >= 6 and found[0].error <= 1e-10, found[0]


def test_check_sees_a_gradient_that_is_lost_in_parts():
    class Lost(DropsOutByFunction):
        def forward_features(self, x):
            return self.convolution(x).detach()

        def forward_head(self, x):
            return self.linear(x.mean((2, 3)))

        def forward(self, x):
            return self.forward_head(self.convolution(x))

    found = {d.kind: d.error for d in reversed(compare_ways(Lost(), torch.rand(2, 3, 19, 15), Mesh()))}
    assert found["of its parts"] == math.inf and found["autograd.grad"] <= 1e-10, found


def test_check_says_in_one_line_that_the_model_itself_fails(tmp_path):
    (tmp_path / "mine.py").write_text("def model():\n    return [][3]\n")
    done = gigapipe("check", "mine:model", "33x20", "2x1", "--stream", check=False, cwd=tmp_path, process=True)
    assert done.returncode == 1 and "Traceback" not in done.stdout, done.stdout
    assert "held and in tiles of 8 px" in done.stdout and "the model itself" in done.stdout.splitlines()[-1]
    assert "IndexError in mine.py, line 2" in done.stdout


# --- A good citizen of torch ---


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        saved,
        lambda m: torch.optim.swa_utils.AveragedModel(m).module,
    ],
    ids=["deepcopy", "pickle", "torch.save", "AveragedModel"],
)
def test_a_decomposed_model_can_be_copied_and_saved(copied):
    model = decompose(network(), Mesh())
    image = shard(torch.rand(2, 3, 9, 7), Mesh())
    other = copied(model)
    assert torch.equal(other(image), model(image))
    assert all(p is not q for p, q in zip(other.parameters(), model.parameters(), strict=True))
    with pytest.raises(NotDecomposed, match="in layer 0.0"):
        decompose(copied(decompose(nn.Sequential(nn.Sequential(nn.Fold((4, 4), 1))), Mesh())), Mesh())(image)


def test_decompose_twice_is_once_and_there_is_a_way_back():
    plain, model = network(), network()
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in decompose(model, Mesh()).modules()]
    assert hooks == [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in decompose(model, Mesh()).modules()]
    assert recompose(model) is model
    for m, p in zip(model.modules(), plain.modules(), strict=True):
        assert list(vars(m)) == list(vars(p)) and not m._forward_pre_hooks and not m._forward_hooks_always_called


def test_an_image_has_what_a_tensor_has():
    x = shard(torch.rand(1, 3, 9, 7), Mesh())
    x.requires_grad = True
    assert x.requires_grad and x.is_leaf and x.requires_grad_() is x and x.grad is None
    y = network()[0](x)
    asked = torch.autograd.grad(y.square().mean(), x, retain_graph=True)[0]
    y.retain_grad()
    y.backward(2 * y.detach() / y.numel())
    torch.testing.assert_close(x.grad.local, asked.local)
    torch.testing.assert_close(y.grad.local, 2 * y.local / y.numel())
    assert torch.equal(copy.deepcopy(x).local, x.local)
    x.grad = None
    assert x.local.grad is None
    with pytest.raises(NotDecomposed, match="saving a decomposed image"):
        pickle.dumps(x)
    streamed = stream(x, Plan(tile=4))
    assert streamed.requires_grad and not (streamed.detach() * 2).requires_grad
    with pytest.raises(NotDecomposed, match="of the image that is streamed"):
        torch.autograd.grad(network()[0](streamed).mean(), streamed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", [lambda m: torch.compile(m, backend="eager"), torch.jit.script])
def test_what_is_compiled_runs_as_it_is_or_is_refused(compiled):
    image, model = shard(torch.rand(2, 3, 9, 7), Mesh()), nn.Conv2d(3, 4, 3)
    try:
        torch.testing.assert_close(compiled(model)(image).local, model(image.local))
    except NotDecomposed as error:
        assert "forward of a scripted module" in str(error)


def test_gradients_of_gradients_are_refused_where_they_would_be_lost():
    model = decompose(network(), Mesh())[0]
    image = stream(shard(torch.rand(1, 3, 9, 7), Mesh()), Plan(tile=4))
    (grad,) = torch.autograd.grad(model(image).sum(), model.weight, create_graph=True)
    with pytest.raises(NotDecomposed, match="a gradient of a gradient"):
        grad.square().sum().backward()
