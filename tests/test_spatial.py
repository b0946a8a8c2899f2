"""gigapipe.spatial: any convolutional network on any mesh is what it is undivided, and what cannot be is refused."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
import torch
import torch.nn.functional as F
from forks import with_forks
from launching import EXIT_GLOO, ROOT, gigapipe
from spatial_cases import (
    CALLS,
    CASES,
    COMPARED,
    LOSSES,
    OF_A_BATCH,
    OPERATIONS,
    Apply,
    spelling,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

from gigapipe.spatial import Mesh, NotDecomposed, SpatialTensor, decompose, shard
from gigapipe.spatial.refusals import LAYERS

# 1 × 2, 2 × 2, two data ranks of 2 × 1, and 3 × 2; by MPI and by torch.distributed
RUNS = [((1, 1, 2), "mpi"), ((1, 2, 2), "torch"), ((2, 2, 1), "torch"), ((1, 3, 2), "mpi")]


@pytest.mark.parametrize("case", [*CASES, *LOSSES])
def test_a_model_is_exact_on_any_mesh(ranks, case):
    for mesh, transport in RUNS:
        if mesh[0] == 1 or case not in OF_A_BATCH:
            for error, worst in ranks("operators.case", case, mesh=mesh, transport=transport):
                assert error <= 1e-10, (mesh, worst)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_is_exact_on_ranks(ranks, operation):
    for error, worst in ranks("operators.case", operation, mesh=(1, 3, 2)):
        assert error <= 1e-10, worst


def test_every_registered_operation_has_a_case():
    assert CALLS.keys() <= {spelling(function)[1] for function in COMPARED}, "a case of what is not registered"
    assert len(OPERATIONS) == len(COMPARED), "two operations of one name"


@pytest.mark.parametrize("mesh, transport", RUNS)
def test_dropout_drops_what_it_drops_undivided(ranks, mesh, transport):
    assert max(ranks("operators.dropout", mesh=mesh, transport=transport)) <= 1e-10


@pytest.mark.parametrize(
    "case",
    [
        "MONAI ResNet",
        "MONAI UNet",
        "MONAI UNet, instance norm",
        "MONAI BasicUNet",
        "EfficientNet-Lite0",
        "U-Net of the docs",
    ],
)
def test_networks_that_nobody_here_wrote_are_exact_on_2_by_2(ranks, case):
    assert max(ranks("models.foreign", case, mesh=(1, 2, 2))) <= 1e-10


@pytest.mark.parametrize("case", ["twenty_steps", "activation_checkpointing", "accumulation", "unfrozen"])
def test_training_agrees(ranks, case):
    for row in ranks(f"models.{case}", mesh=(1, 2, 2)):
        assert max(row["error"], row.get("evaluation", 0)) <= 1e-10, row
        assert row.get("moved", 1) > 0.01, row  # or there was nothing to agree on


@pytest.mark.parametrize("mesh, transport", RUNS)
def test_gradients_that_are_late_are_those_at_once_in_fewer_sums(ranks, mesh, transport):
    for row in ranks("models.late", mesh=mesh, transport=transport):
        assert max(row["error"], row["hooked"]) <= 1e-12 and row["closed"], row
        at_once, announced, fewer, more = row["sums"]
        assert max(announced, more) < at_once >= fewer, row


@pytest.mark.parametrize("lower", ["bfloat16", "float16"])
def test_16_bits_are_as_good_on_a_mesh_as_undivided(ranks, lower):
    for row in ranks("models.mixed_precision", lower, mesh=(1, 2, 2)):
        assert row["ours"] <= 1.1 * row["plain"], row


def test_a_device_mesh_with_torch_s_own_data_parallelism(ranks):
    ranks.stop()  # torch numbers groups on each rank: who was in other groups before would wait for another one
    for row in ranks("models.over_device_mesh", mesh=(2, 1, 3), transport="torch"):
        assert max(row["error"], row["averaged twice"]) <= 1e-10, row


@pytest.mark.parametrize("of, least", [("exchange", 125), ("networks", 30)])
def test_random_exchanges_and_networks(ranks, of, least):
    assert min(ranks("properties.run", of, mesh=(1, 2, 3), timeout=600)) >= least


MODELS_OF_A_USER = """
from torch import nn

def right():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.MaxPool2d(3, 2, 1))

class Local(nn.Module):
    def forward(self, x):
        return x.with_local(x.local - x.local.mean()) if hasattr(x, "local") else x - x.mean()

def wrong():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), Local())

