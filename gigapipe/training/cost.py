"""What a training step costs beside time and memory: bytes between ranks, and energy where the machine tells."""

import math
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from gigapipe.spatial import Mesh
from gigapipe.training.card_energy import card_counter
from gigapipe.training.devices import identity

POWERCAP = Path("/sys/class/powercap")
"""Where Linux says what the processors of a host have used (RAPL, Intel's and AMD's)."""


class Counter(NamedTuple):
    """Of energy."""

    read: Callable[[], float]
    """Joules since some moment; NaN if it does not tell."""
    again: Callable[[], float] = lambda: 0.0
    """Joules at which it begins again."""


class Meter:
    """Counts what is spent between `start` and `spent`. All ranks of the mesh make it and ask it together.

    `counted` says whose energy: that of the processors of all hosts, of the cards that ranks use, of both, by whatever
    ran on them; or nobody's, an empty text. Those of a kind are counted if all tell, each once. A processor's counter
    begins again after some 20 minutes at full power: what takes longer is counted too low.
    """

    def __init__(self, mesh: Mesh, powercap: Path = POWERCAP):
        self.mesh = mesh
        self.transports = {id(carrier): carrier for carrier in (mesh.everyone, mesh.image)}.values()
        host, name, of_card = socket.gethostname(), identity(mesh.device), card_counter(mesh.device)
        processors = _processors(powercap)
        told = torch.zeros(4, mesh.size, dtype=torch.int64)
        names = _number(host), _number(f"{host} {name}") if name else 0
        told[:, mesh.rank] = torch.tensor([*names, bool(processors), bool(of_card)])
        hosts, cards, hosts_tell, cards_tell = mesh.everyone.sum_(told).tolist()
        counted = []
        self.counters: list[Counter] = []
        if all(hosts_tell):
            counted.append("processors")
            # One rank of each host reads what all of them use.
            self.counters += processors if hosts.index(hosts[mesh.rank]) == mesh.rank else []
        if any(cards) and all(tells for card, tells in zip(cards, cards_tell, strict=True) if card):
            counted.append("cards")
            if of_card and cards.index(cards[mesh.rank]) == mesh.rank:  # ranks may share one
                self.counters.append(Counter(of_card))
        self.counted = " and ".join(counted)
        self.start()

    def start(self) -> None:
        self.sent, self.energy = self._sent(), [counter.read() for counter in self.counters]

    def spent(self) -> tuple[float, float]:
        """Bytes that this rank has sent, and joules of what it reads for all, whatever ran.

        What all have spent are the sums over ranks; joules are NaN if nothing is `counted`, or a host does not tell.
        """
        joules = 0.0 if self.counted else math.nan
        for counter, before in zip(self.counters, self.energy, strict=True):
            now = counter.read()
            joules += now - before + (counter.again() if now < before else 0.0)
        return self._sent() - self.sent, joules

    def _sent(self) -> int:
        return sum(carrier.sent_bytes for carrier in self.transports)


def _number(name: str) -> int:
    return zlib.crc32(name.encode())


def _processors(powercap: Path) -> list[Counter]:
    """Of a host's processors; none if not all of them tell."""
    zones = [zone for zone in powercap.glob("*-rapl:*") if _is_processor(zone)]
    counters = [
        Counter(lambda zone=zone: _read(zone, "energy_uj"), lambda zone=zone: _read(zone, "max_energy_range_uj"))
        for zone in zones
    ]
    return [] if any(math.isnan(counter.read()) for counter in counters) else counters


def _is_processor(zone: Path) -> bool:
    """Not a part of one, such as its cores, nor the whole platform."""
    try:
        return (zone / "name").read_text().startswith("package")
    except OSError:
        return False


def _read(processor: Path, name: str) -> float:
    """Joules."""
    try:
        return float((processor / name).read_text()) / 1e6
    except (OSError, ValueError):  # on many machines only root may read it
        return math.nan
