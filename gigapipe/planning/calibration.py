"""This machine as a `Machine`: short runs, and the parameters of the time model that fit them best.

    mpiexec -n 2 python -m gigapipe.planning.calibration cpu

is what `measure` starts: each step is made by one rank while the others sleep, and then by all ranks at once, each on
images of its own, for those on CPUs share the memory's bandwidth; then they send each other messages of many sizes.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gigapipe.allocator import return_freed_tensors
from gigapipe.errors import InputError
from gigapipe.planning.machines import Machine

KINDS = ("resnet18", (384, 1024)), ("resnet50", (640,)), ("unet", (1024, 2048))
"""Networks, and rows of their square images. No parameters fit steps at 128 px and at 768 px both."""

KINDS_OF_GPUS = ("resnet18", (256, 1024, 2048)), ("resnet50", (256, 1024)), ("unet", (1024, 4096))
"""Of which some take a GPU longer than to be started."""

REPEATS = 3  # the first is not counted
MESSAGES = [2**power for power in range(10, 24)]  # bytes


def steps_on(kind: str) -> list[tuple[str, int, str]]:
    """Networks, sizes and precisions of the steps that a kind of device is measured by."""
    kinds = KINDS if kind == "cpu" else KINDS_OF_GPUS
    precisions = ["float32", "bfloat16"]
    if kind == "cuda":
        import torch

        precisions = precisions[: 1 + torch.cuda.is_bf16_supported(including_emulation=False)]
    return [(network, size, precision) for network, sizes in kinds for size in sizes for precision in precisions]


class Fit(NamedTuple):
    """A machine, and lines that say how well it fits what was measured."""

    machine: Machine
    lines: list[str]


def measure(ranks: int = 2, kind: str = "cpu") -> Fit:
    """Run and fit, on `ranks` ranks of this machine, with a GPU each or its cores shared out. Takes a minute or two.

    Raises InputError if the ranks cannot be started.
    """
    command = ["mpiexec", "-n", str(ranks), sys.executable, "-P", "-m", "gigapipe.planning.calibration", kind]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(f"this machine cannot be measured: {error}") from None
    found = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    return fit(found, ranks)


def fit(found: dict, ranks: int) -> Fit:
    """The machine whose predictions differ least, in logarithms, from what the ranks `found` (see `run`)."""
    import torch
    from scipy.optimize import least_squares

    from gigapipe.planning.cost import step_cost
    from gigapipe.planning.scaling import compute_seconds

    steps, alone, at_once = found["steps"], np.array(found["alone"]), np.array(found["at once"])
    counted = []
    for network, size, precision in steps:
        dtype = getattr(torch, precision)
        cost = step_cost(maker(network), (1, 3, size, size), precision=dtype, on_gpu=found["kind"] != "cpu")
        counted.append((precision, cost.operations))
    precisions = list(dict.fromkeys(precision for precision, _ in counted))

    names, known = ["bandwidth", "operation", *precisions], 2 + len(precisions)
    links: dict = {"near": None}
    if found["messages"]:
        sizes, times = np.array(MESSAGES), np.array(found["messages"])
        # Weighted so that short and long messages count alike.
        slope, latency = np.polyfit(sizes, times, 1, w=1 / times)
        # A line through noise may begin below zero.
        links = {"near": 1 / slope, "near_latency": max(latency, float(times.min()) / 2)}

    def machine_of(values: np.ndarray) -> Machine:
        """`values`: logarithms of a rank's bandwidth, seconds to start an operation, and flops; then `slower`."""
        bandwidth, operation, *flops = np.exp(values[:known]).tolist()
        return Machine(
            f"this machine ({found['name']})",
            found["memory"],
            ranks,
            dict(zip(precisions, flops, strict=True)),
            bandwidth,
            far=None,
            flops_share=1.0,
            bandwidth_share=1.0,
            link_share=1.0,
            operation=operation,
            slower=dict(zip(names, values[known:].tolist(), strict=True)) if ranks > 1 else {},
            reserve=found["base"] / found["memory"],
            measured=True,
            device=found["kind"],
            **links,
        )

    def predicted(values: np.ndarray, at_work: int) -> np.ndarray:
        """Seconds of each step, while so many ranks work."""
        it = machine_of(values).at_work(at_work)
        return np.array([compute_seconds(of, it.flops[p], it.bandwidth, it.operation).total for p, of in counted])

    def differences(values: np.ndarray) -> np.ndarray:
        return np.log(np.concatenate([predicted(values, 1) / alone, predicted(values, ranks) / at_once]))

    faster = 1 if found["kind"] == "cpu" else 100
    start = [*np.log([1e10 * faster, 1e-5, *[1e11 * faster] * len(precisions)]), *[0.1] * known]
    least = [*[-np.inf] * known, *[0.0] * known]
    solved = least_squares(differences, start, bounds=(least, np.inf), loss="soft_l1").x
    lines = [
        f"{'a step of':28} {'one rank alone, s':>18} {'fitted, s':>10} {'ratio':>6} "
        f"{f'{ranks} ranks at once, s':>20} {'fitted, s':>10} {'ratio':>6}"
    ]
    rows = zip(steps, alone, predicted(solved, 1), at_once, predicted(solved, ranks), strict=True)
    for (network, size, precision), was, fit_of_one, were, fit_of_all in rows:
        lines.append(
            f"{f'{network} {size}² {precision}':28} {was:18.4f} {fit_of_one:10.4f} {fit_of_one / was:6.2f} "
            f"{were:20.4f} {fit_of_all:10.4f} {fit_of_all / were:6.2f}"
        )
    return Fit(machine_of(solved), lines)


