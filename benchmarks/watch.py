"""What a training step does on a GPU, counted on a machine without one: see fake_cuda.py.

    python benchmarks/watch.py                  # the matrix: networks, norms, pools, meshes, places; some minutes
    python benchmarks/watch.py --json held      # one trace of the test suite: held, data, streamed, …
    python benchmarks/watch.py --traces held data …  # several, two at a time

Of every trace: operations on the device, host synchronisations, collectives of each kind, the most bytes at a time,
and what is wrong: operations that mix devices, images that lose their layout or become float64. A step is forward,
backward, gradients averaged, and AdamW. Shapes are those of a whole slide; nothing is computed.
"""

import argparse
import collections
import functools
import importlib
import itertools
import json
import math
import multiprocessing
import subprocess
import sys
import tempfile
from pathlib import Path

from fake_cuda import CUDA, interior, mesh_of, place_of, pretended  # before torch

# isort: split
import torch
import torch.distributed as dist
import torch.nn.functional as F
from made_slides import Slides
from torch import nn

from gigapipe.models import RESNETS
from gigapipe.planning.cost import step_cost
from gigapipe.spatial import (
    Plan,
    SpatialTensor,
    decompose,
    kernels,
    late_gradients,
    plan_streaming,
    stream,
    wide,
)
from gigapipe.spatial.operators import normalisation
from gigapipe.spatial.pooled import averaging
from gigapipe.spatial.speed import CPU, Host
from gigapipe.training import loop
from gigapipe.training.activation import Mapper
from gigapipe.training.classification import Classification, ClassifierSettings, predict
from gigapipe.training.regression import Regression, RegressorSettings
from gigapipe.training.segmentation import Segmentation, SegmenterSettings, segment
from gigapipe.training.streaming import Streaming

CANVAS = 22528


def report(watch, phase: str, **more) -> dict:
    """What the watch has counted, which then counts anew."""
    found = {
        "phase": phase,
        "operations": watch.operations.total(),
        "syncs": dict(watch.syncs),
        "collectives": dict(watch.collectives),
        "gigabytes": watch.most / 1e9,
        "most_in": watch.most_in,
        "faults": dict(watch.faults),
        **more,
    }
    watch.reset()
    return found


def trainable(make, mesh=None):
    """A network on the mesh's device, and its optimiser, as `gigapipe train` has them after a step; or as torch has."""
    model = make().to(memory_format=torch.channels_last).to(CUDA)
    model = decompose(model, mesh) if mesh else model
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def step(model, optimizer, image, mesh, precision: str = "bfloat16") -> None:
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
        logits = model(image)
    loss = F.cross_entropy(logits.float(), torch.zeros(len(logits), dtype=torch.long, device=CUDA))
    # A tensor without memory does not know that data ranks have others.
    with late_gradients(mesh), averaging([loss], mesh):
        loss.backward()
    optimizer.step()


def held(
    network="resnet18", norm="batch", pool="average", mesh=(1, 8, 8), place="interior", precision="bfloat16", own=False
):
    """A step of a ResNet whose ranks hold their shards, and if asked one with gigapipe's `own` kernels."""
    with pretended(place_of(place, mesh), math.prod(mesh)) as watch:
        ranks = mesh_of(mesh)
        trained = trainable(lambda: RESNETS[network](2, norm, pool), ranks)
        rectangle = ranks.rectangle((CANVAS, CANVAS))
        pixels = torch.zeros(1, 3, *rectangle.shape, device=CUDA).contiguous(memory_format=torch.channels_last)
        image = SpatialTensor(pixels, (CANVAS, CANVAS), ranks)

        def run():
            step(*trained, image, ranks, precision)

        def with_kernels():
            trained[1].zero_grad()
            kernels.DEVICES.add("cuda")
            run()
            kernels.DEVICES.clear()

        found, *of_kernels = phases(watch, step=run, **({"kernels": with_kernels} if own else {}))
    yield found | {"planned": planned(network, norm, pool, mesh, place, precision)}
    yield from of_kernels


def undivided(network="resnet18", norm="batch", pool="average", precision="bfloat16"):
    """The same step in plain torch, on a card that had the memory."""
    with pretended(0, 1) as watch:
        trained = trainable(lambda: RESNETS[network](2, norm, pool))
        alone = mesh_of((1, 1, 1))
        image = torch.zeros(1, 3, CANVAS, CANVAS, device=CUDA).contiguous(memory_format=torch.channels_last)
        yield from phases(watch, step=lambda: step(*trained, image, alone, precision))


def streamed(size=1024, memory=3.4e8, host=None):
    """A step of ResNet-18 with trainable norms, tile by tile; with `host`, what does not fit is kept there."""
    # By one thread: see `without_float64`.
    with pretended(0, 1) as watch, torch.autograd.set_multithreading_enabled(host is None):
        ranks = mesh_of((1, 1, 1))
        model, optimizer = trainable(lambda: RESNETS["resnet18"](2), ranks)
        shape = (1, 3, size, size)

        def read(rectangle):
            return torch.zeros(1, 3, *rectangle.shape).contiguous(memory_format=torch.channels_last)

        with torch.autocast("cuda", torch.bfloat16):
            plan = plan_streaming(model, shape, memory, ranks, device=CUDA, base=watch.alive, host=host)
        image = stream(read, plan, ranks, shape, device=CUDA)
        (found,) = phases(watch, step=lambda: step(model, optimizer, image, ranks))
        yield found | {"planned": plan.peak / 1e9, "segments": len(plan.tiles), "on_host": len(plan.on_host)}


