"""The stem of a ResNet (7 × 7, stride 2, 3 to 64 channels), float32, in one process: where plain torch falls off.

    python benchmarks/stem.py [--sizes 2048 2816 3072 4096] [--limit 90]

Seconds of forward pass and of the weights' gradient, the second time; plain torch in both memory formats and a
decomposed stem on one rank in channels_last. A run that has not ended after --limit seconds is given up.
"""

import argparse
import json
import os
import subprocess
import sys
import time

KINDS = {"plain, contiguous": False, "plain, channels_last": False, "ours, channels_last": True}


def worker(kind: str, size: int) -> None:
    from gigapipe.allocator import return_freed_tensors

    return_freed_tensors()
    import torch
    from torch import nn

    from gigapipe.spatial import Mesh, decompose, shard

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    layout = torch.channels_last if "channels_last" in kind else torch.contiguous_format
    stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False).to(memory_format=layout)
    image = torch.rand(1, 3, size, size).contiguous(memory_format=layout)
    if KINDS[kind]:
        stem, image = decompose(stem, Mesh()), shard(image, Mesh())
    for _ in range(2):
        begun = time.perf_counter()
        y = stem(image)
        y = y.local if KINDS[kind] else y
        forward = time.perf_counter() - begun
        y.backward(torch.ones_like(y))
        total = time.perf_counter() - begun
    print(json.dumps([forward, total - forward]))


def measure(kind: str, size: int, limit: float) -> str:
    command = [sys.executable, __file__, "--worker", kind, "--sizes", str(size)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=limit, check=True)
    except subprocess.TimeoutExpired:
        return f"over {limit:g} s"
    return "{:.2f} + {:.2f}".format(*json.loads(done.stdout))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 2816, 3072, 4096])
    parser.add_argument("--limit", type=float, default=90)
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.sizes[0])
        sys.exit()
    print("  size" + "".join(f"{kind:>22}" for kind in KINDS))
    for size in args.sizes:
        print(f"{size:6}" + "".join(f"{measure(kind, size, args.limit):>22}" for kind in KINDS), flush=True)
