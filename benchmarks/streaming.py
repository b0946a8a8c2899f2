"""A training step of ResNet-18, batch 1, in one process: plain torch against streamed.

    python benchmarks/streaming.py [--sizes 2048 4096] [--precisions float32 bfloat16] [--norm frozen] [--rounds 2]
                                   [--before FOLDER] [--disk FOLDER]

Plain torch and ours have huge pages and freed memory given back at once (gigapipe/allocator.py), of which ours keeps
some where a training would. Ours may hold, beside what the process has before the first step, a share of what plain
held, a quarter unless told by --share. They take turns, each in new processes; medians of the steps' seconds, and the
peak of memory above what the process had before the first step. Processor seconds, of all threads, say more than
seconds where other programs run. With --before, a checkout of another state of gigapipe, what that takes streamed
stands in a line of its own. Plain torch runs in the memory format that it is faster in: contiguous for float32 from
3000 px on, where its channels_last stem has no fast gradient, and channels_last elsewhere. With --disk, images that do
not fit into memory may lie in that folder. The last column is the arithmetic of an undivided step as a share of what a
fast convolution on this machine does in the median seconds; that is measured at the beginning of each round.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from gigapipe.allocator import return_freed_tensors


def memory(key: str) -> int:
    """Bytes: VmRSS, what this process has, or VmHWM, the most that it has had."""
    return 1024 * int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))[1])


def kept_of_freed(present: int, limit: int) -> float | None:
    """What each thread keeps of freed memory, as in a training that may take `limit` bytes beside its `present` ones.

    `--before`'s gigapipe may keep none.
    """
    from gigapipe import allocator, spatial

    heap = getattr(spatial, "heap", allocator)  # it was there before, and counted both
    keep = getattr(heap, "keep_some_freed_tensors", None)
    kept = keep(limit + present * (heap is allocator), len(os.sched_getaffinity(0))) if keep else None
    return getattr(kept, "heap", kept)


def worker(size: int, precision: str, norm: str, limit: int, steps: int, folder: Path | None) -> None:
    """One process; prints the seconds of each step, and bytes. `limit` 0 is plain torch."""
    return_freed_tensors()
    import torch
    import torch.nn.functional as F

    from gigapipe.models import resnet18
    from gigapipe.spatial import Mesh, decompose, plan_streaming, shard, stream

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    contiguous = limit == 0 and precision == "float32" and size > 3000
    layout = torch.contiguous_format if contiguous else torch.channels_last
    model = resnet18(2, norm).to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    image = torch.rand(1, 3, size, size).contiguous(memory_format=layout)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
    label = torch.tensor([1])
    F.cross_entropy(torch.zeros(1, 2, requires_grad=True), label).backward()  # what torch loads at first use
    beside = {}  # not an argument of `--before`'s gigapipe, maybe
    if folder:
        from gigapipe.spatial.speed import disk_in

        beside["disk"] = disk_in(folder, torch.device("cpu"))[0]
    before, plan = memory("VmRSS"), None
    if limit:
        if kept := kept_of_freed(before, limit):
            beside["heap"] = kept
        decompose(model, Mesh())
        with autocast:
            plan = plan_streaming(model, image.shape, before + limit, **beside)
    seconds, of_processors = [], []
    for _ in range(steps):
        begun, worked = time.perf_counter(), time.process_time()
        with autocast:
            logits = model(stream(shard(image, Mesh()), plan) if plan else image)
        loss = F.cross_entropy(logits.float(), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - begun)
        of_processors.append(time.process_time() - worked)
    found = {
        "seconds": seconds[1:],
        "of processors": of_processors[1:],
        "peak": memory("VmHWM") - before,
        "loss": loss.item(),
    }
    print(json.dumps({**found, "expected": plan.peak - before if plan else None, "plan": str(plan)}))


def measure(
    size: int, precision: str, norm: str, limit: int, steps: int, disk: Path | None, folder: Path | None = None
) -> dict:
    """What a worker prints that runs the gigapipe of a `folder`, by default this one."""
    command = [sys.executable, __file__, "--worker", str(limit), "--sizes", str(size), "--precisions", precision]
    environment = {**os.environ, "PYTHONPATH": str(folder or Path(__file__).parent.parent)}
    done = subprocess.run(
        [*command, "--norm", norm, "--steps", str(steps), *(["--disk", disk] if disk and limit else [])],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
    )
    return json.loads(done.stdout)


def best_rate(precision: str) -> float:
    """Multiplications and additions a second of a 3 × 3 convolution of 128 channels, by all cores: the best of ten."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    image, weight = (
        torch.rand(*shape, dtype=getattr(torch, precision)).contiguous(memory_format=torch.channels_last)
        for shape in ((1, 128, 128, 128), (128, 128, 3, 3))
    )
    taken = []
    with torch.no_grad():
        for _ in range(10):
            begun = time.perf_counter()
            F.conv2d(image, weight, padding=1)
            taken.append(time.perf_counter() - begun)
    return 2 * image.numel() * weight[0].numel() / min(taken)