SETTINGS = {
    "mpp": 1.0, "fold": 0, "epochs": 1, "batch": 1, "learning_rate": 1e-4, "weight_decay": 1e-2, "seed": 0,
    "precision": "bfloat16",
}  # fmt: skip


def unet(memory=None, size=4000):
    """The tissue's U-Net on 2 × 2 ranks: its backward pass, validation and segmentation."""
    with pretended(0, 4) as watch:
        mesh = mesh_of((1, 2, 2))
        settings = SegmenterSettings(**SETTINGS)
        task = Segmentation(settings, Slides(2, size, mesh), Slides(2, size, mesh), mesh, memory)
        yield from phases(
            watch,
            backward=lambda: task.backward([0], 0),
            validate=lambda: task.validate(iter([])),
            segment=lambda: list(segment(task.model, settings, task.validation, Streaming(memory, mesh))),
        )


def trainer(class_weights="balanced", pool="average", norm="batch", size=2048):
    """The classifier's own steps on an interior rank of 4 × 4, and a whole short training."""
    shape = (1, 4, 4)
    with pretended(interior(shape), 16) as watch, tempfile.TemporaryDirectory() as folder:
        mesh = mesh_of(shape)
        settings = ClassifierSettings(
            **SETTINGS, canvas=size, classes=["a", "b"], norm=norm, pool=pool, class_weights=class_weights, stain=0.1
        )
        task = Classification(settings, Slides(2, size, mesh), Slides(2, size, mesh), mesh, None)
        yield from phases(
            watch,
            backward=lambda: task.backward([0], 0),
            validate=lambda: task.validate(iter([[0], [1]])),
            predict=lambda: predict(task.model, settings, task.validation, Streaming(None, mesh)),
            train=lambda: loop.train(task, Path(folder) / "model.pt"),
            map=lambda: list(Mapper(task.model, settings).activations(task.validation, Streaming(None, mesh))),
        )


def operations(mesh):
    """Of an image of one rank, those that sum, draw or look for places."""
    image = SpatialTensor(torch.rand(1, 4, 32, 32, device=CUDA).requires_grad_(), (64, 64), mesh)
    labels, weights = torch.zeros(1, 64, 64, dtype=torch.long, device=CUDA), torch.ones(4, device=CUDA)
    pooled, places = F.max_pool2d(image, 2, return_indices=True)
    yield F.max_unpool2d(pooled, places, 2)
    yield F.cross_entropy(image, labels, weights, ignore_index=3)
    yield F.cross_entropy(image, labels)
    yield from (F.interpolate(image, scale_factor=s, mode=m) for s in (2, 1.5) for m in ("bilinear", "bicubic"))
    yield from (image.amax((2, 3)), image.amin(2), image.std((2, 3)), F.adaptive_max_pool2d(image, 1))
    yield F.instance_norm(image, torch.zeros(4, device=CUDA), torch.ones(4, device=CUDA))
    yield F.group_norm(image, 2, weights, weights)
    yield F.dropout(image) + torch.rand_like(image) + torch.randn_like(image) + torch.bernoulli(image.sigmoid())


def differentiated(results) -> None:
    for result in results:
        result.sum().backward()


