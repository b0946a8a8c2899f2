"""Trained networks, asked about new slides."""

import numpy as np
import pandas as pd
import pytest
from cohorts import training
from launching import gigapipe

from gigapipe.evaluation.applying import fitted, temperature, tempered
from gigapipe.pyramids import Pyramid
from gigapipe.pyramids.appearance import Appearance, _usual, unlike
from gigapipe.pyramids.build import build_pyramid
from gigapipe.pyramids.maps import read_map
from gigapipe.slides.phantom import cohort, render, sheet_row, write_slide


@pytest.fixture(scope="module")
def models(small_cohort, tmp_path_factory):
    """Of three folds, with their predictions beside them."""
    folder, found = tmp_path_factory.mktemp("models"), []
    for fold in range(3):
        model = folder / f"fold-{fold}/model.pt"
        arguments = training(small_cohort, model, epochs=3)
        arguments[arguments.index("--fold") + 1] = str(fold)
        gigapipe(*arguments)
        common = ("--folds", small_cohort / "folds.tsv", "--pyramids", small_cohort / "pyramids")
        gigapipe("predict", *common, "--model", model, "--output", model.with_name("predictions.tsv"))
        found.append(model)
    return found


def test_a_temperature_is_found_again():
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((4000, 3))
    true = tempered(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 1)
    labels = [int(rng.choice(3, p=p)) for p in true]
    assert fitted(tempered(true, 1 / 2.5), labels) == pytest.approx(2.5, rel=0.1)  # of an overconfident network
    separated = np.array([[0.9, 0.1]] * 6 + [[0.2, 0.8]] * 6)
    by = fitted(separated, [0] * 6 + [1] * 6)
    assert 0.05 < by < 1 and tempered(separated, by).max() < 0.999


def test_new_slides_are_scored_by_those_networks_that_were_not_trained_on_them(small_cohort, models, tmp_path):
    (new, *_) = cohort(seed=77, patients=6, folder=str(tmp_path))
    write_slide(tmp_path / "new.svs", render(new))
    write_slide(tmp_path / "dark.svs", (0.8 * render(new)).astype(np.uint8))
    (tmp_path / "broken.svs").write_bytes(b"no slide")
    held_out = pd.read_csv(models[0].with_name("predictions.tsv"), sep="\t")
    known = held_out[held_out["part"] == "test"].iloc[0]
    sheet = pd.read_csv(small_cohort / "slides.tsv", sep="\t").set_index("slide")
    old = tmp_path / "renamed.svs"
    old.symlink_to(sheet.loc[known.slide, "source"])
    output = tmp_path / "out"
    done = gigapipe(
        "apply", *(tmp_path / f"{name}.svs" for name in ("new", "dark", "broken")), old,
        "--models", *models, "--output", output,
    )  # fmt: skip
    assert "slide broken: slide " in done.stdout and "not readable as a slide" in done.stdout
    table = pd.read_csv(output / "applied.tsv", sep="\t").set_index("slide")
    assert list(table["networks"]) == [3, 3, 0, 2]
    assert table["tissue"].fillna("").tolist() == ["fine", "fine", "", "fine"]
    strange = table["unlike the training slides"].fillna("")
    assert strange["dark"].startswith("stain (optical density 0.") and (strange.drop("dark") == "").all()
    assert f"slide dark: is unlike the training slides: {strange['dark']}" in done.stdout
    classes = [name.removeprefix("probability of ") for name in table if name.startswith("probability of ")]

    # What is said of the known slide: network 0 had it for its test, another for its validation.
    said = []
    for model in models:
        predictions = pd.read_csv(model.with_name("predictions.tsv"), sep="\t").set_index("slide")
        if known.slide in predictions.index:
            score = predictions.loc[known.slide, "score"]
            said.append(tempered(np.array([[1 - score, score]]), temperature(model, classes))[0])
    expected = np.mean(said, axis=0)
    found = table.loc["renamed", [f"probability of {name}" for name in classes]].to_numpy(float)
    assert len(said) == 2 and found == pytest.approx(expected, abs=1e-5)
    chosen = int(expected.argmax())
    assert table.loc["renamed", "decided"] == classes[chosen]
    of_chosen = [one[chosen] for one in said]
    assert list(table.loc["renamed", ["lowest", "highest"]]) == pytest.approx(
        [min(of_chosen), max(of_chosen)], abs=1e-5
    )

    # The map is the mean of the networks': over all places, and with the bias, the mean of their log-odds.
    odds = [np.log(s / (1 - s)) for s in (held_out_score(model, known.slide) for model in models) if s is not None]
    of_map = read_map(output / "maps/renamed").evidence(classes[1]).mean()
    assert of_map == pytest.approx(np.mean(odds), abs=1e-4)
    page = (output / "index.html").read_text()
    assert (
        "maps/new.png" in page and (output / "maps/new.png").exists() and "nan" not in page.lower().split("<body>")[1]
    )
    assert not (output / "maps/broken.png").exists() and Pyramid(output / "pyramids/new").resolutions == [8.0]

    (tmp_path / "other").mkdir()
    (tmp_path / "other/new.svs").symlink_to(old)  # of the same name
    stale = gigapipe("apply", tmp_path / "other/new.svs", "--models", *models, "--output", output, check=False)
    assert stale.returncode and "out/pyramids/new is the pyramid of another file" in stale.stdout

    again = ("apply", tmp_path / "new.svs", "--models", *models, "--pyramids", output / "pyramids", "--no-maps")
    gigapipe(*again, "--mesh", 1, 1, 2, "--output", tmp_path / "two", ranks=2)
    two = pd.read_csv(tmp_path / "two/applied.tsv", sep="\t").set_index("slide")
    assert two.loc["new", "highest"] == pytest.approx(table.loc["new", "highest"], abs=1e-5)


