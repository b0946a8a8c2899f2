"""Methods side by side: what the config says of them, the comparison between them, and the linear probe."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from cohorts import SMALL_NETWORK, training, weights
from launching import gigapipe
from made_networks import MARGIN, network, networks, numbers
from sklearn.linear_model import LogisticRegression

from gigapipe.configuration import Configuration
from gigapipe.errors import InputError
from gigapipe.evaluation import figures
from gigapipe.evaluation.auc import paired_test
from gigapipe.evaluation.between_methods import between_methods, holm
from gigapipe.evaluation.columns import METHOD_NAME
from gigapipe.evaluation.comparison import compare, paired
from gigapipe.evaluation.comparison_text import as_html, as_markdown
from gigapipe.evaluation.leftovers import leftovers
from gigapipe.evaluation.recommendation import recommend
from gigapipe.evaluation.regression import compare_numbers
from gigapipe.models import RESNETS, pretrained
from gigapipe.models.resnet import GatedAttentionPool2d
from gigapipe.pyramids import Pyramid
from gigapipe.pyramids.canvas import read_canvas
from gigapipe.training.frozen_features import FrozenFeatures
from gigapipe.training.probe import STRENGTHS
from gigapipe.training.stopping import Stop

PROBE = {"name": "probe", "network": "efficientnet_lite0", "weights": "imagenet", "train": "probe"}


def test_a_method_has_what_it_says_and_else_what_training_says():
    small = {"network": "resnet10", "width": 16, "norm": "auto", "epochs": 20}
    config = Configuration.of({"training": small, "methods": [PROBE, {"name": "whole"}, {"name": "wide", "width": 32}]})
    probe, whole, wide = config.methods
    assert (probe.network, probe.width, probe.norm, probe.epochs) == ("efficientnet_lite0", 64, "frozen", 20)
    assert whole.model_dump(exclude={"name"}) == config.training.model_dump() and (wide.width, wide.norm) == (
        32,
        "batch",
    )
    assert list(config.trainings.values()) == config.methods
    assert Configuration.of(config.model_dump(mode="json")) == config  # as results/config.yaml has it
    assert list(Configuration().trainings) == ["training"]


@pytest.mark.parametrize(
    "methods, said",
    [
        ([{"network": "resnet10"}], r"methods\[0\].name: is missing; give a name of letters"),
        ([PROBE, PROBE], "methods: a name is given twice"),
        ([{"name": "fold-0"}], r"methods\[0\].name: found \"fold-0\""),
        ([{"name": "a", "epoch": 3}], r"methods\[0\].epoch: there is no such key; did you mean epochs\?"),
        ([{"name": "a"}, {"name": "b", "train": "probe"}], r"methods\[1\].train: probe: the other layers would keep"),
        ([PROBE | {"pool": "gated"}], r"methods\[0\].train: probe: pool gated is trained, too"),
        ([{"name": "a", "batch": 3}], r"methods\[0\].batch: 3 slides cannot be divided evenly among the 2 data ranks"),
    ],
)
def test_a_wrong_method_is_said_with_its_key(methods, said):
    with pytest.raises(InputError, match=said):
        Configuration.of({"methods": methods, "resolutions": [{"mpp": 8, "canvas": 52, "mesh": [2, 1, 1]}]})


def of_methods(made=networks, **of) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores and costs of methods with these figures at each resolution, on the same slides; the first costs most."""
    found = [made(aucs, seed=number) for number, aucs in enumerate(of.values())]
    for number, (name, tables) in enumerate(zip(of, found, strict=True)):
        for table in tables:
            table[METHOD_NAME] = name
        tables[1]["training_seconds"] = 100 / (1 + number) / tables[1]["mpp"]
    return tuple(pd.concat(tables, ignore_index=True) for tables in zip(*found, strict=True))


