"""Files of weights: what is read is what was written, or a line says why not."""

import hashlib
import io
import random

import pytest
import torch
from launching import MORE
from torch import nn

from gigapipe.errors import InputError
from gigapipe.spatial import Mesh
from gigapipe.training.checkpoints import Checkpoints
from gigapipe.training.model_files import read_model, trained_model, write_model
from gigapipe.training.segmentation import SegmenterSettings
from gigapipe.training.weight_files import Unusable, load, load_foreign, save

SETTINGS = SegmenterSettings(mpp=1.0, fold=0, epochs=3, batch=1, learning_rate=1e-3, weight_decay=0.0, seed=0)


def content() -> dict:
    torch.manual_seed(0)
    return {"identity": "it", "model": nn.Linear(40, 3).state_dict(), "losses": [0.5, 0.25]}


def alike(found, expected) -> bool:
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(alike(found[key], expected[key]) for key in expected)
    return torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected


def test_of_flipped_bits_none_is_silent(tmp_path):
    path, chance = tmp_path / "state.pt", random.Random(0)
    save(path, content())
    whole, told = path.read_bytes(), 0
    for _ in range(300 * MORE):
        flipped = bytearray(whole)
        place = chance.randrange(len(whole) * 8)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            assert alike(load(path), content()), f"bit {place} changed what was read"
        except (Unusable, InputError):
            told += 1
    print(f"{told} of {300 * MORE} flips were told of; the others were where nothing is written")
    assert told > 100 * MORE


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[:-1], lambda b: b[: len(b) // 2], lambda b: b + b"\0" * 70000]
)
def test_a_file_that_was_cut_or_grown_is_damaged(tmp_path, damage):
    save(tmp_path / "state.pt", content())
    (tmp_path / "state.pt").write_bytes(damage((tmp_path / "state.pt").read_bytes()))
    with pytest.raises(Unusable, match="damaged"):
        load(tmp_path / "state.pt")


def test_a_damaged_state_is_passed_over_for_the_one_before_and_told_of(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, keep=9)
    for step in (1, 2):
        checkpoints.save(step, content())
    checkpoints.save(3, content() | {"model": {"weight": torch.tensor([1.0, torch.nan])}})
    checkpoints.save(4, {"model": {}})
    newest = tmp_path / "00000002.pt"
    newest.write_bytes(newest.read_bytes().replace(b"identity", b"identitz"))
    torch.save({"format": 99, **content()}, tmp_path / "00000005.pt")
    assert checkpoints.newest("it") == 1
    for step, reason in (
        (5, "another version of gigapipe wrote it"),
        (4, "it is not a training checkpoint"),
        (3, "its weights are not finite (weight)"),
        (2, "it is damaged: its checksums differ"),
    ):
        assert f"{step:08d}.pt: {reason}; skipped" in caplog.text
    assert len(list(tmp_path.iterdir())) == 5


def test_a_model_is_what_its_settings_say_or_one_line(tmp_path):
    weights = SETTINGS.model().state_dict()
    name = next(iter(weights))
    for told, change in (
        (
            f"its weights are not finite ({name})".replace("(", r"\(").replace(")", r"\)"),
            {name: weights[name] * torch.inf},
        ),
        (f"not those of the network that its settings name .{name} differs", {name: torch.zeros(1)}),
    ):
        write_model(tmp_path / "model.pt", weights | change, SETTINGS)
        with pytest.raises(InputError, match=f"model.pt: .*{told}"):
            trained_model(tmp_path / "model.pt", SegmenterSettings, Mesh())
    save(tmp_path / "model.pt", {"task": "tissue"})
    with pytest.raises(InputError, match=r"model.pt: it has no \w+; make it again"):
        read_model(tmp_path / "model.pt", SegmenterSettings)


def test_weights_of_others_are_verified_by_whatever_they_have(tmp_path, caplog):
    weights = nn.Linear(40, 3).state_dict()
    torch.save(weights, tmp_path / "zip.pth")
    assert alike(load_foreign(tmp_path / "zip.pth"), dict(weights)) and not caplog.text
    data = bytearray((tmp_path / "zip.pth").read_bytes())
    data[data.index(weights["weight"].numpy().tobytes()) + 5] ^= 4
    (tmp_path / "zip.pth").write_bytes(data)
    with pytest.raises(InputError, match="zip.pth: it is damaged: its checksums differ; download them again"):
        load_foreign(tmp_path / "zip.pth")

    old = io.BytesIO()
    torch.save(weights, old, _use_new_zipfile_serialization=False)
    digest = hashlib.sha256(old.getvalue()).hexdigest()
    for name in (f"old-{digest[:8]}.pth", "old.pth"):
        (tmp_path / name).write_bytes(old.getvalue())
        assert alike(load_foreign(tmp_path / name), dict(weights))
    assert "old.pth: there is no checksum to verify them" in caplog.text and digest[:8] not in caplog.text
    (tmp_path / "old.pth.sha256").write_text(f"{'0' * 64}  old.pth\n")
    (tmp_path / f"old-{digest[:8]}.pth").write_bytes(old.getvalue()[:-1] + b"x")
    for name in (f"old-{digest[:8]}.pth", "old.pth"):
        with pytest.raises(InputError, match="SHA-256 does not begin with"):
            load_foreign(tmp_path / name)
