"""GPUs, on machines without one: what is chosen, what is read that was written on one, what torch is told of networks.

What their kernels would do is in test_watch.py.
"""

import multiprocessing
import os
import re
import resource
import socket
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from forks import with_forks
from launching import ROOT, gigapipe, run_program
from packaging.requirements import Requirement
from projects import fresh_copy, snakemake
from requirements import missing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from gigapipe.cli import parser
from gigapipe.cli.distributed import launching
from gigapipe.errors import InputError
from gigapipe.exit_status import AGAIN
from gigapipe.spatial.transports.torch_distributed import TorchTransport
from gigapipe.training import devices, ranks
from gigapipe.training.checkpoints import Checkpoints
from gigapipe.training.classification import ClassifierSettings
from gigapipe.training.model_files import read_model

UNREADABLE = Path("/proc/self/mem")  # the kernel answers with an input/output error
needs_proc = pytest.mark.skipif(not UNREADABLE.exists(), reason="no file here that cannot be read")


@pytest.mark.slow
def test_batch_norm_by_a_gpus_kernels_is_exact():
    """Their definitions stand in for them, and refuse what CUDA's refuse."""
    found = run_program("fused.py", 2)
    assert len(found) == 18
    for case in found:
        assert case["calls"] and case["error"] <= 1e-10, case


@pytest.mark.slow
def test_kernels_in_triton_are_exact():
    """Those that copy halos and those of BatchNorm's sums, run by Triton's interpreter."""
    folder = ROOT / ".venv/triton"
    if not (folder / "triton").exists():
        missing(f"Triton is not in {folder}: make {folder.relative_to(ROOT)}/ready")
    found = run_program("fused.py", 2, folder)
    assert len(found) == 6
    for case in found:
        assert case["calls"] and case["error"] <= 1e-10, case


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints")


def test_a_state_that_was_written_on_a_gpu_is_read_without_one(checkpoints, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    checkpoints.save(7, {"identity": "it", "model": {"weight": torch.arange(3.0)}})
    assert checkpoints.newest("it") == 7
    assert checkpoints.load(7)["model"]["weight"].equal(torch.arange(3.0))


@needs_proc
def test_a_state_that_cannot_be_read_here_is_not_taken_for_torn(checkpoints):
    checkpoints.save(6, {"identity": "it"})
    (checkpoints.folder / "00000007.pt").symlink_to(UNREADABLE)
    with pytest.raises(InputError, match="00000007.pt: cannot be read here: .*Input/output error; it was not changed"):
        checkpoints.newest("it")
    assert len(list(checkpoints.folder.iterdir())) == 2


@needs_proc
def test_a_model_that_cannot_be_read_here_is_not_called_torn(tmp_path):
    (tmp_path / "model.pt").symlink_to(UNREADABLE)
    with pytest.raises(InputError, match="model.pt: cannot be read here"):
        read_model(tmp_path / "model.pt", ClassifierSettings)


def _read_in_little_memory(folder: Path, said) -> None:
    torch.set_num_threads(1)
    more = 50 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + more,) * 2)
    try:
        said.send(f"newest {Checkpoints(folder).newest('it')}")
    except InputError as error:
        said.send(str(error))


@pytest.mark.slow
def test_a_state_for_which_there_is_no_memory_is_not_taken_for_torn(checkpoints):
    checkpoints.save(7, {"identity": "it", "model": {"weight": torch.zeros(50_000_000)}})
    listening, said = multiprocessing.Pipe(duplex=False)
    anew = multiprocessing.get_context("spawn")  # a fork would have what memory this process had and freed
    reader = anew.Process(target=_read_in_little_memory, args=(checkpoints.folder, said))
    reader.start()
    assert listening.poll(60)
    assert "cannot be read here" in listening.recv()
    reader.join()


NETWORKS = {"lo": "127.0.0.1", "docker0": "172.17.0.1", "hsn0": "10.0.0.1", "hsn1": "10.1.0.1", "eth0": "192.168.0.1"}