def test_methods_are_rows_of_one_table_with_paired_tests_between_them(tmp_path):
    aucs = {"whole": {8: 0.8, 2: 0.98}, "probe": {8: 0.99, 2: 0.99}, "mil": {8: 0.55, 2: 0.9}}
    scores, costs = of_methods(lambda of, seed: networks(of, (200, 200), seed=seed), **aucs)
    table, between = compare(scores, costs, MARGIN), between_methods(scores)
    names = [*zip(table["mpp"], table[METHOD_NAME], strict=True)]
    assert names == [(mpp, name) for mpp in (8, 2) for name in aucs]  # as the config has them
    of = {key: rows for key, rows in scores.groupby(["mpp", METHOD_NAME])}
    for row in between.itertuples():
        found = paired_test(*paired(of[row.mpp, row.method_name], of[row.mpp, row.other], ["a", "b"]))
        np.testing.assert_allclose([row.delta, row.delta_low, row.delta_high, row.p], found)
    assert len(between) == 6 and between["delta"].iloc[0] < 0 and between["p_corrected"].iloc[0] < 0.001
    np.testing.assert_allclose(holm(np.array([0.04, np.nan, 0.01, 0.03])), [0.06, np.nan, 0.03, 0.06])
    for row in table[table["mpp"] == 2].itertuples():  # to the same method at the coarser resolution
        coarser = table[(table["mpp"] == 8) & (table[METHOD_NAME] == row.method_name)]["auc"].iloc[0]
        np.testing.assert_allclose(row.delta, row.auc - coarser)
    without = [rows[~((rows["mpp"] == 8) & (rows[METHOD_NAME] == "mil"))] for rows in (scores, costs)]
    assert compare(*without, MARGIN).iloc[-1][["method_name", "coarser"]].isna().tolist() == [False, True]
    table.to_csv(tmp_path / "comparison.tsv", sep="\t", index=False)
    said = recommend(pd.read_csv(tmp_path / "comparison.tsv", sep="\t"))
    assert (said.mpp, said.method, said.headline) == (8, "probe", "Use probe at 8 µm per pixel.")
    assert re.search("At the same resolution: whole at 8 µm per pixel with 0.* worse than the margin", said.reason)
    assert "The highest AUC is 0.992 (0.982–0.996), of probe at 2 µm per pixel; probe at 8 µm per" in said.reason
    text = as_markdown(table, between)
    assert "| 8 | whole − probe | −0." in text and "| µm/px | method | computed as |" in text
    assert "whole − probe" in as_html(table, between)
    assert not re.search(r"\bnan\b|unknown", text, re.IGNORECASE)
    axes = figures.auc_against_resolution(table).axes[0]
    assert [bars.get_label() for bars in axes.containers] == list(aucs)
    assert len({bars[0].get_color() for bars in axes.containers}) == 3


def test_of_two_methods_that_are_as_good_the_cheaper_is_recommended():
    scores, costs = of_methods(lambda of, seed: networks(of, (200, 200), seed=seed), whole={8: 0.99}, probe={8: 0.99})
    assert recommend(compare(scores, costs, MARGIN)).method == "probe"  # which costs half here
    costs["training_seconds"] = np.where(costs[METHOD_NAME] == "probe", 9, 1)
    assert recommend(compare(scores, costs, MARGIN)).method == "whole"


def test_numbers_have_methods_too_and_without_methods_there_is_no_column():
    scores, costs = of_methods(numbers, good={8: 0.1, 2: 0.1}, poor={8: 0.6, 2: 0.1})
    table, between = compare_numbers(scores, costs, MARGIN), between_methods(scores)
    assert recommend(table).method == "good" and between["delta"].iloc[0] > 0.2 and between["p"].iloc[0] < 0.01
    alone = compare_numbers(*numbers({8: 0.1, 2: 0.1}), MARGIN)
    assert not {METHOD_NAME, "rival_method"} & set(alone) and between_methods(numbers({8: 0.1})[0]) is None


def test_the_folders_of_methods_that_are_gone_are_leftovers(tmp_path):
    for name in ("old", "probe"):
        folder = network(tmp_path, 8, 0, method=name)
        (tmp_path / "8um" / name).mkdir()
        folder.rename(tmp_path / "8um" / name / "fold-0")
    plain = network(tmp_path, 8, 0)
    (tmp_path / "8um/mine").mkdir()
    (tmp_path / "8um/mine/model.pt").touch()  # says nothing of a method
    config = {"resolutions": [{"mpp": 8}], "methods": [PROBE]}
    assert leftovers(tmp_path, Configuration.of(config)) == [plain, tmp_path / "8um/old"]
    both = [tmp_path / "8um/old", tmp_path / "8um/probe"]
    assert leftovers(tmp_path, Configuration.of({"resolutions": [{"mpp": 8}]})) == both


def test_gated_attention_is_as_published():
    torch.manual_seed(0)
    pool, features = GatedAttentionPool2d(8, 5), torch.randn(2, 8, 3, 4)
    h = features.flatten(2).mT  # (slides, positions, channels)
    v, u, w = (layer.weight.flatten(1) for layer in (pool.project, pool.gate, pool.score))
    scores = (torch.tanh(h @ v.mT + pool.project.bias) * torch.sigmoid(h @ u.mT + pool.gate.bias)) @ w.mT
    expected = (scores.softmax(1) * h).sum(1)
    torch.testing.assert_close(pool(features)[..., 0, 0], expected)