def tiled(mesh, size: int) -> None:
    """Forward and backward of a network with norms, tile by tile."""
    norms = nn.BatchNorm2d(8), nn.ReLU(), nn.GroupNorm(4, 8), nn.InstanceNorm2d(8, track_running_stats=True)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), *norms, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    model = decompose(network.to(CUDA), mesh)

    def read(rectangle):
        return torch.zeros(1, 3, *rectangle.shape).to(CUDA)

    with torch.autocast("cuda", torch.bfloat16):
        logits = model(stream(read, Plan(tile=size // 4), mesh, (1, 3, size, size), device=CUDA))
    F.cross_entropy(logits.float(), torch.zeros(1, dtype=torch.long, device=CUDA)).backward()


def without_float64(size=128):
    """What a rank does whose device has no float64, on a small scale: its faults are where some is made on it.

    Sums of ranks go through the host, as Apple's GPUs' do.
    """
    wide.WITHOUT.add("cuda")
    normalisation.FUSED = set()
    small = {"canvas": size, "network": "resnet10", "width": 8}
    # By one thread: that of what is on the host, and that of the device, would use the mode without memory at once.
    with pretended(0, 4) as watch, torch.autograd.set_multithreading_enabled(False):
        watch.without_float64 = True
        dist.get_backend_config = lambda group=None: "cpu:gloo,cuda:nccl"
        mesh = mesh_of((1, 2, 2))
        numbered, labelled, masked = (Slides(2, size, mesh) for _ in range(3))
        numbered.truth = numbered.truth.double()
        numbers = RegressorSettings(**SETTINGS, **small, target="age", mean=0.5, deviation=0.5)
        of_numbers = Regression(numbers, numbered, numbered, mesh, None)
        labels = ClassifierSettings(**SETTINGS, **small, classes=["a", "b"], norm="none", pool="gated")
        of_labels = Classification(labels, labelled, labelled, mesh, None)
        of_masks = Segmentation(SegmenterSettings(**SETTINGS), masked, masked, mesh, None)
        runs = {
            "operations": lambda: differentiated(operations(mesh)),
            "streamed": lambda: tiled(mesh, size),
            "numbers": lambda: of_numbers.backward([0], 0),
            "numbers, validate": lambda: of_numbers.validate(iter([[0]])),
            "numbers, map": lambda: list(Mapper(of_numbers.model, numbers).activations(numbered, of_numbers.streaming)),
            "labels": lambda: of_labels.backward([0], 0),
            "masks": lambda: of_masks.backward([0], 0),
            "masks, validate": lambda: of_masks.validate(iter([])),
        }
        for found in phases(watch, **runs):
            yield found | {"faults": {f: n for f, n in found["faults"].items() if "float64" in f}, "syncs": {}}


def phases(watch, **runs):
    """Each runs by itself, so that one that fails hides no other."""
    for phase, run in runs.items():
        watch.reset()
        try:
            run()
        except Exception as error:
            yield report(watch, phase, failed=f"{type(error).__name__}: {error}")
        else:
            yield report(watch, phase)


TRACES = {
    "held": functools.partial(held, own=True),
    "data": functools.partial(held, mesh=(36, 8, 8)),
    "undivided": undivided,
    "streamed": streamed,
    "on_host": functools.partial(streamed, memory=2.7e8, host=Host(0.1 * CPU.byte, 10**12)),
    "unet": unet,
    "trainer": trainer,
    "without_float64": without_float64,
}


def matrix():
    """Names and keywords of `held`: each network from every place of two meshes, then the others from the interior."""
    places, meshes = ("corner", "edge", "interior"), ((1, 8, 8), (36, 8, 8))
    for network, mesh, place in itertools.product(("resnet18", "resnet50"), meshes, places):
        yield {"network": network, "mesh": mesh, "place": place}
    yield from ({"norm": norm} for norm in ("group", "frozen", "none"))
    yield from ({"pool": pool} for pool in ("max", "attention"))
    yield {"precision": "float32"}


def planned(network="resnet18", norm="batch", pool="average", mesh=(1, 8, 8), place="interior", precision="bfloat16"):
    """Gigabytes that `gigapipe plan` expects of the same step."""

    def make():
        return RESNETS[network](2, norm, pool)

    dtype = getattr(torch, precision)
    return step_cost(make, (1, 3, CANVAS, CANVAS), mesh, place_of(place, mesh), dtype, on_gpu=True).memory / 1e9


def traced(*arguments: str) -> list[dict]:
    """What another process finds: the fake CUDA is made once in each."""
    command = [sys.executable, __file__, "--json", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def forked(trace: str) -> list[dict]:
    """What a trace finds in a fork of this process."""
    return [{"trace": trace, **found} for found in TRACES[trace]()]


def summary(name: str, found: dict) -> str:
    sums, sends = (found["collectives"].get(kind, 0) for kind in ("allreduce", "send"))
    expected = f"{found['planned']:.2f}" if "planned" in found else ""
    cells = name, found["operations"], sum(found["syncs"].values()), sums, sends, f"{found['gigabytes']:.2f}", expected
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", nargs="+", metavar="TRACE", help="one trace, and keywords in JSON")
    parser.add_argument("--traces", nargs="+", choices=TRACES, help="traces, two at a time, in JSON")
    args = parser.parse_args()
    if args.traces:
        importlib.import_module("torch._dynamo")  # as fake tensors do: once for all
        with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
            for of_trace in pool.imap(forked, args.traces, chunksize=1):
                for found in of_trace:
                    print(json.dumps(found), flush=True)
        sys.exit()
    if args.json:
        trace, *keywords = args.json
        options = json.loads(keywords[0]) if keywords else {}
        options |= {"mesh": tuple(options["mesh"])} if "mesh" in options else {}
        for found in TRACES[trace](**options):
            print(json.dumps(found), flush=True)
        sys.exit()
    print("| step, bfloat16 | operations | the host waits | sums | messages | GB | planned, GB |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    faults = collections.Counter()
    for options in matrix():
        (found,) = traced("held", json.dumps(options | {"own": False}))
        name = " ".join(str(v).replace(", ", "×").strip("()") for v in options.values())
        print(summary(name, found), flush=True)
        faults.update(found["faults"])
    for trace in ("streamed", "unet", "trainer"):
        for found in traced(trace):
            print(summary(f"{trace}: {found['phase']}", found), flush=True)
            faults.update(found["faults"])
    print("\nWhat is wrong, how often in all:", *(f"{n:5} {fault}" for fault, n in faults.most_common()), sep="\n")