def test_slides_of_another_cohort_are_scored_by_all_networks_together(small_cohort, models, tmp_path):
    others = list({one.label: one for one in cohort(seed=78, patients=6, folder=str(tmp_path))}.values())
    for one in others:
        write_slide(tmp_path / f"{one.slide}.svs", render(one))
        build_pyramid(tmp_path / f"{one.slide}.svs", tmp_path / "pyramids" / one.slide, [8.0])
    sheet = pd.DataFrame(map(sheet_row, others))
    sheet.to_csv(tmp_path / "b.tsv", sep="\t", index=False)
    common = ("--cohort", "b", "--models", *models, "--pyramids", tmp_path / "pyramids")
    gigapipe("predict-external", tmp_path / "b.tsv", *common, "--output", tmp_path / "scores.tsv")
    predictions = [model.with_name("predictions.tsv") for model in models]
    trainings = [model.with_name("training.json") for model in models]
    networks = ("--predictions", *predictions, "--trainings", *trainings)
    gigapipe("evaluate-external", "--external", tmp_path / "scores.tsv", *networks, "--output", tmp_path)
    row = pd.read_csv(tmp_path / "external.tsv", sep="\t").iloc[0]
    assert row["cohort"] == "b" and (row["slides"], row["networks"]) == (2, 3) and row["auc"] in (0, 0.5, 1)
    known = pd.read_csv(small_cohort / "slides.tsv", sep="\t", dtype=str)
    known.to_csv(tmp_path / "known.tsv", sep="\t", index=False)
    again = ("--cohort", "b", "--models", *models, "--pyramids", small_cohort / "pyramids", "--output", tmp_path / "x")
    said = gigapipe("predict-external", tmp_path / "known.tsv", *again, check=False).stdout
    assert "was trained on the file of slide" in said and "so that it is not external" in said


@pytest.mark.parametrize(
    "slide, said",
    [
        (Appearance([0.31, 0.5, 0.2], 40, 0.5), ""),
        (Appearance([0.31, 0.5, 0.2], 40, 0.1), ""),  # a finer scan is made coarser
        (Appearance([0.30, 0.5, 0.33], 40, 0.5), "stain (optical density 0.30, 0.50, 0.33, usually 0.30, 0.50, 0.20)"),
        (
            Appearance([0.30, 0.5, 0.21], 4, 1.0),
            "little tissue (4 mm², the least was 10); coarser scan (1 µm per pixel",
        ),
    ],
)
def test_in_what_a_slide_is_unlike_training_slides(slide, said):
    usual = {
        "slides": 8, "density": [0.3, 0.5, 0.2], "density_deviation": [0.03, 0.03, 0.03], "least_tissue_mm2": 10,
        "coarsest_mpp": 0.5,
    }  # fmt: skip
    assert unlike(slide, usual).startswith(said) and bool(said) == bool(unlike(slide, usual))


def test_another_stain_is_known_by_its_hue_however_strong_stains_are():
    strengths = (0.7, 0.8, 0.9, 1.1, 1.2, 1.3)
    seen = [Appearance([s * one for one in (0.13, 0.25, 0.10)], 40, 0.5) for s in strengths]
    usual = {
        "slides": len(seen), "least_tissue_mm2": 10, "coarsest_mpp": 0.5,
        **_usual("density", [one.density for one in seen]), **_usual("hue", [one.hue for one in seen]),
    }  # fmt: skip
    assert not unlike(Appearance([0.12, 0.24, 0.09], 40, 0.5), usual)
    other = Appearance([0.16, 0.21, 0.11], 40, 0.5)  # red 1.25, green 0.85 and blue 1.1 times as dense
    assert unlike(other, usual).startswith("hue of the stain (red and blue to green 0.76, 0.52, usually 0.52, 0.40;")
    of_0_1 = {key: value for key, value in usual.items() if "hue" not in key}
    assert not unlike(other, of_0_1)  # each channel alone is within what is usual


def held_out_score(model, slide) -> float | None:
    scores = pd.read_csv(model.with_name("predictions.tsv"), sep="\t").set_index("slide")["score"]
    return scores.get(slide)


@pytest.mark.parametrize("what", ["another slide of the same name", "no slide can be used", "another resolution"])
def test_what_cannot_be_applied_is_said_in_a_line(small_cohort, models, tmp_path, what):
    (tmp_path / "a").mkdir()
    for name in ("a.svs", "a/a.svs"):
        (tmp_path / name).write_bytes(b"no slide")
    if what == "another slide of the same name":
        arguments, said = [tmp_path / "a.svs", tmp_path / "a/a.svs", "--models", *models], "rename one"
    elif what == "no slide can be used":
        arguments, said = [tmp_path / "a.svs", "--models", *models], "no slide has an answer; the reasons are above"
    else:
        gigapipe(*training(small_cohort, tmp_path / "m.pt", canvas=48, epochs=1))
        arguments, said = [tmp_path / "a.svs", "--models", *models, tmp_path / "m.pt"], "its canvas is 48, not 52"
    done = gigapipe("apply", *arguments, "--output", tmp_path / "out", check=False)
    assert done.returncode != 0 and said in done.stdout and "Traceback" not in done.stdout
