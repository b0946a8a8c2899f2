"""Where ranks compute: chosen once, by name or by what there is, and said in the first line of a log."""

import os
import platform
import socket
from dataclasses import dataclass

import torch

from gigapipe.errors import Unavailable
from gigapipe.spatial.wide import has_float64

GPUS = ("cuda", "xpu")
"""Kinds of device of which a machine may have several; torch's modules for them answer alike."""


@dataclass(frozen=True)
class Choice:
    """Where a rank computes, and why there, if nobody said where; `shared`: the ranks of its host have one card."""

    device: torch.device
    why: str = ""
    shared: bool = False

    def __str__(self) -> str:
        kind = self.device.type
        name = platform.machine()
        if kind in GPUS:
            name = torch.get_device_module(self.device).get_device_name(self.device)
        shared = "; the ranks of a host share it" if self.shared else ""
        return f"device: {kind} ({name}){shared}{'; ' if self.why else ''}{self.why}"


def choose(wanted: str, local_rank: int = 0, ranks: int = 1, several_hosts: bool = False) -> Choice:
    """Where the `local_rank`-th of a host's `ranks` computes.

    `wanted` is cpu, cuda (AMD's GPUs too), xpu, mps, or auto: cuda, if there is a GPU for each rank, or else cpu. A
    launcher that binds shows each rank its own GPU alone; else a host's ranks take its GPUs in turn. With a number, as
    cuda:0, they all take that one. Raises Unavailable if what is wanted is not there, or not for every rank.
    """
    if wanted == "cpu":
        return Choice(torch.device("cpu"))
    device = torch.device("cuda" if wanted == "auto" else wanted)
    count = torch.get_device_module(device.type).device_count()
    if wanted == "auto" and not count:
        return Choice(torch.device("cpu"), f"torch {torch.__version__} sees no GPU on {socket.gethostname()}")
    if count <= (device.index or 0):
        raise Unavailable(
            f"device {wanted}: torch {torch.__version__} sees {count or 'none'} of its kind on {socket.gethostname()}; "
            "install the build of torch for it (docs/gpus.md), check its driver, or give --device cpu"
        )
    if device.index is not None or device.type == "mps":
        return Choice(device, shared=ranks > 1)
    if 1 < count < ranks:
        return _too_few(wanted, ranks, count, several_hosts)
    device = torch.device(device.type, local_rank if count > 1 else 0)
    return Choice(device, "a GPU for each rank" if wanted == "auto" else "")


def settled(choice: Choice, wanted: str, identities: list[str | None], several_hosts: bool = False) -> Choice:
    """The same, once a host's ranks know the `identities` of their GPUs: two with one GPU are too few GPUs."""
    gpus = [identity for identity in identities if identity]
    if choice.shared or len(set(gpus)) == len(gpus):
        return choice
    return _too_few(wanted, len(gpus), len(set(gpus)), several_hosts)


def _too_few(wanted: str, ranks: int, gpus: int, several_hosts: bool) -> Choice:
    """On one machine auto then takes the CPUs; a job of several was meant for GPUs, and is refused."""
    found = f"{ranks} ranks on {socket.gethostname()} see {gpus} GPU{'s' * (gpus > 1)}"
    if wanted == "auto" and not several_hosts:
        return Choice(torch.device("cpu"), f"{found}; --device cuda:0 would let them share it")
    raise Unavailable(
        f"{found}: start one rank per GPU, and let the launcher make its own GPU, or all GPUs, visible to each; or "
        "give --device cuda:0, which they then share, with exchange through the host's memory"
    )


def finish(device: torch.device) -> None:
    """Wait until a GPU has done all that was begun there."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def identity(device: torch.device) -> str | None:
    """What a GPU is, whatever number it is shown under; None of devices that do not tell."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


def use(device: torch.device, deterministic: bool = False) -> None:
    """Make a GPU the current one of its kind, by which NCCL goes, too; and let float32 be float32 there.

    torch lets cuDNN convolve float32 in TF32, with 10 bits of mantissa, where a card can. `deterministic`: torch takes
    the kernels that sum in the same order each time, and warns of operations that have none.
    """
    torch.backends.cudnn.allow_tf32 = False  # that of matrix products is off by default
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS reads when it starts
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Nothing here reads what it has not written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyrefly: ignore [missing-attribute]
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    if not has_float64(device):  # a pass is partly made on the host: by one thread, so that all ranks sum in one order
        torch.autograd.set_multithreading_enabled(False)
    if device.type in GPUS:
        torch.get_device_module(device).set_device(device)


def allocated(device: torch.device) -> int | None:
    """Bytes that this process's tensors have of a GPU's memory; None of another device."""
    return torch.get_device_module(device).memory_allocated() if device.type in GPUS else None


def most_allocated(device: torch.device) -> int | None:
    """The most that they have had."""
    return torch.get_device_module(device).max_memory_allocated() if device.type in GPUS else None