def refused():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Unfold(2))
"""


@pytest.mark.slow
def test_check_finds_an_exact_model_exact_and_a_wrong_one_wrong(tmp_path):
    (tmp_path / "models_of_a_user.py").write_text(MODELS_OF_A_USER)
    done = gigapipe("check", "models_of_a_user:right", "33x20", "1x2", "--tile", 9, cwd=tmp_path, process=True)
    assert "in tiles of 9 px" in done.stdout and "exact: all" in done.stdout
    done = gigapipe("check", "models_of_a_user:wrong", "33x20", "2x1", check=False, cwd=tmp_path)
    assert done.returncode == 1 and "NOT exact" in done.stdout and "output" in done.stdout
    done = gigapipe("check", "models_of_a_user:refused", "33x20", "1x2x1", check=False, cwd=tmp_path)
    assert done.returncode == 1 and "layer 1" in done.stdout and "Traceback" not in done.stdout, done.stdout
    done = gigapipe("check", "models_of_a_user:none", "33x20", "2x1", check=False, cwd=tmp_path)
    assert done.returncode == 1 and "package.module:function" in done.stdout and "Traceback" not in done.stdout


@pytest.mark.slow
def test_the_example_of_the_docs_runs(tmp_path):
    page = (ROOT / "docs/spatial.md").read_text()
    (tmp_path / "example.py").write_text(page.split("```python\n")[1].split("```")[0] + EXIT_GLOO)
    done = subprocess.run(
        ["torchrun", "--standalone", "--nproc-per-node", "2", "example.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("loss") == 2


def listening(pid: int) -> set[tuple[str, int]]:
    """The addresses and ports at which a process lets others in."""
    return {tuple(c.laddr) for c in psutil.Process(pid).net_connections("inet") if c.status == psutil.CONN_LISTEN}


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["mpi", "torch"])
def test_a_rank_that_dies_in_a_step_ends_all_with_a_message(transport):
    program = str(ROOT / "tests/ranks/forever.py")
    command = ["mpiexec", "-n", "3", sys.executable, program, transport]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout.readline().startswith("device: cpu (")
            where = process.stdout.readline()
            pids = json.loads(process.stdout.readline())
            numbers = ", ".join(map(str, pids))
            assert where == f"ranks 0, 1, 2 on {socket.gethostname()}: processes {numbers}\n"
            theirs = {place for pid in pids for place in listening(pid)} - listening(process.pid)
            assert theirs and all(host == "127.0.0.1" for host, _ in theirs), theirs
            os.kill(pids[1], signal.SIGKILL)
            killed = time.monotonic()
            output, _ = process.communicate(timeout=60)
            assert process.returncode != 0 and time.monotonic() - killed < 5
            assert "signal 9" in output and any(str(pid) in output for pid in pids), output  # one of those that ended
            assert not any(psutil.pid_exists(pid) for pid in pids)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["mpi", "torch"])
def test_a_rank_that_hangs_is_not_waited_for_for_ever_and_is_named(transport, tmp_path):
    program = str(ROOT / "tests/ranks/forever.py")
    (tmp_path / "model.pt.failed").mkdir()
    (tmp_path / "model.pt.failed/rank-0007.txt").write_text("of another run")
    begun = time.monotonic()
    done = subprocess.run(
        ["mpiexec", "-n", "3", "python", program, transport, "hang", tmp_path / "model.pt"],
        capture_output=True,
        text=True,
        timeout=90,
        env=with_forks(dict(os.environ), "python"),
    )
    said = done.stdout + done.stderr
    # It is waited for 5 s, and has 10 s to answer.
    assert done.returncode != 0 and 15 < time.monotonic() - begun < 45
    assert re.search("TimeoutError: rank 0 of 3.* 5 ?s|TimeoutError: rank 0 of 3.*5000ms", said), said
    assert f"last in step 5; no answer from rank 1 on {socket.gethostname()}" in said, said
    assert "no answer from rank 1" in (tmp_path / "model.pt.failed/rank-0000.txt").read_text()
    assert not (tmp_path / "model.pt.failed/rank-0007.txt").exists()


# --- One rank: what is refused, and how ---


def image(size=(16, 16), channels=4) -> SpatialTensor:
    return shard(torch.rand(1, channels, *size), Mesh())


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, grad):
        return grad


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "operation, message",
    [
        (nn.Fold((4, 4), 1), "fold"),
        (nn.AdaptiveMaxPool2d(3, return_indices=True), "return_indices"),
        (Apply(lambda x: F.mse_loss(x, x, weight=torch.ones(1, 4, 16, 16))), "with weight"),
        (Apply(lambda x: torch.rand(1, 4, 16, 16).add_(x)), "into a plain tensor"),
        (Apply(lambda x: x[:, :, 1:].mul_(0)), "of a part of an image"),
        (Apply(lambda x: torch.add(x, 1, out=torch.rand(1, 4, 16, 16))), "with out"),
        (Apply(lambda x: Swish.apply(x)), "Swish"),
        (Apply(lambda x: checkpoint(torch.relu, x, use_reentrant=True)), "use_reentrant=False"),
        (Apply(lambda x: F.softmax(x)), "without a dimension"),
        (nn.LayerNorm([16, 16]), "layer_norm over rows and columns"),
        (Apply(lambda x: F.interpolate(x, scale_factor=2, mode="bicubic", antialias=True)), "bicubic with antialias"),
        (nn.Softmax(2), "softmax along rows or columns"),
        (Apply(lambda x: x + torch.rand(15, 16)), "a plain tensor must be as large as the image"),
        (Apply(lambda x: x.transpose(1, 2) @ x), "matmul"),
        (Apply(lambda x: x.numpy()), "numpy"),
        (Apply(lambda x: x.cumsum(3)), "cumsum"),
        (Apply(lambda x: torch.fft.fft2(x)), "fft"),
        (Apply(lambda x: x.sort(1)), "sort"),
    ],
)
def test_what_has_no_decomposed_form_is_refused_with_the_layer_s_name(operation, message):
    model = decompose(nn.Sequential(nn.Identity(), nn.Sequential(operation)), Mesh())
    with pytest.raises(NotDecomposed, match="in layer 1.0") as raised:
        model(image())
    assert message in str(raised.value) and ";" in str(raised.value), raised.value
    assert LAYERS == []


def test_batch_norm_of_pooled_features_over_data_ranks_is_refused():
    class Two(Mesh):  # a mesh of two data ranks, as seen by one of them
        def __init__(self):
            super().__init__()
            self.data = 2

    model = decompose(nn.Sequential(nn.BatchNorm1d(4)), Mesh())
    model(torch.rand(3, 4))
    with pytest.raises(NotDecomposed, match="pooled features"):
        decompose(nn.Sequential(nn.BatchNorm1d(4)), Two())(torch.rand(3, 4))


def test_torch_s_own_spellings_are_understood():
    x = image()
    whole = x.local
    assert torch.equal(torch.mean(input=x, axis=(2, 3), keepdims=True), whole.mean((2, 3), keepdim=True))
    assert torch.equal(F.normalize(x).local, F.normalize(whole))
    assert x.to(torch.zeros(1, dtype=torch.float64)).local.dtype == torch.float64
    assert torch.equal(x.permute(dims=(0, 2, 3, 1)).local, whole.permute(0, 2, 3, 1))
    assert torch.equal(torch.where(x > 0.5, x, -x).local, torch.where(whole > 0.5, whole, -whole))
    kept = F.dropout(x, 0.5, inplace=True)
    assert kept is x and (x.local == 0).any()


def test_sixteen_bits_do_not_overflow():
    x = shard(torch.ones(1, 1, 400, 400, dtype=torch.float16), Mesh())
    assert F.adaptive_avg_pool2d(x, 1).item() == x.mean().item() == F.avg_pool2d(x, 300).local.max().item() == 1


@pytest.mark.parametrize("convolution", [(7, 2, 3), (3, 2, "valid"), ((5, 3), (3, 2), (1, 0), 2), (4, 3, 2, 1, 2)])
def test_a_large_weight_gradient_is_summed_over_bands(monkeypatch, convolution):
    monkeypatch.setattr("gigapipe.spatial.operators.convolution.LARGE", 500)
    kernel, stride, padding, *others = convolution
    layer = nn.Conv2d(4, 6, kernel, stride, padding, *others, bias=False).double()
    image = torch.rand(2, 4, 37, 29, dtype=torch.float64)
    grad = torch.rand_like(layer(image)).contiguous(memory_format=torch.channels_last)
    expected = torch.autograd.grad(layer(image), layer.weight, grad)[0]
    calls, torchs_own = [], torch.ops.aten.convolution_backward
    monkeypatch.setattr(
        "gigapipe.spatial.operators.convolution.convolution_backward",
        lambda grad, *rest: calls.append(grad.numel()) or torchs_own(grad, *rest),
    )
    found = torch.autograd.grad(decompose(layer, Mesh())(shard(image, Mesh())).local, layer.weight, grad)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert len(calls) > 2 and sum(calls) == grad.numel(), "the bands cover the output, once"


def test_decomposing_changes_neither_layers_nor_state():
    model = nn.Sequential(nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert decompose(model, Mesh()) is model
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    plain = torch.rand(1, 4, 9, 9)
    model.eval()
    assert torch.equal(model(plain), model(shard(plain, Mesh())))  # it still takes whole images


def test_a_dense_loss_is_a_plain_number():
    loss = F.mse_loss(image(), torch.zeros(1, 4, 16, 16))
    assert not isinstance(loss, SpatialTensor) and loss.shape == ()
