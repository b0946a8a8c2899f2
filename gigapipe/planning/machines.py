"""What machines can do: vendors' published peaks, and what share of them is assumed to be reached."""

import json
from pathlib import Path
from typing import NamedTuple

from gigapipe.errors import InputError


class Machine(NamedTuple):
    """One rank's hardware, while the other ranks of its node do nothing, and what links it to others.

    Seconds, bytes, and numbers a second. Links count one direction. `near` is that between two ranks of a node; `far`
    what all ranks of a node have together to other nodes, None where there is one node. `*_share` is what of a peak is
    reached.
    """

    name: str
    memory: float
    ranks_per_node: int
    flops: dict[str, float]
    """Multiplications and additions a second at the peak, by precision; a precision that lacks is not known."""
    bandwidth: float
    """Of the rank's memory."""
    near: float | None
    far: float | None
    flops_share: float = 0.4
    bandwidth_share: float = 0.7
    link_share: float = 0.7
    near_latency: float = 10e-6
    far_latency: float = 20e-6
    operation: float = 10e-6
    """To start one operation."""
    slower: dict[str, float] = {}
    """By what share of its time alone each further rank that works on the node slows a rank down: its arithmetic, by
    precision, its memory as `bandwidth`, and the start of an `operation`; none, where nobody knows."""
    reserve: float = 0.1
    """Share of the memory that tensors do not get: the process, kernels' own memory, what lies between tensors."""
    measured: bool = False
    device: str = "cpu"
    """Its kind, where it was measured. The others are GPUs."""

    @property
    def has_gpus(self) -> bool:
        return not self.measured or self.device != "cpu"

    def at_work(self, ranks: int) -> "Machine":
        """As fast as each of so many ranks is when all of them work, as many on a node as it has."""
        more = min(ranks, self.ranks_per_node) - 1

        def factor(name: str) -> float:
            return 1 + more * self.slower.get(name, 0.0)

        return self._replace(
            flops={precision: flops / factor(precision) for precision, flops in self.flops.items()},
            bandwidth=self.bandwidth / factor("bandwidth"),
            operation=self.operation * factor("operation"),
        )

    @property
    def usable_memory(self) -> float:
        """Bytes for tensors."""
        return self.memory * (1 - self.reserve)

    def assumptions(self) -> list[str]:
        """A sentence each."""
        known = "fitted to short runs on this machine" if self.measured else "assumed, not measured"
        latencies = f"{self.near_latency * 1e6:.3g} µs a message within a node"
        if self.far:
            latencies += f" and {self.far_latency * 1e6:.3g} µs between nodes"
        peaks = ", ".join(f"{flops / 1e12:.4g} Tflop/s in {precision}" for precision, flops in self.flops.items())
        links = [f"{self.near / 1e9:.4g} GB/s to a rank of the node"] if self.near else []
        links += (
            [f"{self.far / 1e9:.4g} GB/s from a node, shared by its {self.ranks_per_node} ranks"] if self.far else []
        )
        source = "measured" if self.measured else "vendors' published peaks, or as given"
        return [
            f"{self.name}, {source}: "
            + ", ".join(
                [f"{self.memory / 1e9:.4g} GB a rank", peaks, f"memory at {self.bandwidth / 1e9:.4g} GB/s", *links]
            ),
            f"{known}: {self.flops_share:.0%} of the peak in arithmetic, {self.bandwidth_share:.0%} of the memory's "
            f"bandwidth, {self.link_share:.0%} of the links', {latencies}, {self.operation * 1e6:.3g} µs to start an "
            "operation",
            "each further rank that works on a node slows the others down: " + self._sharing(),
            f"{self.reserve:.0%} of the memory is reserved (the process, memory of kernels, gaps between tensors): "
            + ("the process as measured, the others unknown" if self.measured else "assumed"),
        ]

    def _sharing(self) -> str:
        if not self.slower:
            return "by nothing (assumed)"
        named = {"bandwidth": "the memory", "operation": "the start of an operation"}
        by = (f"{named.get(name, f'arithmetic in {name}')} by {share:.0%}" for name, share in self.slower.items())
        return ", ".join(by) + " of its time alone (measured)"


MACHINES = {
    # Tesla V100 SXM2 datasheet (NVIDIA, 2018): 15.7 Tflop/s, 125 in float16, 900 GB/s, 16 GB; it has no bfloat16.
    # Summit User Guide (OLCF): 6 a node, NVLink 2 with 50 GB/s each way between the GPUs of a socket, two EDR
    # InfiniBand ports of 12.5 GB/s a node.
    "summit": Machine("Summit, V100 16 GB", 16e9, 6, {"float32": 15.7e12, "float16": 125e12}, 900e9, 50e9, 25e9),
    # MI250X datasheet (AMD, 2021), a half (one GCD) of 95.7 (matrix) and 383 Tflop/s, 3.2 TB/s and 128 GB. Frontier
    # User Guide (OLCF): 8 GCDs a node, 50 GB/s at the least between GCDs, four Slingshot ports of 25 GB/s.
    "frontier": Machine(
        "Frontier, one GCD of an MI250X", 64e9, 8, {"float32": 47.85e12, "bfloat16": 191.5e12}, 1.6e12, 50e9, 100e9
    ),
    # A100 datasheet (NVIDIA, 2021): 19.5 Tflop/s without TF32, 312 in bfloat16, 1,555 GB/s. Perlmutter's architecture
    # (NERSC): 4 a node, NVLink 3 with four links of 25 GB/s between each two, four Slingshot 11 ports of 25 GB/s.
    "perlmutter": Machine(
        "Perlmutter, A100 40 GB", 40e9, 4, {"float32": 19.5e12, "bfloat16": 312e12}, 1.555e12, 100e9, 100e9
    ),
    # H100 SXM and DGX H100 datasheets (NVIDIA, 2023): 67 Tflop/s, 989 in bfloat16 without sparsity, 3.35 TB/s; NVLink 4
    # with 450 GB/s each way, eight ports of 400 Gb/s a node.
    "h100": Machine("H100 80 GB, 8 a node", 80e9, 8, {"float32": 67e12, "bfloat16": 989e12}, 3.35e12, 450e9, 400e9),
    # GeForce RTX 4090, Ada architecture whitepaper (NVIDIA, 2022): 82.6 Tflop/s, 165.2 in bfloat16 without sparsity,
    # 1,008 GB/s, 24 GB. One in a machine.
    "workstation": Machine(
        "workstation, RTX 4090 24 GB", 24e9, 1, {"float32": 82.6e12, "bfloat16": 165.2e12}, 1.008e12, None, None
    ),
    # M1 Ultra (Apple, 8 March 2022): 800 GB/s, up to 128 GB; two M1 Max of 10.4 Tflop/s (Apple, 18 October 2021). Its
    # speed in bfloat16 is not published.
    "apple": Machine("Apple M1 Ultra, 128 GB unified memory", 128e9, 1, {"float32": 20.8e12}, 800e9, None, None),
}


def machine(name: str) -> Machine:
    """One of `MACHINES`, or what `gigapipe plan --measure` wrote to the file of that name."""
    if name in MACHINES:
        return MACHINES[name]
    try:
        return Machine(**json.loads(Path(name).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"machine {name}: is neither one of {', '.join(MACHINES)} nor a file that `gigapipe plan --measure` wrote "
            f"({error})"
        ) from None
