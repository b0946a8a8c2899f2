"""What `gigapipe plan` predicts beside what is measured on this machine: memory, seconds and bytes of a training step.

    python benchmarks/planning.py [--only resnet18] [--steps 3]

Each configuration in processes of its own, as many as it has ranks, with huge pages and freed memory given back at once
(gigapipe/allocator.py). The base is what a process has after it has loaded its libraries and made one step of a tiny
network, so that torch has all that it loads at first use; memory is counted above it, before model and image are made:
the largest resident set of the steps of AdamW, of the rank that takes most. Predictions are made in a process that runs
none of it. Seconds are predicted for this machine as `gigapipe plan --measure` finds it at the beginning of the same
run, and are the median of all steps but the first; a rank has one core.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from gigapipe.allocator import return_freed_tensors
from gigapipe.cli.messages import log_to_stderr

SHARE = 0.4  # of what plain torch is predicted to take that a streamed step may


class Configuration(NamedTuple):
    network: str
    norm: str
    size: int
    precision: str
    ranks: int = 1
    streamed: bool = False
    data: int = 1

    @property
    def mesh(self) -> tuple[int, int, int]:
        return self.data, self.ranks // self.data, 1

    def __str__(self) -> str:
        name = self.network if self.network == "unet" else f"{self.network}, {self.norm}"
        mesh = " × ".join(map(str, self.mesh)) + ", streamed" * self.streamed
        return f"{name:18} {self.size:5}²  {self.precision:9} {mesh:19}"


CONFIGURATIONS = [
    Configuration("resnet18", "batch", 1024, "float32"),
    Configuration("resnet18", "batch", 2048, "float32"),
    Configuration("resnet18", "batch", 2048, "bfloat16"),
    Configuration("resnet34", "batch", 1536, "float32"),
    Configuration("resnet50", "batch", 1024, "float32"),
    Configuration("resnet50", "frozen", 1024, "bfloat16"),
    Configuration("unet", "", 2048, "float32"),
    Configuration("resnet18", "batch", 2048, "float32", ranks=2),
    Configuration("resnet18", "batch", 2048, "bfloat16", ranks=2),
    Configuration("resnet34", "frozen", 1536, "float32", ranks=2),
    Configuration("resnet50", "batch", 1024, "float32", ranks=2),
    Configuration("unet", "", 4096, "float32", ranks=2),
    Configuration("resnet18", "batch", 1024, "float32", ranks=2, data=2),
    Configuration("resnet18", "batch", 1024, "bfloat16", ranks=2, data=2),
    Configuration("resnet18", "frozen", 2048, "float32", streamed=True),
    Configuration("resnet18", "frozen", 2048, "bfloat16", streamed=True),
    Configuration("resnet34", "frozen", 2048, "float32", streamed=True),
    Configuration("resnet18", "frozen", 2048, "float32", ranks=2, streamed=True),
    Configuration("resnet18", "frozen", 3072, "bfloat16", ranks=2, streamed=True),
]


def memory(key: str) -> int:
    """Bytes: VmRSS, what this process has, or VmHWM, the most that it has had."""
    return 1024 * int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))[1])


def maker(configuration: Configuration):
    from gigapipe.models import RESNETS, GigapixelUNet

    if configuration.network == "unet":
        return GigapixelUNet
    return lambda: RESNETS[configuration.network](2, configuration.norm)


def tiny():
    """A network with a layer of each kind."""
    from torch import nn

    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))


def worker(configuration: Configuration, limit: int, steps: int) -> None:
    """One rank; rank 0 prints what the ranks took. `limit`: of a streamed step, above the base.

    `time` is what a streamed step's plan expects, in that of the undivided step.
    """
    return_freed_tensors()
    import torch

    from gigapipe.planning.cost import default_loss
    from gigapipe.spatial import SpatialTensor, decompose, late_gradients, plan_streaming, stream
    from gigapipe.spatial.recording import without_pixels
    from gigapipe.training.ranks import started

    size, dtype = configuration.size, getattr(torch, configuration.precision)

    def autocast():
        return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)

    def learner(make, mesh):
        model = decompose(make().to(memory_format=torch.channels_last), mesh)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def part(size: int, mesh):
        local = torch.rand(1, 3, *mesh.rectangle((size, size)).shape).contiguous(memory_format=torch.channels_last)
        return SpatialTensor(local, (size, size), mesh)

    def step(model, optimizer, image):
        optimizer.zero_grad()
        with autocast():
            output = model(image)
        loss = default_loss(output)
        del output
        with late_gradients(mesh):
            loss.backward()
        optimizer.step()

    log_to_stderr()
    with started(*configuration.mesh, threads=1) as mesh:
        torch.manual_seed(0)
        step(*learner(tiny, mesh), part(64, mesh))
        if configuration.streamed:
            without_pixels()
        base, plan = memory("VmRSS"), None
        model, optimizer = learner(maker(configuration), mesh)
        if configuration.streamed:
            state = 3 * sum(p.nbytes for p in model.parameters() if p.requires_grad)  # gradients, AdamW's moments
            beside = memory("VmRSS") + state + 3 * 4 * size**2
            with autocast():
                plan = plan_streaming(model, (1, 3, size, size), base + limit, mesh, base=beside)
        image = part(size, mesh)
        mesh.everyone.sent_bytes, seconds = 0, []
        for _ in range(steps):
            begun = time.perf_counter()
            step(model, optimizer, stream(image, plan) if plan else image)
            seconds.append(time.perf_counter() - begun)
        found = torch.zeros(mesh.size, 4, dtype=torch.float64)
        sent = mesh.everyone.sent_bytes / steps
        found[mesh.rank] = torch.tensor([memory("VmHWM") - base, base, sent, statistics.median(seconds[1:])])
        taken, base, sent, of_step = mesh.everyone.sum_(found).amax(0).tolist()
        if mesh.rank == 0:
            expected = (plan.peak - base, plan.time) if plan else (None, 1.0)
            told = dict(zip(("expected", "time"), expected, strict=True))
            print(json.dumps({"taken": taken, "base": base, "sent": sent, "seconds": of_step, **told}), flush=True)


def measure(index: int, limit: int, steps: int) -> dict:
    command = [sys.executable, __file__, "--worker", str(index), "--limit", str(limit), "--steps", str(steps)]
    if (ranks := CONFIGURATIONS[index].ranks) > 1:
        command = ["mpiexec", "-n", str(ranks), *command]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


def main(args: argparse.Namespace) -> None:
    import torch

    from gigapipe.planning.calibration import measure as calibrate
    from gigapipe.planning.cost import step_cost
    from gigapipe.planning.scaling import step_seconds

    fit = calibrate(2)
    print(*fit.lines, "", sep="\n", flush=True)
    print(
        f"{'network, norm':18} {'image':>6}  precision {'mesh':19} {'base, MB':>9} {'predicted, MB':>14} "
        f"{'measured, MB':>13} {'ratio':>7} {'predicted, s':>13} {'measured, s':>12} {'ratio':>7} {'sent, MB':>10} "
        f"{'predicted':>10}"
    )
    for index, configuration in enumerate(CONFIGURATIONS):
        if args.only and args.only not in str(configuration):
            continue
        shape = (1, 3, configuration.size, configuration.size)
        costs = [
            step_cost(maker(configuration), shape, configuration.mesh, rank, getattr(torch, configuration.precision))
            for rank in range(configuration.ranks)
        ]
        predicted = max(cost.memory for cost in costs)
        found = measure(index, int(SHARE * predicted), args.steps)
        predicted = found["expected"] or predicted
        of_ranks = (step_seconds(cost, fit.machine, configuration.precision, configuration.ranks) for cost in costs)
        seconds = found["time"] * max(of_rank.spent.total for of_rank in of_ranks)
        print(
            f"{configuration} {found['base'] / 1e6:9.0f} {predicted / 1e6:14.0f} {found['taken'] / 1e6:13.0f} "
            f"{predicted / found['taken']:7.2f} {seconds:13.3f} {found['seconds']:12.3f} "
            f"{seconds / found['seconds']:7.2f} {found['sent'] / 1e6:10.3f} {max(c.sent for c in costs) / 1e6:10.3f}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="part of a configuration's line")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        worker(CONFIGURATIONS[args.worker], args.limit, args.steps)
    else:
        main(args)
