"""Images that lie on a disk: the same gradients, within the same memory, and nothing left behind."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launching import ROOT
from requirements import missing
from torch import nn

from gigapipe.cli import main
from gigapipe.models import resnet18
from gigapipe.spatial import Mesh, Plan, decompose, plan_streaming, shard, stream
from gigapipe.spatial.check import compare
from gigapipe.spatial.planning import trace
from gigapipe.spatial.speed import Disk, Host, disk_in, host_of
from gigapipe.training.streaming import Memory, Streaming

TOLERANCE = 1e-10

KEPT = frozenset(range(1, 60))


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "frozen"])
@pytest.mark.parametrize("whole_from", [None, 35], ids=["streamed", "whole from layer3 on"])
def test_gradients_are_exact_with_every_image_elsewhere(norm, whole_from, tmp_path):
    """At an odd size, where a stride looks past some rows, and where several layers use one image; two in three images
    are on the disk, the others in the host's memory."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, 101, 77, dtype=torch.float64)
    on_host = KEPT & set(range(0, 60, 3))
    places = {"on_host": on_host, "on_disk": KEPT - on_host, "folder": tmp_path}
    plan = Plan(tile=40, kept=KEPT, whole_from=whole_from, workers=2, **places)
    differences = compare(resnet18(2, norm, width=8), images, Mesh(), plan)
    assert {d.kind for d in differences} >= {"output", "gradient", "input gradient"}
    assert differences[0].error <= TOLERANCE, differences[0]


def two_convolutions() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1)
    return decompose(nn.Sequential(*layers).double(), Mesh())


def test_a_second_backward_pass_adds_the_same_gradients(tmp_path):
    model, image = two_convolutions(), torch.rand(1, 3, 40, 30, dtype=torch.float64)
    kept = frozenset({1, 2, 3})
    plan = Plan(tile=16, kept=kept, on_disk=kept, folder=tmp_path)
    loss = model(stream(shard(image, Mesh()), plan)).square().sum()
    found = []
    for again in (True, False):
        model.zero_grad()
        loss.backward(retain_graph=again)
        found.append([p.grad.clone() for p in model.parameters()])
    for once, twice in zip(*found, strict=True):
        torch.testing.assert_close(once, twice, rtol=TOLERANCE, atol=TOLERANCE)


def test_files_have_no_name_while_they_are_used(tmp_path):
    """So a process leaves none, at whatever moment it is killed."""
    seen = []

    def look(*_):
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
        seen.append((len(os.listdir(tmp_path)), f"{tmp_path}/" in maps))

    model, kept = two_convolutions(), frozenset({1, 2, 3})
    plan = Plan(tile=16, kept=kept, on_disk=kept, folder=tmp_path)
    image = stream(shard(torch.rand(1, 3, 40, 30, dtype=torch.float64), Mesh()), plan, progress=look)
    loss = model(image).sum()
    loss.backward()
    assert len(seen) > 10 and {named for named, _ in seen} == {0} and any(used for _, used in seen)
    del loss, image
    assert f"{tmp_path}/" not in Path("/proc/self/maps").read_text(encoding="utf-8")