def maker(network: str):
    from gigapipe.models import RESNETS, GigapixelUNet

    return GigapixelUNet if network == "unet" else lambda: RESNETS[network](2)


def run(kind: str) -> None:
    """One rank; the first prints what they found.

    `steps` (network, size, precision), the seconds of each `alone` and `at once`, `messages`, the seconds of those of
    `MESSAGES`, the `memory` of a rank and its `base`, bytes of it that tensors do not get, and the `kind` and `name` of
    the device.
    """
    return_freed_tensors()
    import torch
    from mpi4py import MPI

    from gigapipe.models.layout import in_channels_last
    from gigapipe.planning.cost import default_loss
    from gigapipe.spatial import Mesh, decompose, shard
    from gigapipe.spatial.planning import resident_memory

    world = MPI.COMM_WORLD
    torch.set_num_threads(max(1, torch.get_num_threads() // world.size))
    module = torch.get_device_module(kind)
    device = torch.device(kind) if kind == "cpu" else torch.device(kind, world.rank % module.device_count())
    module.set_device(device)
    torch.backends.cudnn.allow_tf32 = False  # as a training has it
    base, alone, at_once = resident_memory(), [], []
    for network, size, precision in steps_on(kind):
        model = decompose(in_channels_last(maker(network)()).to(device), Mesh())
        pixels = torch.rand(1, 3, size, size).contiguous(memory_format=torch.channels_last)
        image = shard(pixels.to(device), Mesh())
        dtype = getattr(torch, precision)

        def seconds(begin: Callable[[], None], model=model, image=image, dtype=dtype) -> float:
            taken = []
            for _ in range(REPEATS):
                model.zero_grad()
                module.synchronize()
                begin()
                begun = time.perf_counter()
                with torch.autocast(kind, dtype, enabled=dtype != torch.float32):
                    output = model(image)
                default_loss(output).backward()
                module.synchronize()
                taken.append(time.perf_counter() - begun)
            return statistics.median(taken[1:])

        if world.rank == 0:
            alone.append(seconds(lambda: None))
        _sleep_until_all_are_here(world)
        at_once.append(seconds(world.Barrier))
    found: dict[str, object] = {"kind": kind, "steps": steps_on(kind), "alone": alone, "at once": at_once}
    found["messages"] = _messages(world, device)
    if kind == "cpu":
        cores = len(os.sched_getaffinity(0)) // world.size or 1
        found["name"] = f"{platform.machine()}, {world.size} ranks of {cores} cores"
        found["memory"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / world.size
        found["base"] = base
    else:  # what the driver, kernels and NCCL have taken
        free, total = module.mem_get_info()
        found["name"] = f"{world.size} × {module.get_device_name(device)}"
        found["memory"], found["base"] = total, total - free - module.memory_reserved()
    if world.rank == 0:
        print(json.dumps(found), flush=True)


def _sleep_until_all_are_here(world) -> None:
    """A barrier that leaves the processor to those who have not come; MPI's own may wait in a loop."""
    all_are_here = world.Ibarrier()
    while not all_are_here.Test():
        time.sleep(0.001)


def _messages(world, device) -> list[float]:
    """Seconds of an exchange of each of `MESSAGES` in a ring; none of a single GPU."""
    import torch

    if device.type != "cpu" and world.size == 1:
        return []
    transport = _transport(world, device.type)
    ahead, behind = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    module, messages = torch.get_device_module(device), []
    for size in MESSAGES:
        sent, room = torch.zeros(2, size, dtype=torch.uint8, device=device)
        taken = []
        for _ in range(24):
            module.synchronize()
            world.Barrier()
            begun = time.perf_counter()
            transport.exchange([(ahead, sent)], [(behind, room)])()
            module.synchronize()
            taken.append(time.perf_counter() - begun)
        messages.append(statistics.median(taken[4:]))
    return messages


def _transport(world, kind: str):
    """What carries data between ranks in a training on such devices."""
    if kind == "cpu":
        from gigapipe.spatial.transports.mpi import MpiTransport

        return MpiTransport(world)
    import torch.distributed as dist

    from gigapipe.spatial.transports.torch_distributed import TorchTransport

    first = world.rank == 0
    store = dist.TCPStore("127.0.0.1", 0, world.size, True, wait_for_workers=False) if first else None
    port = world.bcast(store.port if store else None)
    store = store or dist.TCPStore("127.0.0.1", port, world.size, False)
    backend = {"cuda": "nccl", "xpu": "xccl"}[kind]
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size)
    return TorchTransport()


if __name__ == "__main__":
    run(sys.argv[1])