def probed(small_cohort, folder, mesh=(1, 1, 1), more=()):
    torch.manual_seed(1)
    folder.mkdir()
    torch.save(RESNETS["resnet10"](1000, width=8).state_dict(), folder / "given.pth")
    given = "--weights", folder / "given.pth", "--train", "probe", *more
    return training(small_cohort, folder / "model.pt", mesh, network=SMALL_NETWORK, more=given)


def test_a_probe_is_the_logistic_regression_of_pooled_features(small_cohort, tmp_path):
    """Alike on ranks that divide images or slides; what it says of slides is what scikit-learn does."""
    for name, mesh in (("one", (1, 1, 1)), ("four", (2, 1, 2))):
        arguments = probed(small_cohort, tmp_path / name, mesh, ("--method", "probe"))
        done = gigapipe(*arguments, ranks=mesh[0] * mesh[2])
        assert re.search(r"last layer solved in \d\.\d s, C \S+  training_loss", done.stdout), done.stdout
    one, four = (weights(tmp_path / name / "model.pt") for name in ("one", "four"))
    given = torch.load(tmp_path / "one/given.pth", weights_only=True)
    assert torch.equal(one["layer4.0.conv2.weight"], given["layer4.0.conv2.weight"])
    torch.testing.assert_close(four["fc.weight"], one["fc.weight"], rtol=1e-3, atol=1e-5)
    record = json.loads((tmp_path / "one/training.json").read_text())
    assert record["best_epoch"] == 1 and record["settings"]["method"] == "probe"
    assert record["training_seconds"] > record["seconds_per_step"] > 0
    assert not (tmp_path / "one/checkpoints").exists()

    output, model = tmp_path / "predictions.tsv", tmp_path / "one/model.pt"
    common = ["--folds", small_cohort / "folds.tsv", "--pyramids", small_cohort / "pyramids"]
    gigapipe("predict", *common, "--model", model, "--output", output)
    table = pd.read_csv(output, sep="\t")
    assert set(table[METHOD_NAME]) == {"probe"}
    features, truth = features_of(small_cohort, given)
    learnt = [slide for slide in truth if slide in record["identity"]["training"]]
    mean, deviation = features[learnt].T.mean(), features[learnt].T.std(ddof=0).replace(0, 1)
    standard = ((features.T - mean) / deviation).T
    losses = {}
    for strength in STRENGTHS:
        fitted = LogisticRegression(C=strength, max_iter=2000).fit(standard[learnt].T, [truth[s] for s in learnt])
        said = fitted.predict_proba(standard[table["slide"]].T.to_numpy())[:, 1]
        held = table["part"] == "validation"
        own = np.where(table["label"] == fitted.classes_[1], said, 1 - said)[held]
        losses[strength] = -np.log(own).mean(), said
    _, said = min(losses.values(), key=lambda loss: loss[0])
    np.testing.assert_allclose(table["score"], said, rtol=2e-3, atol=1e-4)


def features_of(small_cohort, given):
    """Pooled features of each slide (a column), by torch alone, and its label."""
    model = RESNETS["resnet10"](2, "frozen", width=8).eval()
    pretrained.take_imagenet(model, "resnet10", given, "given")
    table = pd.read_csv(small_cohort / "folds.tsv", sep="\t")
    found = {}
    with torch.no_grad():
        for slide in table["slide"]:
            pixels = read_canvas(Pyramid(small_cohort / "pyramids" / slide), 8.0, 52)
            found[slide] = model.pooled(1 - torch.from_numpy(pixels)[None] / 255)[0].double().numpy()
    return pd.DataFrame(found), dict(zip(table["slide"], table["label"], strict=True))


def test_a_probe_that_is_stopped_goes_on_with_its_features(small_cohort, tmp_path, monkeypatch):
    arguments = probed(small_cohort, tmp_path / "probe")
    monkeypatch.setattr(Stop, "late", lambda stop, seconds: True)
    done = gigapipe(*arguments, check=False)
    assert done.returncode == 75 and "stopped after 2 slides" in done.stdout
    seen, of = [], FrozenFeatures.of
    monkeypatch.setattr(FrozenFeatures, "of", lambda self, *which: seen.append(which[1]) or of(self, *which))
    monkeypatch.setattr(Stop, "late", lambda stop, seconds: False)
    gigapipe(*arguments)
    assert seen[0] == 2 and (tmp_path / "probe/model.pt").exists()