@pytest.mark.parametrize(
    "variable, told, expected",
    [
        ("NCCL_SOCKET_IFNAME", "hsn1,hsn0", "10.1.0.1"),
        ("NCCL_SOCKET_IFNAME", "hsn", "10.0.0.1"),
        ("NCCL_SOCKET_IFNAME", "=eth0", "192.168.0.1"),
        ("NCCL_SOCKET_IFNAME", "=ib0,eth0", "192.168.0.1"),
        ("NCCL_SOCKET_IFNAME", "^docker", "10.0.0.1"),
        ("NCCL_SOCKET_IFNAME", "^=docker0,hsn0", "10.1.0.1"),
        ("NCCL_SOCKET_IFNAME", "lo", "127.0.0.1"),
        ("GLOO_SOCKET_IFNAME", "ib0,eth0", "192.168.0.1"),
        ("GLOO_SOCKET_IFNAME", "hsn1", "10.1.0.1"),
        ("GLOO_SOCKET_IFNAME", "", None),
        ("GLOO_SOCKET_IFNAME", "hsn", InputError),
        ("NCCL_SOCKET_IFNAME", "=hsn", InputError),
        ("NCCL_SOCKET_IFNAME", "^docker,hsn,eth", InputError),
    ],
)
def test_interfaces_in_every_spelling(monkeypatch, variable, told, expected):
    for name in ranks.INTERFACES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, told)
    here = {n: [types.SimpleNamespace(family=socket.AF_INET, address=a)] for n, a in NETWORKS.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: here | {"ib0": []})
    if expected is InputError:
        with pytest.raises(InputError, match="has no address there; it has lo .127.0.0.1., docker0"):
            ranks.address()
    else:
        assert ranks.address() == expected


