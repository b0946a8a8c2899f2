"""The training verbs, on real ranks: what decomposition, a kill and a missing rank do to them."""

import json
import math
import os
import re
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from cohorts import same, training, weights
from launching import gigapipe, kill, ranks_of, with_a_state

from gigapipe.errors import InputError
from gigapipe.evaluation.comparison import compare
from gigapipe.evaluation.folds import read_folds, roles
from gigapipe.evaluation.networks import read_networks
from gigapipe.spatial import Mesh
from gigapipe.training import loss_scale
from gigapipe.training.classification import Classification, ClassifierSettings, balance
from gigapipe.training.loop import train
from gigapipe.training.optimizer import AdamW


def test_training_and_prediction_agree_on_any_mesh(small_cohort, tmp_path):
    losses, scores = {}, {}
    for mesh in ((1, 1, 1), (2, 1, 2)):
        folder = tmp_path / "-".join(map(str, mesh))
        ranks = mesh[0] * mesh[1] * mesh[2]
        done = gigapipe(*training(small_cohort, folder / "model.pt", mesh, epochs=1), ranks=ranks)
        assert "epoch 1/1" in done.stdout  # progress is shown, in a log too
        record = json.loads((folder / "training.json").read_text())
        assert record["mesh"] == list(mesh) and record["seconds_per_step"] > 0
        assert 100 < record["peak_memory_per_rank_mb"] < 10_000
        assert record["images_per_second"] == pytest.approx(2 / record["seconds_per_step"])
        # Data ranks share gradients, 4 bytes a weight; ranks of one image halos, too.
        assert (record["sent_bytes_per_step"] > 4 * record["parameters"]) == (ranks > 1), record["sent_bytes_per_step"]
        losses[mesh] = record["history"][0]["validation_loss"]
        training_loss = record["history"][0]["training_loss"]
        common = ["--folds", small_cohort / "folds.tsv", "--pyramids", small_cohort / "pyramids", "--mesh", *mesh]
        model = tmp_path / "1-1-1" / "model.pt"
        gigapipe("predict", *common, "--model", model, "--output", folder / "predictions.tsv", ranks=ranks)
        predictions = pd.read_csv(folder / "predictions.tsv", sep="\t")
        assert (predictions["fold"] == 0).all() and (predictions["split"] == "patient").all()
        parts = roles(read_folds(small_cohort / "folds.tsv"), 0)
        for part in ("test", "validation"):
            assert list(predictions.loc[predictions["part"] == part, "slide"]) == list(parts[part]["slide"])
        scores[mesh] = predictions["score"].to_numpy()
    print(losses)
    for mesh in losses:
        # float32, and a network that amplifies its rounding over the steps of an epoch
        assert losses[mesh] == pytest.approx(losses[1, 1, 1], rel=1e-2), losses
        assert scores[mesh] == pytest.approx(scores[1, 1, 1], abs=1e-4)

    gigapipe(*training(small_cohort, tmp_path / "bf16" / "model.pt", epochs=1, precision="bfloat16"))
    record = json.loads((tmp_path / "bf16" / "training.json").read_text())
    assert record["settings"]["precision"] == "bfloat16"
    assert record["history"][0]["training_loss"] == pytest.approx(training_loss, rel=0.05)


def test_three_classes_are_learnt_and_compared(small_cohort, tmp_path):
    table = read_folds(small_cohort / "folds.tsv")
    patients = table.drop_duplicates("patient").set_index("patient")
    names = (patients.groupby("fold").cumcount() % 3).map(dict(enumerate("abc")))  # each in every fold
    table.assign(label=table["patient"].map(names)).to_csv(tmp_path / "folds.tsv", sep="\t", index=False)
    (tmp_path / "pyramids").symlink_to(small_cohort / "pyramids")
    gigapipe(*training(tmp_path, tmp_path / "model.pt", epochs=1))
    common = ["--folds", tmp_path / "folds.tsv", "--pyramids", tmp_path / "pyramids", "--model", tmp_path / "model.pt"]
    gigapipe("predict", *common, "--output", tmp_path / "predictions.tsv")
    predictions = pd.read_csv(tmp_path / "predictions.tsv", sep="\t")
    assert predictions[["score_a", "score_b", "score_c"]].sum(axis=1).to_numpy() == pytest.approx(1.0)
    row = compare(*read_networks([tmp_path / "predictions.tsv"], [tmp_path / "training.json"]), 0.02).iloc[0]
    assert 0 <= row["auc"] <= 1 and 0 <= row["balanced_accuracy"] <= 1 and row["brier"] < 2
    assert row["method"] == "whole" and row["sent_bytes_per_step"] == 0


