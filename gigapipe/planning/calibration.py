"""This machine as a `Machine`: short runs, and the parameters of the time model that fit them best.

    mpiexec -n 2 python -m gigapipe.planning.calibration

is what `measure` starts: all ranks make the same steps at once, each on images of its own, for they share the memory's
bandwidth; then they send each other messages of many sizes.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np

from gigapipe.allocator import return_freed_tensors
from gigapipe.errors import InputError
from gigapipe.planning.machines import Machine

STEPS = [
    (network, size, precision)
    for network, sizes in (("resnet18", (128, 256, 512, 768)), ("resnet50", (128, 384)), ("unet", (512, 1024)))
    for size in sizes
    for precision in ("float32", "bfloat16")
]
REPEATS = 4  # the first is not counted
MESSAGES = [2**power for power in range(10, 24)]  # bytes


class Fit(NamedTuple):
    """A machine, and lines that say how well it fits what was measured."""

    machine: Machine
    lines: list[str]


def measure(ranks: int = 2) -> Fit:
    """Run and fit, on `ranks` ranks of this machine, its cores shared out. Takes about a minute.

    Raises InputError if the ranks cannot be started.
    """
    command = ["mpiexec", "-n", str(ranks), sys.executable, "-m", "gigapipe.planning.calibration"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"this machine cannot be measured: {error}") from None
    found = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    return fit(found, ranks)


def fit(found: dict, ranks: int) -> Fit:
    """The machine whose predictions differ least, in logarithms, from what the ranks found."""
    import torch
    from scipy.optimize import least_squares

    from gigapipe.planning.cost import step_cost
    from gigapipe.planning.scaling import compute_seconds

    counted = []
    for network, size, precision in STEPS:
        cost = step_cost(maker(network), (1, 3, size, size), precision=getattr(torch, precision))
        counted.append((precision, cost.operations))
    seconds = np.array(found["steps"])

    def predicted(logarithms: np.ndarray) -> np.ndarray:
        by_precision = dict(zip(("float32", "bfloat16"), np.exp(logarithms[:2]), strict=True))
        bandwidth, operation = np.exp(logarithms[2:])
        return np.array(
            [
                compute_seconds(operations, by_precision[precision], bandwidth, operation)
                for precision, operations in counted
            ]
        )

    start = np.log([1e11, 1e11, 1e10, 1e-5])
    solved = least_squares(lambda x: np.log(predicted(x) / seconds), start, loss="soft_l1")
    float32, bfloat16, bandwidth, operation = np.exp(solved.x).tolist()
    sizes, times = np.array(MESSAGES), np.array(found["messages"])
    # Weighted so that short and long messages count alike.
    slope, latency = np.polyfit(sizes, times, 1, w=1 / times)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / ranks
    machine = Machine(
        f"this machine ({platform.machine()}, {ranks} ranks of {len(os.sched_getaffinity(0)) // ranks or 1} cores)",
        memory,
        ranks,
        {"float32": float32, "bfloat16": bfloat16},
        bandwidth,
        near=1 / slope,
        far=None,
        flops_share=1.0,
        bandwidth_share=1.0,
        link_share=1.0,
        near_latency=max(latency, float(times.min()) / 2),  # a line through noise may begin below zero
        operation=operation,
        reserve=found["base"] / memory,
        measured=True,
    )
    lines = [f"{'a step of':28} {'measured, s':>12} {'fitted, s':>10} {'ratio':>6}"]
    for (network, size, precision), was, fitted in zip(STEPS, seconds, predicted(solved.x), strict=True):
        lines.append(f"{f'{network} {size}² {precision}':28} {was:12.4f} {fitted:10.4f} {fitted / was:6.2f}")
    return Fit(machine, lines)


def maker(network: str):
    from gigapipe.models import RESNETS, GigapixelUNet

    return GigapixelUNet if network == "unet" else lambda: RESNETS[network](2)


def run() -> None:
    """One rank; the first prints the seconds of `STEPS` and `MESSAGES`, and the bytes that its process had before."""
    return_freed_tensors()
    import torch
    from mpi4py import MPI

    from gigapipe.models.layout import in_channels_last
    from gigapipe.planning.cost import default_loss
    from gigapipe.spatial import Mesh, decompose, shard
    from gigapipe.spatial.planning import resident_memory
    from gigapipe.spatial.transports.mpi import MpiTransport

    world = MPI.COMM_WORLD
    torch.set_num_threads(max(1, torch.get_num_threads() // world.size))
    base, steps = resident_memory(), []
    for network, size, precision in STEPS:
        model = decompose(in_channels_last(maker(network)()), Mesh())
        image = shard(torch.rand(1, 3, size, size).contiguous(memory_format=torch.channels_last), Mesh())
        dtype = getattr(torch, precision)
        taken = []
        for _ in range(REPEATS):
            model.zero_grad()
            world.Barrier()
            begun = time.perf_counter()
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                output = model(image)
            default_loss(output).backward()
            taken.append(time.perf_counter() - begun)
        steps.append(statistics.median(taken[1:]))
    transport = MpiTransport(world)
    ahead, behind = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    messages = []
    for size in MESSAGES:
        sent, room = torch.zeros(2, size, dtype=torch.uint8)
        taken = []
        for _ in range(24):
            world.Barrier()
            begun = time.perf_counter()
            transport.exchange([(ahead, sent)], [(behind, room)])()
            taken.append(time.perf_counter() - begun)
        messages.append(statistics.median(taken[4:]))
    if world.rank == 0:
        print(json.dumps({"steps": steps, "messages": messages, "base": base}), flush=True)


if __name__ == "__main__":
    run()