def test_float32_is_float32_where_a_card_could_do_with_less(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as torch has it
    with ranks.started(1, 1, 1, device="cpu"):
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    "wanted, gpus, on_this_host, expected",
    [
        ("auto", 0, 2, "cpu (sees no GPU)"),
        ("auto", 4, 4, "cuda:1 (a GPU for each rank)"),
        ("auto", 1, 1, "cuda:0 (a GPU for each rank)"),
        ("auto", 2, 4, "cpu (4 ranks on .* see 2 GPUs; --device cuda:0 would let them share it)"),
        ("cpu", 4, 4, "cpu ()"),
        ("cuda", 4, 4, "cuda:1 ()"),
        ("cuda:2", 4, 4, "cuda:2 ()"),
        ("cuda", 0, 1, "device cuda: torch .* sees none of its kind"),
        ("cuda", 2, 4, "4 ranks on .* see 2 GPUs: start one rank per GPU"),
        ("cuda:4", 4, 1, "device cuda:4: torch .* sees 4 of its kind"),
    ],
)
def test_the_device_is_chosen(monkeypatch, wanted, gpus, on_this_host, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    try:
        choice = devices.choose(wanted, 1 if on_this_host > 1 else 0, on_this_host)
    except InputError as error:
        assert re.search(expected, str(error)), error
    else:
        device, _, why = expected.partition(" (")
        assert str(choice.device) == device and re.search(why.removesuffix(")"), choice.why), choice


def test_kernels_that_give_the_same_bits_are_asked_for():
    arguments = ["--folds", "f", "--pyramids", "p", "--model", "m", "--output", "o", "--deterministic"]
    assert launching(parser().parse_args(["predict", *arguments]))["deterministic"]
    before = torch.backends.cudnn.deterministic
    try:
        with ranks.started(1, 1, 1, device="cpu", deterministic=True):
            assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
            with pytest.warns(UserWarning, match="does not have a deterministic implementation"):
                F.max_unpool2d(torch.rand(1, 1, 2, 2), torch.tensor([[[[0, 2], [8, 10]]]]), 2)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = before
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_nccl_leaves_word_beside_the_output_unless_the_user_said_where(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", {"TORCH_NCCL_TRACE_BUFFER_SIZE": "7"})
    ranks.keep_flight_record(tmp_path / "model.pt.failed")
    assert os.environ == {
        "TORCH_FR_DUMP_TEMP_FILE": f"{tmp_path}/model.pt.failed/rank-nccl-",
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "7",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    }


BEGINS = """
import argparse, sys, types
from gigapipe import cli
from gigapipe.training import launched

args = argparse.Namespace(transport=sys.argv[1], run=lambda args: None)
launched.world = lambda: print("torch" in sys.modules)
cli.parser = lambda: types.SimpleNamespace(parse_args=lambda _: args)
cli.end_with_run = lambda: None
sys.exit(cli.main())
"""


@pytest.mark.parametrize("transport, site, expected", [("mpi", "", "False"), ("auto", "1", "False"), ("auto", "", "")])
def test_mpi_begins_before_torch_is_imported_where_it_must(transport, site, expected):
    """MPI itself is left out."""
    environment = os.environ | {"PMI_SIZE": "2", "GIGAPIPE_MPI_FIRST": site}
    command = [sys.executable, "-c", BEGINS, transport]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr


def test_on_several_hosts_too_few_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="4 ranks on .* see 2 GPUs"):
        devices.choose("auto", 0, 4, several_hosts=True)


@pytest.mark.slow
@pytest.mark.parametrize("told, device, carrier", [("auto", "cpu", "mpi"), ("cuda:0", "cuda:0", "gloo")])
def test_two_ranks_and_one_gpu(told, device, carrier):
    """On the CPUs, or sharing the card through the host when told to."""
    assert run_program("devices.py", 2, told) == [{"device": device, "carrier": carrier}]


@pytest.mark.slow
def test_two_ranks_and_one_gpu_are_refused_if_each_was_to_have_one():
    command = ["mpiexec", "-n", "2", "python", ROOT / "tests/ranks/devices.py", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True, env=with_forks(dict(os.environ), "python"))
    assert done.returncode and "gigapipe: 2 ranks on" in done.stderr and "see 1 GPU: start one" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    arguments = ["--folds", "f", "--pyramids", "p", "--model", "m", "--output", "o", "--device", "cuda"]
    done = gigapipe("predict", *arguments, check=False)
    assert done.returncode == AGAIN and len(done.stdout.splitlines()) == 1, done.stdout  # another host may have one
    assert done.stdout.startswith("gigapipe: device cuda: torch") and "give --device cpu" in done.stdout
    assert gigapipe("predict", *arguments[:-1], "gpu", check=False).returncode == 2


@pytest.mark.slow
def test_the_config_says_where_every_rank_computes(tmp_path):
    project = fresh_copy(tmp_path)
    _, output = snakemake(project, "-n", "--printshellcmds", "--cores", 2, "--config", "training={device: cpu}")
    commands = [line for line in output.splitlines() if " gigapipe " in f" {line.strip()}" and "--mesh" in line]
    assert {c.split("gigapipe ")[1].split()[0] for c in commands} == {"train", "predict", "map"}
    assert all("--device cpu" in c for c in commands)


def test_any_torch_from_a_version_on_will_do():
    """An exact pin would replace a site's build for its GPUs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (torchs,) = [r for r in map(Requirement, project["dependencies"]) if r.name == "torch"]
    for version in ("2.11.0", "2.13.0+rocm7.1", "2.12.1+cu126", "2.15.0"):
        assert torchs.specifier.contains(version)
    assert "torch==2.13.0\n" in (ROOT / "envs/constraints.txt").read_text()
    page = (ROOT / "docs/gpus.md").read_text()
    for build in ("/cpu", "/cu126", "/rocm"):
        assert f"https://download.pytorch.org/whl{build}" in page


@pytest.mark.parametrize("backend", ["cpu:fake,cuda:fake", "fake"])
def test_a_group_is_warmed_up_whatever_its_backend_is_called(monkeypatch, backend):
    accelerator = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: accelerator)
    summed = []
    monkeypatch.setattr(dist, "all_reduce", lambda x, group: summed.append((x.device.type, dist.get_world_size(group))))
    dist.init_process_group(backend, store=FakeStore(), rank=0, world_size=4)
    try:
        with FakeTensorMode():
            TorchTransport().subset([0, 1])
        assert summed == [("cuda", 4), ("cuda", 2)]
    finally:
        dist.destroy_process_group()