def test_a_killed_training_goes_on_to_the_same_weights(small_cohort, tmp_path):
    gigapipe(*training(small_cohort, tmp_path / "a/model.pt", (1, 2, 1), epochs=4), ranks=2)
    arguments = training(small_cohort, tmp_path / "b/model.pt", (1, 2, 1), epochs=4)
    kill(with_a_state(arguments, tmp_path))
    assert not (tmp_path / "b/model.pt").exists()
    again = gigapipe(*arguments, ranks=2)
    assert "resumed after epoch" in again.stdout
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["model.pt", "training.json"]

    whole, resumed = weights(tmp_path / "a/model.pt"), weights(tmp_path / "b/model.pt")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_training_streams_what_does_not_fit_and_learns_the_same(small_cohort, tmp_path):
    table = read_folds(small_cohort / "folds.tsv")
    parts = roles(table, 0)
    few = [parts["training"].groupby("label").head(1), parts["validation"].head(1), parts["test"].head(1)]
    table[table["slide"].isin(pd.concat(few)["slide"])].to_csv(tmp_path / "folds.tsv", sep="\t", index=False)
    (tmp_path / "pyramids").symlink_to(small_cohort / "pyramids")

    def run(folder: str, *more, check=True) -> str:
        more = ("--norm", "none", "--background", "white", *more)
        network = ("--network", "resnet10")
        output = tmp_path / folder / "model.pt"
        arguments = training(tmp_path, output, (1, 2, 1), 1, canvas=1400, network=network, more=more)
        return gigapipe(*arguments, ranks=2, check=check).stdout

    run("whole")
    refused = run("refused", "--memory", "1MB", check=False)
    least = re.search(
        r"memory: 0.001 GB do not hold a step of 2 × 3 × 1400 × 1400: at least (.*) GB are needed", refused
    )
    assert least and "Traceback" not in refused, refused
    taken = json.loads((tmp_path / "whole/training.json").read_text())["peak_memory_per_rank_mb"]
    log = run("streamed", "--memory", f"{0.82 * taken:.0f}MB")  # nearer to what a process has anyway, plans are overrun
    assert "tiles of" in log and "expected: at most" in log and "px of its output" in log
    whole, streamed = (json.loads((tmp_path / name / "training.json").read_text()) for name in ("whole", "streamed"))
    print(whole["peak_memory_per_rank_mb"], streamed["peak_memory_per_rank_mb"], least[1])
    assert streamed["peak_memory_per_rank_mb"] < 0.9 * whole["peak_memory_per_rank_mb"]
    for figure in ("training_loss", "validation_loss"):
        # A thousandth of the canvas is tissue, and moves the loss by so much from that of an even guess.
        moved, expected = (run["history"][0][figure] - math.log(2) for run in (streamed, whole))
        print(figure, moved, expected)
        assert abs(expected) > 1e-5 and moved == pytest.approx(expected, rel=1e-3)


class Interrupted(Classification):
    """Ends after some batches, as a kill would."""

    stop_at = 1_000

    def backward(self, indices, epoch, scale=1.0):
        if self.stop_at == 0:
            raise KeyboardInterrupt
        self.stop_at -= 1
        return super().backward(indices, epoch, scale)


