"""What a step costs beside time: bytes exchanged, and energy from the kernel's counters, laid out as Linux does."""

import math
from pathlib import Path

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
