"""What a step costs beside time: bytes exchanged, and energy from the kernel's counters, laid out as Linux does."""

import math
import sys
import types
from pathlib import Path

import pytest
import torch

from gigapipe.spatial import Mesh
from gigapipe.training.cost import Meter
from gigapipe.training.record import Recorder
from gigapipe.training.state import State


def write_counter(folder: Path, name: str, energy: int, what: str = "package-0") -> None:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "name").write_text(f"{what}\n")
    (folder / name / "energy_uj").write_text(f"{energy}\n")
    (folder / name / "max_energy_range_uj").write_text("1000000000\n")


def test_energy_is_that_of_all_processors(tmp_path):
    write_counter(tmp_path, "intel-rapl:0", 999_000_000)
    write_counter(tmp_path, "intel-rapl:1", 999_000_000, "package-1")
    write_counter(tmp_path, "intel-rapl:0:0", 999_000_000, "core")  # part of the first
    write_counter(tmp_path, "intel-rapl:2", 999_000_000, "psys")  # all of the machine
    meter = Meter(Mesh(), tmp_path)
    assert meter.spent() == (0, 0)
    write_counter(tmp_path, "intel-rapl:0", 4_000_000)  # it began again
    write_counter(tmp_path, "intel-rapl:1", 999_500_000, "package-1")
    write_counter(tmp_path, "intel-rapl:0:0", 999_900_000, "core")
    write_counter(tmp_path, "intel-rapl:2", 999_900_000, "psys")
    assert meter.spent() == (0, 5.5)
    meter.start()
    assert meter.spent() == (0, 0)


def test_energy_is_unknown_where_a_counter_does_not_tell(tmp_path):
    assert math.isnan(Meter(Mesh(), tmp_path / "none").spent()[1])
    write_counter(tmp_path, "intel-rapl:0", 1)
    write_counter(tmp_path, "intel-rapl:1", 1)
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()  # as where only root may read it
    assert math.isnan(Meter(Mesh(), tmp_path).spent()[1])


class Sharing:
    """The transport of two ranks of one host, who tell the same; this is one of them."""

    size, sent_bytes = 2, 0

    def __init__(self, rank: int):
        self.rank = rank

    def sum_(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(1, keepdim=True).expand_as(x) if x.dim() == 2 else x


CARDS = {"GPU-one": 5.0, "hip": 7.0}
NVML = types.SimpleNamespace(
    nvmlInit=lambda: None,
    nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
    nvmlDeviceGetTotalEnergyConsumption=lambda card: 1e3 * CARDS[card],
)
AMD = types.SimpleNamespace(
    amdsmi_get_energy_count=lambda card: {"energy_accumulator": CARDS[card] * 1e6 / 16, "counter_resolution": 16}
)


def on_card(mesh: Mesh) -> Mesh:
    mesh.device = torch.device("cuda", 0)
    return mesh


@pytest.mark.parametrize("vendor, card", [(NVML, "GPU-one"), (AMD, "hip")])
def test_energy_of_cards_is_counted_once_each(tmp_path, monkeypatch, vendor, card):
    """By what stands in for the vendors' libraries: there is no card here."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="one"))
    assert on_card(Mesh()) and Meter(on_card(Mesh()), tmp_path).counted == ""
    monkeypatch.setitem(sys.modules, "pynvml" if vendor is NVML else "amdsmi", vendor)
    monkeypatch.setattr(torch.version, "hip", None if vendor is NVML else "7.1")
    monkeypatch.setattr(torch.cuda, "_get_amdsmi_handler", lambda device: "hip")
    alone = Meter(on_card(Mesh()), tmp_path)
    write_counter(tmp_path, "intel-rapl:0", 1_000_000)
    both = Meter(on_card(Mesh()), tmp_path)
    sharing = [Meter(on_card(Mesh(1, 2, 1, Sharing(rank))), tmp_path) for rank in (0, 1)]
    monkeypatch.setitem(CARDS, card, CARDS[card] + 2.5)
    write_counter(tmp_path, "intel-rapl:0", 2_000_000)
    assert alone.counted == "cards" and alone.spent() == (0, 2.5)
    assert both.counted == "processors and cards" and both.spent() == (0, 3.5)
    assert [meter.counted for meter in sharing] == ["processors and cards"] * 2
    assert [meter.spent()[1] for meter in sharing] == [3.5, 0]


def test_bytes_are_those_between_start_and_spent():
    class Carrier:
        """Two ranks' transport of which this is one, and the other sends as much."""

        rank, size, sent_bytes = 0, 2, 100

        def sum_(self, x: torch.Tensor) -> torch.Tensor:
            return x.mul_(2) if x.is_floating_point() else x

    mesh, state = Mesh(1, 2, 1, Carrier()), State([1, 2, 1], None)
    recorder = Recorder(mesh, state)
    with recorder.step():
        mesh.everyone.sent_bytes += 30
    assert recorder.told(0.25, True).tolist() == [0.5, 2] and state.spent[0][0] == 60
