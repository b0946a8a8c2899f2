"""One rank, one GPU; where a machine has none, the CPU."""

import socket

import torch

from gigapipe.errors import InputError


def device_of(local_rank: int, on_this_host: int) -> torch.device:
    """Where the `local_rank`-th of a host's ranks computes; if it is a GPU, it becomes torch's current one.

    A launcher that binds shows each rank its own GPU alone; else a host's ranks take its GPUs in turn. Raises
    InputError if there are fewer GPUs than ranks.
    """
    gpus = torch.cuda.device_count()
    if not gpus:
        return torch.device("cpu")
    if 1 < gpus < on_this_host:
        raise InputError(
            f"{on_this_host} ranks on {socket.gethostname()}, which shows them {gpus} GPUs: one rank a GPU"
        )
    device = torch.device("cuda", local_rank if gpus > 1 else 0)
    torch.cuda.set_device(device)
    return device


def identity(device: torch.device) -> str | None:
    """What a GPU is, whatever number it is shown under; None of the CPU, which ranks share."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


def refuse_shared(identities: list[str | None]) -> None:
    """Raise InputError if two of a host's ranks have the same GPU."""
    gpus = [identity for identity in identities if identity]
    if len(set(gpus)) < len(gpus):
        raise InputError(
            f"{len(gpus)} ranks on {socket.gethostname()} share {len(set(gpus))} GPUs; start one rank a GPU, and let "
            "the launcher show each its own, or all of them"
        )
