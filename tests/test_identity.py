"""Files know what they belong to: strangers are refused by name, and what is left of other runs is found."""

import json
import logging
from pathlib import Path

import pandas as pd
import pytest
import yaml
from made_networks import MD5, network, read

from gigapipe.cli import main
from gigapipe.errors import InputError
from gigapipe.evaluation.comparison import compare
from gigapipe.evaluation.report import report


@pytest.fixture
def run(tmp_path) -> list[Path]:
    return [network(tmp_path, mpp, fold) for mpp in (8, 2) for fold in range(3)]


def test_networks_that_belong_together_are_compared(run, caplog):
    table = compare(*read(run), margin=0.02)
    assert list(table["networks"]) == [" ".join(f"{mpp}-{fold}-0-10-6" for fold in range(3)) for mpp in (8, 2)]
    assert caplog.messages == []


@pytest.mark.parametrize(
    "change, message",
    [
        ({"epochs": 20}, r"2um/fold-1/training.json: its epochs is 20, but 6 for others of its resolution"),
        ({"moved": 1}, r"2um/fold-1/predictions.tsv: have other test slides than others of fold 1 \(s0\d is one\)"),
        (
            {"md5": MD5 | {"s01": "other"}},
            r"2um/fold-1/\S+: slide s01 is another file \(MD5 other\) than for others",
        ),
    ],
)
def test_a_stranger_is_refused_by_name(run, tmp_path, change, message):
    network(tmp_path, 2, 1, **change)
    with pytest.raises(InputError, match=message):
        read(run)


def test_predictions_of_an_earlier_training_are_refused(run):
    table = pd.read_csv(run[0] / "predictions.tsv", sep="\t")
    table.assign(identity="earlier").to_csv(run[0] / "predictions.tsv", sep="\t", index=False)
    with pytest.raises(InputError, match=r"8um/fold-0/predictions.tsv: are not from the network of .*training.json"):
        read(run)
    learnt = json.loads((run[0] / "training.json").read_text())["identity"]["training"]
    table.assign(slide=table["slide"].where(table.index > 0, min(learnt))).to_csv(
        run[0] / "predictions.tsv", sep="\t", index=False
    )
    with pytest.raises(InputError, match=rf"predictions.tsv: slide {min(learnt)} was trained on"):
        read(run)


def test_what_0_1_made_is_used_with_a_word(tmp_path, caplog):
    run = [network(tmp_path, mpp, fold, identity=mpp == 2) for mpp in (8, 2) for fold in range(3)]
    with caplog.at_level(logging.WARNING, logger="gigapipe"):
        table = compare(*read(run), margin=0.02)
    assert caplog.messages == ["networks: 3 of 6 do not record their slides and folds, because release 0.1 wrote them"]
    assert table["networks"].iloc[0] == "unknown" and table["auc"].notna().all()


def test_the_report_leaves_strangers_out_and_refuses_another_table(run, tmp_path, caplog):
    compare(*read(run), margin=0.02).to_csv(tmp_path / "comparison.tsv", sep="\t", index=False)
    network(tmp_path, 2, 3)  # of a run with more folds
    maps = tmp_path / "2um/maps"
    maps.mkdir()
    rows = [{"slide": "s01", "label": "a", "mpp": 2.0, "chosen": "highest", "identity": "another"}]
    pd.DataFrame(rows).to_csv(maps / "maps.tsv", sep="\t", index=False)
    with caplog.at_level(logging.WARNING, logger="gigapipe"):
        page = report(tmp_path, None, tmp_path / "none")
    assert any(
        "2um/fold-3/predictions.tsv: belongs to a network that is not in comparison.tsv" in m for m in caplog.messages
    )
    assert any("maps.tsv: belongs to networks that are not" in m for m in caplog.messages) and "Maps" not in page
    network(tmp_path, 2, 1, epochs=20)  # trained again since
    with pytest.raises(InputError, match="there are no predictions beside it for 1 of its 6 networks; make it again"):
        report(tmp_path, None, tmp_path / "none")


def test_a_mesh_that_changed_between_trainings_makes_no_second_row(run):
    path = run[1] / "training.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"mesh": [1, 2, 1], "memory": 10**9}))
    _, costs = read(run)
    of_row = costs[costs["mpp"] == costs["mpp"].iloc[1]]
    assert set(of_row["mesh"]) == {"1 × 1 × 1 / 1 × 2 × 1"} and set(of_row["ranks"]) == {2}


def test_leftovers_are_listed_and_removed_only_if_told(run, tmp_path, capsys):
    network(tmp_path, 2, 3)
    network(tmp_path, 16, 0)
    (tmp_path / "2um/patient-7/fold-0/checkpoints").mkdir(parents=True)
    (tmp_path / "2um/patient-7/fold-0/checkpoints/1.pt").touch()
    (tmp_path / "folds/patient-7").mkdir(parents=True)
    (tmp_path / "masks/16um/s01").mkdir(parents=True)
    (tmp_path / "32um").mkdir()
    (tmp_path / "32um/mine.txt").touch()  # nothing of a network's
    resolutions = [{"mpp": 8}, {"mpp": 2}]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"resolutions": resolutions, "folds": {"number": 3}}))
    before = set(tmp_path.glob("**/*"))
    assert main(["leftovers", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    gone = [tmp_path / name for name in ("16um", "2um/fold-3", "2um/patient-7", "folds/patient-7", "masks/16um")]
    assert [line.partition(":")[0] for line in said.splitlines()[:-1]] == list(map(str, gone))
    assert "16um: 2 files, 0.0 MB" in said and said.splitlines()[-1].startswith("nothing was removed; add --remove")
    assert set(tmp_path.glob("**/*")) == before
    assert main(["leftovers", str(tmp_path), "--remove"]) == 0
    assert not any(folder.exists() for folder in gone) and all(folder.exists() for folder in run)
    assert (tmp_path / "32um/mine.txt").exists()
    capsys.readouterr()
    assert main(["leftovers", str(tmp_path)]) == 0 and "all files belong" in capsys.readouterr().out
