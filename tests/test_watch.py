"""What whole training steps do on a GPU, seen on a machine without one: `benchmarks/watch.py` counts, this compares.

A change that makes a number here smaller lowers it; one that makes it larger says why.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from launching import ROOT
from requirements import missing

pytestmark = pytest.mark.slow
COMPILERS = [os.environ.get("CXX", "g++"), "clang++"]

# At most: operations on the device, sums over ranks, messages to other ranks. For each plain tensor that is made of an
# image, one of the sums asks whether its ranks are alike there.
COUNTS = {
    ("held", "step"): (836, 44, 124),
    ("held", "kernels"): (517, 44, 124),
    ("data", "step"): (1071, 66, 124),
    ("streamed", "step"): (3473, 0, 0),
    ("on_host", "step"): (2193, 0, 0),
    ("unet", "backward"): (292, 3, 24),
    ("unet", "validate"): (242, 5, 28),  # four sums of a loss, each of an image that is not joined to others
    ("unet", "segment"): (192, 0, 32),
    ("trainer", "backward"): (848, 44, 124),
    ("trainer", "validate"): (1341, 45, 256),
    ("trainer", "predict"): (402, 3, 128),
    ("trainer", "map"): (408, 0, 140),
    ("trainer", "train"): (3361, 138, 504),
}

# Where the host waits for the device, and why it may.
WAITS = {
    "spatial/mesh.py: Mesh.agree": "whether data ranks are alike, once a backward pass",
    "spatial/gradients.py: of_images": "whether the ranks of an image are alike behind the pool, once a step",
    "spatial/constant.py: told_by_device": "which cells of a kept image are constant, once a segment",
    "spatial/transports/torch_distributed.py: TorchTransport.sum_": "numbers of the host's, which NCCL sums on GPUs",
    "training/classification.py: OfCanvases.backward": "a step's loss, once",
    "training/segmentation.py: Segmentation.backward": "a step's loss, once a slide",
    "training/classification.py: predict": "what is said of a slide",
    "training/classification.py: Classification.figures": "the classes' weights, once a validation",
    "training/segmentation.py: Segmentation.validate": "a slide's loss and Dice",
    "training/segmentation.py: segment": "a slide's mask",
    "training/activation.py: Mapper.__init__": "the bias of a network's head, once",
    "training/activation.py: _whole": "a slide's map",
    "training/state.py: State.end_epoch.<locals>.<dictcomp>": "the weights of each epoch that is better",
}

# What is known to lose its layout or its dtype, and why nothing is done about it.
KNOWN = {
    "_to_copy makes an image in torch.float32 in spatial/operators/resampling.py: _Grown.forward": "torch's autocast "
    "interpolates in float32",
    "_to_copy makes an image in torch.float32 in outside gigapipe": "the gradient of such an image",
    "upsample_bilinear2d loses channels_last in spatial/operators/resampling.py: _Grown.forward": "so CUDA's kernel "
    "writes fewer than 16 channels, on purpose",
    "cat loses channels_last in spatial/operators/shaping.py: cat": "with such an image",
    "slice_backward loses channels_last in outside gigapipe": "of such an image",
}


@pytest.fixture(scope="module")
def traces(tmp_path_factory) -> dict[tuple[str, str], dict]:
    """What was found, by trace and phase."""
    if torch.backends.cuda.is_built():
        pytest.skip("this torch knows CUDA: a CUDA that is not there needs one that does not")
    if not any(map(shutil.which, COMPILERS)):
        missing("no C++ compiler: a CUDA that is not there has to be built")

    library = tmp_path_factory.mktemp("watch") / "fake_cuda.so"
    subprocess.run([sys.executable, ROOT / "benchmarks/fake_cuda.py", library], check=True)
    traces = ["trainer", "streamed", "on_host", "without_float64", "held", "data", "unet"]
    command = [sys.executable, str(ROOT / "benchmarks/watch.py"), "--traces", *traces]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FAKE_CUDA": str(library)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {(phase["trace"], phase["phase"]): phase for phase in found}


@pytest.mark.parametrize("trace", COUNTS, ids=" ".join)
def test_a_step_on_a_gpu(traces, trace):
    found = traces[trace]
    assert "failed" not in found, found["failed"]
    strange = set(found["faults"]) - set(KNOWN)
    assert not strange, strange
    waits = set(found["syncs"]) - set(WAITS)
    assert not waits, waits
    counted = found["operations"], *(found["collectives"].get(kind, 0) for kind in ("allreduce", "send"))
    assert all(n <= most for n, most in zip(counted, COUNTS[trace], strict=True)), counted
    losses = [n for where, n in found["syncs"].items() if where.endswith("backward")]
    assert losses in ([], [1]) or trace == ("trainer", "train"), losses


@pytest.mark.parametrize("phase", ["step", "kernels"])
def test_a_step_of_a_held_image_waits_once(traces, phase):
    assert traces["held", phase]["syncs"] == {"spatial/gradients.py: of_images": 1}


@pytest.mark.parametrize("trace", ["streamed", "on_host"])
def test_a_streamed_step_waits_at_most_once_a_segment(traces, trace):
    """For what it asks the device; images of the host's are sent and brought back while other tiles are computed."""
    found = traces[trace, "step"]
    assert 0 < sum(found["syncs"].values()) <= found["segments"]


def test_memory_is_as_planned(traces):
    held, streamed, on_host = (traces[trace, "step"] for trace in ("held", "streamed", "on_host"))
    assert held["gigabytes"] == pytest.approx(held["planned"], rel=0.05)
    assert streamed["gigabytes"] <= streamed["planned"]
    assert on_host["on_host"] and on_host["gigabytes"] <= on_host["planned"]


def test_no_float64_reaches_a_device_that_has_none(traces):
    """As Apple's GPUs, and some of Intel's: a training step held and streamed, validation, maps and masks."""
    found = {phase: f for (trace, phase), f in traces.items() if trace == "without_float64"}
    assert len(found) == 8
    assert not {phase: f["failed"] for phase, f in found.items() if "failed" in f}
    assert not {phase: f["faults"] for phase, f in found.items() if f["faults"]}


def test_all_that_is_allowed_is_needed(traces):
    """Or it would allow what comes in its place."""
    for allowed, kind in ((WAITS, "syncs"), (KNOWN, "faults")):
        assert set(allowed) == {where for found in traces.values() for where in found[kind]}
