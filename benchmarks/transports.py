"""How long ranks take to tell each other something: torch.distributed (gloo) against MPI.

    mpiexec -n 2 python benchmarks/transports.py

Prints the median of repeated, interleaved runs: an all-reduce as small as BatchNorm's, a halo of one row, and an
all-reduce of a ResNet-18's gradients.
"""

import statistics
import time

import torch
from mpi4py import MPI

from gigapipe.spatial.transports.mpi import MpiTransport
from gigapipe.training.ranks import torch_transport

torch.set_num_threads(1)
transports = {"mpi": MpiTransport(MPI.COMM_WORLD), "gloo": torch_transport(MPI.COMM_WORLD)}
rank, size = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size
small = torch.ones(129, dtype=torch.float64)
halo, room = torch.ones(64 * 1024), torch.ones(64 * 1024)
gradients = torch.ones(11_700_000)


def swap(transport):
    transport.exchange([((rank + 1) % size, halo)], [((rank - 1) % size, room)])()


CASES = {
    "all-reduce, 1 kB": (lambda t: t.sum_(small), 200),
    "halo, 256 kB": (swap, 200),
    "all-reduce, 47 MB": (lambda t: t.sum_(gradients), 8),
}
if rank == 0:
    print(f"{size} ranks, {torch.get_num_threads()} thread each; median, µs\n")
    print(f"{'':20}" + "".join(f"{name:>12}" for name in transports) + f"{'gloo / mpi':>12}")
for case, (run, times) in CASES.items():
    taken = {name: [] for name in transports}
    for _ in range(times):
        for name, transport in transports.items():
            MPI.COMM_WORLD.Barrier()
            begun = time.perf_counter()
            run(transport)
            taken[name].append(time.perf_counter() - begun)
    medians = [statistics.median(t[len(t) // 4 :]) * 1e6 for t in taken.values()]
    if rank == 0:
        print(f"{case:20}" + "".join(f"{m:12.0f}" for m in medians) + f"{medians[1] / medians[0]:12.1f}")
