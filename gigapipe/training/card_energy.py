"""The energy that a GPU has used, where its vendor's library is installed and tells: NVIDIA's NVML, or AMD's SMI."""

import importlib
import math
import warnings
from collections.abc import Callable

import torch


def card_counter(device: torch.device) -> Callable[[], float] | None:
    """What reads the joules of a GPU since some moment, NaN once it no longer tells; None where nothing tells.

    Cards before Volta do not.
    """
    if device.type != "cuda":
        return None
    try:
        read = (_of_amd if torch.version.hip else _of_nvidia)(device)
        read()
    except Exception:  # each library has its own; what cannot be read is not counted, and that is said
        return None

    def joules() -> float:
        try:
            return read()
        except Exception:  # no reason to end a training
            return math.nan

    return joules


def _of_nvidia(device: torch.device) -> Callable[[], float]:
    """Found by its UUID: numbers of NVML are not those of CUDA. A part of a card (MIG) has none of its own."""
    pynvml = importlib.import_module("pynvml")

    pynvml.nvmlInit()
    card = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1e3  # millijoules


def _of_amd(device: torch.device) -> Callable[[], float]:
    amdsmi = importlib.import_module("amdsmi")

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # before ROCm 6.4 torch may find another card, and warns
        card = torch.cuda._get_amdsmi_handler(device)

    def read() -> float:
        count = amdsmi.amdsmi_get_energy_count(card)
        counted = count["energy_accumulator"] if "energy_accumulator" in count else count["power"]  # before 6.2.1
        return counted * count["counter_resolution"] / 1e6  # of microjoules

    return read
