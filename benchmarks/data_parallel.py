"""Two ways to use ranks: one image shared by all (spatial), or one image each (data-parallel).

    python benchmarks/data_parallel.py [--sizes 512 1024 2048] [--ranks 2] [--limit 1200]

The same training step of ResNet-18, float32, on a mesh of 1 × R × 1 and of R × 1 × 1. First as much memory as there
is: images a second, medians, taking turns. Then with a limit on the memory that each rank may have on top of what it
has once everything is imported (RLIMIT_DATA, in MB): from some size on only the spatial mesh runs.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from gigapipe.allocator import return_freed_tensors

MESHES = {"spatial": lambda ranks: (1, ranks, 1), "data-parallel": lambda ranks: (ranks, 1, 1)}


def worker(kind: str, size: int, steps: int, limit: int) -> None:
    """One rank; rank 0 prints the seconds of each step."""
    return_freed_tensors()
    import torch
    import torch.nn.functional as F
    from mpi4py import MPI

    from gigapipe.models import resnet18
    from gigapipe.spatial import Mesh, SpatialTensor, decompose
    from gigapipe.spatial.transports.mpi import MpiTransport

    ranks = MPI.COMM_WORLD.size
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))
    mesh = Mesh(*MESHES[kind](ranks), transport=MpiTransport(MPI.COMM_WORLD))
    torch.manual_seed(0)
    model = decompose(resnet18(2).to(memory_format=torch.channels_last), mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    if limit:
        fields = dict(line.split(":") for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
        held = int(fields["VmData"].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (held + limit * 10**6,) * 2)
    local = torch.rand(1, 3, *mesh.rectangle((size, size)).shape).contiguous(memory_format=torch.channels_last)
    seconds = []
    try:
        for _ in range(steps):
            MPI.COMM_WORLD.Barrier()
            begun = time.perf_counter()
            loss = F.cross_entropy(model(SpatialTensor(local, (size, size), mesh)), torch.tensor([1]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seconds.append(time.perf_counter() - begun)
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error).lower() and "alloc" not in str(error).lower():
            raise
        print(json.dumps({"out of memory": str(error)[:200]}), flush=True)
        time.sleep(1)  # an aborted launcher drops what it has not yet passed on
        MPI.COMM_WORLD.Abort(1)
    if mesh.rank == 0:
        print(json.dumps({"seconds": seconds[1:] or seconds, "images": mesh.data}), flush=True)


def measure(kind: str, size: int, ranks: int, steps: int, limit: int = 0) -> dict | None:
    """What rank 0 printed; None where a rank ran out of memory."""
    arguments = ["--worker", kind, "--sizes", size, "--steps", steps, "--limit", limit]
    command = ["mpiexec", "-n", ranks, sys.executable, __file__, *arguments]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env={**os.environ, "PATH": path})
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not rows:
        sys.exit(done.stdout + done.stderr)
    return None if any("out of memory" in row for row in rows) else rows[0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--limit", type=int, default=1200, help="MB a rank, on top of what it starts with")
    parser.add_argument("--worker", choices=MESHES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.sizes[0], args.steps, args.limit)
        sys.exit()
    cores = len(os.sched_getaffinity(0))
    print(f"ResNet-18, float32, {args.ranks} ranks, {cores} cores\n")
    print(
        f"  size   spatial, images/s   data-parallel, images/s   ratio   with {args.limit} MB: spatial   data-parallel"
    )
    for size in args.sizes:
        found = {kind: [] for kind in MESHES}
        for _ in range(args.rounds):
            for kind, rates in found.items():
                row = measure(kind, size, args.ranks, args.steps)
                rates += [row["images"] / s for s in row["seconds"]]
        spatial, parallel = (statistics.median(rates) for rates in found.values())
        fits = ["runs" if measure(kind, size, args.ranks, 1, args.limit) else "out of memory" for kind in MESHES]
        print(
            f"{size:6} {spatial:19.3f} {parallel:25.3f} {spatial / parallel:7.2f} {fits[0]:>24} {fits[1]:>15}",
            flush=True,
        )