def in_process(cohort: Path, stop_at: int = 1_000, **more) -> Interrupted:
    """A training of a small network, in this process, with every augmentation."""
    table = read_folds(cohort / "folds.tsv")
    settings = ClassifierSettings.of(
        {
            "mpp": 8.0, "fold": 0, "epochs": 1, "batch": 2, "learning_rate": 1e-4, "weight_decay": 0.0, "seed": 0,
            "canvas": 52, "classes": sorted(table["label"].unique()), "network": "resnet10", "width": 8,
            "shift": 0.1, "stain": 0.2, "brightness": 0.1, "contrast": 0.1,
        } | more
    )  # fmt: skip
    parts = roles(table, 0)
    training, validation = (
        settings.canvases(parts[role], cohort / "pyramids", Mesh()) for role in ("training", "validation")
    )
    found = Interrupted(settings, training, validation, Mesh(), None)
    found.stop_at = stop_at
    return found


def record(folder: Path) -> dict:
    return json.loads((folder / "training.json").read_text())


def test_a_long_epoch_is_gone_on_with_in_its_middle(small_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("gigapipe.training.loop.CHECKPOINT_EVERY", 0.0)
    train(in_process(small_cohort), tmp_path / "a/model.pt")
    with pytest.raises(KeyboardInterrupt):
        train(in_process(small_cohort, stop_at=1), tmp_path / "b/model.pt")
    assert [path.name for path in (tmp_path / "b/checkpoints").iterdir()] == ["00000001.pt"]
    resumed = in_process(small_cohort)
    train(resumed, tmp_path / "b/model.pt")
    assert 1_000 - resumed.stop_at == resumed.slides // 2 - 1
    whole, resumed = weights(tmp_path / "a/model.pt"), weights(tmp_path / "b/model.pt")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_average_of_the_weights_is_what_is_saved_and_is_gone_on_with(small_cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("gigapipe.training.loop.CHECKPOINT_EVERY", 0.0)
    more = {"weight_average": 0.9, "first_layer_rate": 0.1, "learning_rate": 0.01}
    train(in_process(small_cohort, **more), tmp_path / "a/model.pt")
    with pytest.raises(KeyboardInterrupt):
        train(in_process(small_cohort, stop_at=1, **more), tmp_path / "b/model.pt")
    train(in_process(small_cohort, **more), tmp_path / "b/model.pt")
    train(in_process(small_cohort, **more | {"weight_average": 0.0}), tmp_path / "c/model.pt")
    whole, resumed, last = (weights(tmp_path / name / "model.pt") for name in "abc")
    assert same(whole, resumed)
    assert not torch.equal(whole["fc.weight"], last["fc.weight"])


def test_a_training_in_float16_skips_what_overflows_and_goes_on_to_the_same_weights(
    small_cohort, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("gigapipe.training.loop.CHECKPOINT_EVERY", 0.0)
    monkeypatch.setattr(loss_scale, "BEGINNING", 2.0**20)  # the logits' gradients are beyond float16
    more = {"precision": "float16", "epochs": 3, "learning_rate": 1e-3}
    with caplog.at_level("INFO"):
        train(in_process(small_cohort, **more), tmp_path / "a/model.pt")
    scale = record(tmp_path / "a")["loss_scale"]
    assert scale["steps_skipped"] >= 2 and scale["factor"] == 2.0 ** (20 - scale["steps_skipped"]), scale
    assert "of epoch 1: a gradient is beyond float16: skipped; losses are scaled by 524288 now" in caplog.text
    with pytest.raises(KeyboardInterrupt):
        train(in_process(small_cohort, stop_at=2, **more), tmp_path / "b/model.pt")
    train(in_process(small_cohort, **more), tmp_path / "b/model.pt")
    assert same(weights(tmp_path / "b/model.pt"), weights(tmp_path / "a/model.pt"))
    assert record(tmp_path / "b")["loss_scale"] == scale
    train(in_process(small_cohort, **more | {"precision": "float32"}), tmp_path / "c/model.pt")
    assert record(tmp_path / "c")["loss_scale"] is None
    assert record(tmp_path / "a")["history"][0]["training_loss"] == pytest.approx(
        record(tmp_path / "c")["history"][0]["training_loss"], rel=0.05
    )


def test_a_plateau_returns_to_the_best_and_is_gone_on_with_after_a_kill(small_cohort, tmp_path):
    # So fast that validation soon gets worse.
    more = {"schedule": "plateau", "patience": 1, "epochs": 40, "learning_rate": 0.03, "norm": "none"}
    train(in_process(small_cohort, **more), tmp_path / "a/model.pt")
    whole = record(tmp_path / "a")
    losses = [epoch["validation_loss"] for epoch in whole["history"]]
    assert whole["best_epoch"] == losses.index(min(losses)) + 1
    assert len(losses) < 40 and losses[-1] > min(losses)

    batches = whole["training_slides"] // 2
    with pytest.raises(KeyboardInterrupt):
        train(in_process(small_cohort, stop_at=batches * (len(losses) - 1), **more), tmp_path / "b/model.pt")
    train(in_process(small_cohort, **more), tmp_path / "b/model.pt")
    assert record(tmp_path / "b")["history"] == whole["history"]
    whole, resumed = weights(tmp_path / "a/model.pt"), weights(tmp_path / "b/model.pt")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_training_ends_when_validation_gets_no_better(small_cohort, tmp_path):
    still = {"learning_rate": 1e-30, "norm": "none", "epochs": 30, "patience": 2}  # nothing is learnt: never better
    train(in_process(small_cohort, **still), tmp_path / "cosine/model.pt")
    train(in_process(small_cohort, schedule="plateau", **still), tmp_path / "plateau/model.pt")
    assert len(record(tmp_path / "cosine")["history"]) == 1 + 2
    assert len(record(tmp_path / "plateau")["history"]) == 1 + 4 * 2  # three falls, and no fourth
    with pytest.raises(InputError, match="needs patience"):
        train(in_process(small_cohort, schedule="plateau"), tmp_path / "none/model.pt")


def test_accumulated_batches_make_the_step_of_one_batch(small_cohort, tmp_path):
    def trained(folder: str, **more) -> dict[str, torch.Tensor]:
        train(in_process(small_cohort, norm="group", learning_rate=1e-3, **more), tmp_path / folder / "model.pt")
        return weights(tmp_path / folder / "model.pt")

    at_once, added_up, half = (
        trained(f"{batch}-{times}", batch=batch, accumulate=times) for batch, times in ((4, 1), (2, 2), (2, 1))
    )
    assert record(tmp_path / "2-2")["slides_per_step"] == 4
    assert distance(added_up, at_once) < 0.02 * distance(half, at_once)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return sum((a[name] - b[name]).double().square().sum() for name in a).sqrt().item()


def test_slides_look_alike_on_every_mesh(small_cohort, tmp_path):
    network = ("--norm", "group", "--pool", "attention", "--accumulate", 2)
    looks = ("--shift", 0.1, "--stain", 0.2, "--brightness", 0.1, "--contrast", 0.2, "--class-weights", "balanced")
    found = {}
    for name, mesh, more in (
        ("one", (1, 1, 1), looks), ("space", (1, 2, 1), looks), ("data", (2, 1, 1), looks), ("plain", (1, 1, 1), ())
    ):  # fmt: skip
        arguments = training(small_cohort, tmp_path / name / "model.pt", mesh, 2, more=(*network, *more))
        gigapipe(*arguments, ranks=mesh[0] * mesh[1] * mesh[2])
        found[name] = weights(tmp_path / name / "model.pt")
    print({name: distance(found[name], found["one"]) for name in found})
    for mesh in ("space", "data"):
        assert distance(found[mesh], found["one"]) < 0.05 * distance(found["plain"], found["one"])


def test_a_training_begins_with_a_coarser_model_of_its_fold(small_cohort, tmp_path):
    train(in_process(small_cohort), tmp_path / "coarse/model.pt")
    coarse = str(tmp_path / "coarse/model.pt")
    train(in_process(small_cohort, start=coarse, learning_rate=1e-30, canvas=60), tmp_path / "fine/model.pt")
    assert record(tmp_path / "coarse")["started_from"] is None
    assert record(tmp_path / "fine")["started_from"] == {"mpp": 8.0, "fold": 0}
    before, after = weights(tmp_path / "coarse/model.pt"), weights(tmp_path / "fine/model.pt")
    trained = [name for name in before if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(before[name], after[name]) for name in trained)
    for strange, message in (
        ({"weights": coarse}, "both set the initial weights"),
        ({"pool": "max"}, "its pool is average, not max"),
        ({"fold": 1}, "its fold is 0, not 1"),
    ):
        with pytest.raises(InputError, match=message):
            in_process(small_cohort, start=coarse, **strange)


def test_the_optimizer_is_torch_s_to_the_bit():
    def trained(kind) -> tuple[torch.Tensor, dict]:
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.rand(5, 3))
        optimizer = kind([weight], lr=0.1, weight_decay=0.01, fused=True)
        for step in range(4):
            optimizer.zero_grad()
            (weight * torch.rand(5, 3)).square().sum().backward()
            optimizer.step()
            if step == 1:
                optimizer.load_state_dict(optimizer.state_dict())
        return weight.detach(), optimizer.state_dict()["state"][0]

    (ours, moments), (theirs, expected) = trained(AdamW), trained(torch.optim.AdamW)
    assert torch.equal(ours, theirs) and same(moments, expected)


def test_balanced_classes_weigh_the_same():
    labels = torch.tensor([0, 0, 0, 0, 1, 0])
    found = balance(labels, 2)[labels]
    assert found[labels == 0].sum() == pytest.approx(found[labels == 1].sum()) == pytest.approx(3)


def test_a_checkpoint_of_other_settings_is_not_gone_on_from(small_cohort, tmp_path):
    kill(with_a_state(training(small_cohort, tmp_path / "model.pt", epochs=50), tmp_path, ranks=1))
    done = gigapipe(*training(small_cohort, tmp_path / "model.pt", epochs=1))
    assert "starting from the beginning" in done.stdout and "resumed" not in done.stdout


def test_a_rank_that_dies_ends_the_job(small_cohort, tmp_path):
    with with_a_state(training(small_cohort, tmp_path / "model.pt", (1, 2, 1), epochs=200), tmp_path) as process:
        ranks = ranks_of(process)
        assert len(ranks) == 2, [p.cmdline() for p in ranks]
        ranks[1].kill()
        try:
            assert process.wait(timeout=60) != 0
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert not (tmp_path / "model.pt").exists()


def test_what_cannot_be_trained_is_said_once(small_cohort, tmp_path):
    arguments = training(small_cohort, tmp_path / "model.pt", (1, 2, 1))
    arguments[arguments.index("--mpp") + 1] = "4"
    done = gigapipe(*arguments, ranks=2, check=False)
    assert done.returncode != 0
    assert done.stdout.count("has 8 µm/px, not 4") == 1 and "Traceback" not in done.stdout
    common = [
        "--folds",
        small_cohort / "folds.tsv",
        "--pyramids",
        small_cohort / "pyramids",
        "--output",
        tmp_path / "p",
    ]
    torch.save({"task": "tissue"}, tmp_path / "tissue.pt")
    (tmp_path / "torn.pt").write_bytes(b"torn")
    for name, message in (
        ("tissue", "was not trained for classes"),
        ("torn", "it is damaged"),
        ("none", "no such file"),
    ):
        done = gigapipe("predict", *common, "--model", tmp_path / f"{name}.pt", check=False)
        assert done.returncode == 1 and message in done.stdout and "Traceback" not in done.stdout, done.stdout
    arguments = training(small_cohort, tmp_path / "model.pt")
    arguments[arguments.index("--batch") + 1] = "1000"
    done = gigapipe(*arguments, check=False)
    assert done.returncode == 1 and "do not fill a batch of 1000" in done.stdout
