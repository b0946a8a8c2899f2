"""A training step of ResNet-18, batch 1: plain torch in one process against ranks that share the image.

    python benchmarks/step.py [--sizes 1024 2048] [--ranks 2] [--layout channels_last] [--precision float32] [--libc]

Both have the machine's cores, huge pages and freed memory given back at once, as `gigapipe train` has (see
gigapipe/allocator.py; --libc leaves memory as libc has it). They take turns: several rounds, each in new processes.
Prints medians of the steps' seconds, the peak memory of all ranks together, and their ratios. A step is forward,
backward and SGD.

What the ranks send in a step, all together, stands beside the least that exact layer-by-layer decomposition can do
with: each cut's halo once forward and its gradient once backward, BatchNorm's sums, and the all-reduce of gradients.

Memory is sampled every 10 ms: what the processes have of their own, added up, and once the largest share of mapped
files (libraries), which ranks have in common.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil

from gigapipe.allocator import return_freed_tensors


def worker(size: int, layout: str, precision: str, steps: int, libc: bool) -> None:
    """One rank; rank 0 prints the seconds of each step."""
    if not libc:
        return_freed_tensors()
    import torch
    import torch.nn.functional as F
    from mpi4py import MPI

    from gigapipe.models import resnet18
    from gigapipe.spatial import Mesh, decompose, shard
    from gigapipe.spatial.transports.mpi import MpiTransport

    ranks = MPI.COMM_WORLD.size
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))
    memory_format = getattr(torch, "contiguous_format" if layout == "contiguous" else layout)
    torch.manual_seed(0)
    model = resnet18(2).to(memory_format=memory_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    image = torch.rand(1, 3, size, size).contiguous(memory_format=memory_format)
    if ranks > 1:
        mesh = Mesh(rows=ranks, transport=MpiTransport(MPI.COMM_WORLD))
        model, image = decompose(model, mesh), shard(image, mesh)
        mesh.everyone.sent_bytes = 0  # the weights were shared, once
    label = torch.tensor([1])
    seconds = []
    for _ in range(steps):
        MPI.COMM_WORLD.Barrier()
        begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = F.cross_entropy(model(image).float(), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - begun)
    report = {"seconds": seconds[1:], "loss": loss.item()}
    if ranks > 1:
        report["sent"] = MPI.COMM_WORLD.allreduce(mesh.everyone.sent_bytes) / steps
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            report["least"] = least_bytes(model, image, ranks)
    if MPI.COMM_WORLD.rank == 0:
        print(json.dumps(report), flush=True)


def least_bytes(model, image, ranks: int) -> int:
    """What all ranks must send in a step at the least, `ranks` of them one above the other."""
    from torch import nn

    found = 2 * (ranks - 1) * sum(p.numel() for p in model.parameters()) * 4
    reduced = 2 * (ranks - 1) * 8

    def count(layer, inputs):
        nonlocal found
        (x,) = inputs
        if isinstance(layer, nn.BatchNorm2d):
            found += reduced * (4 * x.shape[1] + 1)
        elif isinstance(layer, nn.AdaptiveAvgPool2d):
            found += reduced // 2 * 2 * x.shape[1]
        else:
            kernel, stride = (v if isinstance(v, int) else v[0] for v in (layer.kernel_size, layer.stride))
            row = x.shape[0] * x.shape[1] * x.shape[3] * x.local.element_size()
            found += (ranks - 1) * max(0, kernel - stride) * row * (2 if x.requires_grad else 1)

    kinds = nn.Conv2d | nn.MaxPool2d | nn.BatchNorm2d | nn.AdaptiveAvgPool2d
    hooks = [layer.register_forward_pre_hook(count) for layer in model.modules() if isinstance(layer, kinds)]
    model(image)
    for hook in hooks:
        hook.remove()
    return found


def memory(pids: list[int]) -> int:
    """Bytes that processes have of their own, and the largest share of mapped files."""
    own, files = 0, 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        except OSError:
            continue
        if "RssAnon" in text:  # a process that is ending has none
            rss = {k: int(v) * 1024 for k, v in re.findall(r"(Rss\w+):\s+(\d+) kB", text)}
            own += rss["RssAnon"] + rss["RssShmem"]
            files = max(files, rss["RssFile"])
    return own + files


def pythons(process: psutil.Process) -> list[int]:
    """Python among a process and what it started."""
    found = []
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            found += [one.pid] * one.name().startswith("python")
    return found


def measure(ranks: int, arguments: list[str]) -> dict:
    command = [sys.executable, __file__, "--worker", *arguments]
    if ranks > 1:
        command = ["mpiexec", "-n", str(ranks), *command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak, watched = 0, psutil.Process(process.pid)
        for sample in itertools.count():
            if process.poll() is not None:
                break
            if sample % 100 == 0:  # to look for processes takes far longer than to look at one
                pids = pythons(watched)
            peak = max(peak, memory(pids))
            time.sleep(0.01)
        (line,) = [line for line in process.stdout if line.startswith("{")]
    return {**json.loads(line), "peak": peak}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layout", choices=["channels_last", "contiguous"], default="channels_last")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--libc", action="store_true", help="leave memory as libc has it")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.sizes[0], args.layout, args.precision, args.steps, args.libc)
        sys.exit()
    cores = len(os.sched_getaffinity(0))
    print(f"ResNet-18, batch 1, {args.precision}, {args.layout}; {cores} cores")
    print(f"plain: 1 process × {cores} threads; ours: {args.ranks} ranks × {max(1, cores // args.ranks)} threads\n")
    print("  size   plain, s    ours, s   ratio   plain, MB   ours, MB   ratio   sent, MB   least, MB")
    for size in args.sizes:
        options = ["--sizes", size, "--layout", args.layout, "--precision", args.precision, "--steps", args.steps]
        options += ["--libc"] * args.libc
        found = {1: [], args.ranks: []}
        for _ in range(args.rounds):
            for ranks, runs in found.items():
                runs.append(measure(ranks, list(map(str, options))))
        plain, ours = found.values()
        seconds = [statistics.median(s for run in runs for s in run["seconds"]) for runs in (plain, ours)]
        peaks = [statistics.median(run["peak"] for run in runs) / 1e6 for runs in (plain, ours)]
        print(
            f"{size:6} {seconds[0]:10.2f} {seconds[1]:10.2f} {seconds[1] / seconds[0]:7.2f}"
            f" {peaks[0]:11.0f} {peaks[1]:10.0f} {peaks[1] / peaks[0]:7.2f}"
            f" {ours[0]['sent'] / 1e6:10.2f} {ours[0]['least'] / 1e6:11.2f}",
            flush=True,
        )
