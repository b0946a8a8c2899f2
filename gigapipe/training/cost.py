"""What a training step costs beside time and memory: bytes between ranks, and energy where the machine tells."""

import math
import socket
import zlib
from pathlib import Path

import torch

from gigapipe.spatial import Mesh

POWERCAP = Path("/sys/class/powercap")
"""Where Linux says what the processors of a host have used (RAPL, Intel's and AMD's)."""


class Meter:
    """Counts what is spent between `start` and `spent`. All ranks of the mesh make it and ask it together.

    A processor's counter begins again after some 20 minutes at full power: what takes longer is counted too low.
    """

    def __init__(self, mesh: Mesh, powercap: Path = POWERCAP):
        self.mesh = mesh
        self.transports = {id(carrier): carrier for carrier in (mesh.everyone, mesh.image)}.values()
        named = torch.zeros(mesh.size, dtype=torch.int64)
        named[mesh.rank] = zlib.crc32(socket.gethostname().encode())
        hosts = mesh.everyone.sum_(named).tolist()
        # One rank of each host reads what all of them use.
        self.reads = hosts.index(hosts[mesh.rank]) == mesh.rank
        self.processors = [zone for zone in powercap.glob("*-rapl:*") if _is_processor(zone)] if self.reads else []
        self.start()

    def start(self) -> None:
        self.sent, self.energy = self._sent(), self._energy()

    def spent(self) -> tuple[float, float]:
        """Bytes that this rank has sent, and joules that the processors it reads have used, by whatever ran.

        What all have spent are the sums over ranks; joules are NaN if a host does not tell.
        """
        joules = math.nan if self.reads and not self.processors else 0.0
        for processor, before, now in zip(self.processors, self.energy, self._energy(), strict=True):
            again = _read(processor, "max_energy_range_uj") if now < before else 0.0
            joules += (now - before + again) / 1e6
        return self._sent() - self.sent, joules

    def _sent(self) -> int:
        return sum(carrier.sent_bytes for carrier in self.transports)

    def _energy(self) -> list[float]:
        return [_read(processor, "energy_uj") for processor in self.processors]


def _is_processor(zone: Path) -> bool:
    """Not a part of one, such as its cores, nor the whole platform."""
    try:
        return (zone / "name").read_text().startswith("package")
    except OSError:
        return False


def _read(processor: Path, name: str) -> float:
    try:
        return float((processor / name).read_text())
    except (OSError, ValueError):  # on many machines only root may read it
        return math.nan