def arithmetic(size: int, precision: str, norm: str) -> float:
    """Multiplications and additions of an undivided step."""
    import torch

    from gigapipe.models import resnet18
    from gigapipe.planning.cost import step_cost

    return step_cost(lambda: resnet18(2, norm), (1, 3, size, size), precision=getattr(torch, precision)).flops


def compared(runs: list[dict], plain: list[dict], flops: float) -> str:
    """Medians of rounds, and of their ratios to plain torch's of the same round, with their least and largest."""
    texts = []
    for key in ("seconds", "of processors"):
        here, there = ([statistics.median(run[key]) for run in kind] for kind in (runs, plain))
        ratios = sorted(a / b for a, b in zip(here, there, strict=True))
        spread = f" ({ratios[0]:.2f}–{ratios[-1]:.2f})"
        texts.append(f"{statistics.median(here):8.2f} {statistics.median(ratios):7.2f}{spread}")
    peak, of_plain = (max(run["peak"] for run in kind) / 1e6 for kind in (runs, plain))
    expected = runs[-1]["expected"]
    share = statistics.median(flops / statistics.median(run["seconds"]) / run["best rate"] for run in runs)
    told = f"{expected / 1e6:9.0f}" if expected else " " * 9
    return f"{' '.join(texts)} {peak:9.0f} {peak / of_plain:7.2f} {told} {share:9.2f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 4096])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--norm", choices=["frozen", "batch", "group", "none"], default="frozen")
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--disk", type=Path)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        worker(args.sizes[0], args.precisions[0], args.norm, args.worker, args.steps, args.disk)
        sys.exit()
    print(f"ResNet-18, batch 1, norm {args.norm}; {len(os.sched_getaffinity(0))} cores\n")
    print(
        "  size  precision  kind            s    ratio (spread)   processor s   ratio        MB   ratio  expected, MB  "
        "share of best rate"
    )
    folders = {"plain": None, "streamed": None, **({"before": args.before} if args.before else {})}
    for size in args.sizes:
        for precision in args.precisions:
            found = {kind: [] for kind in folders}
            for _ in range(args.rounds):
                rate = best_rate(precision)
                for kind, folder in folders.items():
                    limit = int(args.share * max(run["peak"] for run in found["plain"])) if kind != "plain" else 0
                    run = measure(size, precision, args.norm, limit, args.steps, args.disk, folder)
                    found[kind].append({**run, "best rate": rate})
            flops = arithmetic(size, precision, args.norm)
            for kind, runs in found.items():
                print(f"{size:6}  {precision:9}  {kind:8} {compared(runs, found['plain'], flops)}", flush=True)
            print("       ", found["streamed"][-1]["plan"], flush=True)
