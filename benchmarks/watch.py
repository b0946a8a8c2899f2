"""What a training step does on a GPU, counted on a machine without one: see fake_cuda.py.

    python benchmarks/watch.py                  # the matrix: networks, norms, pools, meshes, places; some minutes
    python benchmarks/watch.py --json held      # one trace of the test suite: held, data, streamed, …

Of every trace: operations on the device, host synchronisations, collectives of each kind, the most bytes at a time,
and what is wrong: operations that mix devices, images that lose their layout or become float64. A step is forward,
backward, gradients averaged, and AdamW. Shapes are those of a whole slide; nothing is computed.
"""

import argparse
import collections
import functools
import itertools
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

from fake_cuda import CUDA, interior, mesh_of, place_of, pretended  # before torch

# isort: split
import torch
import torch.nn.functional as F
from made_slides import Slides

from gigapipe.models import RESNETS
from gigapipe.planning.cost import step_cost
from gigapipe.spatial import SpatialTensor, decompose, late_gradients, plan_streaming, stream
from gigapipe.spatial.pooled import averaging
from gigapipe.training import loop
from gigapipe.training.activation import Mapper
from gigapipe.training.classification import Classification, ClassifierSettings, predict
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


def held(network="resnet18", norm="batch", pool="average", mesh=(1, 8, 8), place="interior", precision="bfloat16"):
    """A step of a ResNet whose ranks hold their shards."""
    with pretended(place_of(place, mesh), math.prod(mesh)) as watch:
        ranks = mesh_of(mesh)
        trained = trainable(lambda: RESNETS[network](2, norm, pool), ranks)
        rectangle = ranks.rectangle((CANVAS, CANVAS))
        pixels = torch.zeros(1, 3, *rectangle.shape, device=CUDA).contiguous(memory_format=torch.channels_last)
        image = SpatialTensor(pixels, (CANVAS, CANVAS), ranks)
        (found,) = phases(watch, step=lambda: step(*trained, image, ranks, precision))
    yield found | {"planned": planned(network, norm, pool, mesh, place, precision)}


def undivided(network="resnet18", norm="batch", pool="average", precision="bfloat16"):
    """The same step in plain torch, on a card that had the memory."""
    with pretended(0, 1) as watch:
        trained = trainable(lambda: RESNETS[network](2, norm, pool))
        alone = mesh_of((1, 1, 1))
        image = torch.zeros(1, 3, CANVAS, CANVAS, device=CUDA).contiguous(memory_format=torch.channels_last)
        yield from phases(watch, step=lambda: step(*trained, image, alone, precision))


def streamed(size=1024, memory=3.4e8):
    """A step of ResNet-18 with trainable norms, tile by tile."""
    with pretended(0, 1) as watch:
        ranks = mesh_of((1, 1, 1))
        model, optimizer = trainable(lambda: RESNETS["resnet18"](2), ranks)
        shape = (1, 3, size, size)

        def read(rectangle):
            return torch.zeros(1, 3, *rectangle.shape).contiguous(memory_format=torch.channels_last)

        with torch.autocast("cuda", torch.bfloat16):
            plan = plan_streaming(model, shape, memory, ranks, device=CUDA, base=watch.alive)
        image = stream(read, plan, ranks, shape, device=CUDA)
        (found,) = phases(watch, step=lambda: step(model, optimizer, image, ranks))
        yield found | {"planned": plan.peak / 1e9, "segments": len(plan.tiles)}


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
    "held": held,
    "data": functools.partial(held, mesh=(36, 8, 8)),
    "undivided": undivided,
    "streamed": streamed,
    "unet": unet,
    "trainer": trainer,
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


def summary(name: str, found: dict) -> str:
    sums, sends = (found["collectives"].get(kind, 0) for kind in ("allreduce", "send"))
    expected = f"{found['planned']:.2f}" if "planned" in found else ""
    cells = name, found["operations"], sum(found["syncs"].values()), sums, sends, f"{found['gigabytes']:.2f}", expected
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", nargs="+", metavar="TRACE", help="one trace, and keywords in JSON")
    args = parser.parse_args()
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
        (found,) = traced("held", json.dumps(options))
        name = " ".join(str(v).replace(", ", "×").strip("()") for v in options.values())
        print(summary(name, found), flush=True)
        faults.update(found["faults"])
    for trace in ("streamed", "unet", "trainer"):
        for found in traced(trace):
            print(summary(f"{trace}: {found['phase']}", found), flush=True)
            faults.update(found["faults"])
    print("\nWhat is wrong, how often in all:", *(f"{n:5} {fault}" for fault, n in faults.most_common()), sep="\n")