FULL = """
import sys, torch
from torch import nn
from gigapipe.spatial import Mesh, Plan, shard, stream
plan = Plan(tile=64, kept=frozenset({1}), on_disk=frozenset({1}), folder=sys.argv[1])
try:
    nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1))(stream(shard(torch.rand(1, 3, 400, 400), Mesh()), plan))
except OSError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_disk_without_space_is_an_error_not_a_signal(tmp_path):
    """On a file system of 1 MB, in which a file without its space, mapped into memory, would end the process."""
    if os.geteuid():
        missing("no root, so no small file system is mounted")
    small = 'mount -t tmpfs -o size=1m none $1 && exec $2 -c "$3" $1'
    command = ["unshare", "--mount", "bash", "-c", small, "bash", tmp_path, sys.executable, FULL]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done
    assert done.stdout == f"[Errno 28] No space left on device: '{tmp_path}'\n"


@pytest.mark.slow
def test_a_plan_uses_a_disk_where_that_is_faster(tmp_path):
    model, shape, memory = decompose(resnet18(2), Mesh()), (1, 3, 4096, 4096), 2.5e9
    plans = {
        name: plan_streaming(model, shape, memory, base=2e8, threads=1, disk=byte and Disk(tmp_path, byte))
        for name, byte in (("none", None), ("slow", 1e6), ("fast", 20.0))
    }
    assert not plans["none"].on_disk and not plans["slow"].on_disk and plans["slow"].time == plans["none"].time
    fast = plans["fast"]
    assert fast.on_disk and fast.on_disk < fast.kept and fast.time < plans["none"].time and fast.peak <= memory
    assert f"{len(fast.on_disk)} of the kept images on disk" in str(fast)
    nodes = {node.index: node for node in trace(model, shape, Mesh(), None, torch.float32, "cpu")}
    images = sum(4 * math.prod(nodes[i].results[0].shape) for i in fast.on_disk)
    assert images <= fast.disk <= 2 * images


@pytest.mark.slow
def test_a_plan_fills_the_faster_tier_first(tmp_path):
    """Those of a GPU's host, whose memory is not that of the GPU, and then of a disk."""
    model, shape, memory = decompose(resnet18(2), Mesh()), (1, 3, 4096, 4096), 2.5e9
    plans = []
    for free in (0, 2 * 10**9, 10**12):
        tiers = {"disk": Disk(tmp_path, 20.0), "host": Host(5.0, free)}
        plans.append(plan_streaming(model, shape, memory, base=2e8, threads=1, **tiers))
        assert plans[-1].host <= free and plans[-1].peak <= memory
    none, some, much = plans
    assert none.on_disk and not none.on_host and much.on_host and not much.on_disk
    assert some.on_host and some.on_disk and not some.on_host & some.on_disk
    assert much.time < some.time < none.time
    assert f"{len(some.on_host)} of the kept images in the host's memory" in str(some)
    assert f"{len(some.on_disk)} of the kept images on disk" in str(some)


@pytest.mark.slow
def test_a_step_that_uses_a_disk_keeps_to_its_memory(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/streaming.py", "--worker", "90000000", "--sizes", "768"]
    options = ["--precisions", "float32", "--norm", "batch", "--steps", "1", "--disk", tmp_path]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "of the kept images on disk" in found["plan"], found
    assert 0.75 <= found["expected"] / found["peak"] <= 1.25, found


def test_a_disk_is_measured_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lines = []
    for _ in range(2):
        disk_in.cache_clear()  # as in another process
        disk, line = disk_in(tmp_path, torch.device("cpu"))
        lines.append(line)
        assert disk.folder == tmp_path and disk.byte > 0
    assert "measured, and kept in" in lines[0] and "as " in lines[1] and "GB/s" in lines[1]
    assert disk_in(tmp_path, torch.device("cpu"))[0] == disk
    disk_in.cache_clear()
    with pytest.raises(FileNotFoundError):
        disk_in(tmp_path / "none", torch.device("cpu"))


def test_a_host_is_measured_once_and_kept(tmp_path, monkeypatch):
    """As if a CPU were the card."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = []
    for free in (10**9, 10**10):
        host, line = host_of(torch.device("cpu"), free)
        found.append(line)
        assert host.free == free and host.byte > 0
    assert "measured, and kept in" in found[0] and "as " in found[1] and "GB/s" in found[1]
    host_of.cache_clear()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--disk", "/scratch"], "disk: /scratch: give memory, too"),
        (["--host-memory", "1GiB"], "host_memory: 1073741824: give memory, too"),
        (["--memory", "1GiB", "--disk", "$NOT_SET/x"], "disk: $NOT_SET/x contains an environment variable"),
    ],
)
def test_a_disk_that_cannot_be_used_is_refused(options, message, tmp_path, capsys):
    (tmp_path / "folds.tsv").write_text("slide\tpatient\tsite\tlabel\tfold\n", encoding="utf-8")
    needed = ["--folds", tmp_path / "folds.tsv", "--pyramids", tmp_path, "--output", tmp_path / "m.pt", "--fold", "0"]
    assert main(["train", *map(str, needed), "--mpp", "2", "--canvas", "64", *options]) == 1
    assert message in capsys.readouterr().err


def test_a_cpu_has_no_host_of_its_own(caplog):
    caplog.set_level("INFO")
    assert Streaming(Memory(2**30, host=2**30), Mesh()).host is None
    assert "host_memory: not used, because a CPU computes" in caplog.text
