"""The workflow as a user meets it: what it plans and refuses, and what becomes of slides of one's own."""

import base64
import collections
import json
import os
import re
import shutil
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
import yaml
from cohorts import made_once
from launching import ROOT, kill
from projects import configured, fresh_copy, plan, snakemake, start

from gigapipe.published_weights import OFFICIAL
from gigapipe.pyramids import Pyramid
from gigapipe.slides.phantom import cohort, render, sheet_row, write_slide

pytestmark = pytest.mark.timeout(1800)


def test_a_dry_run_shows_the_whole_plan(project):
    jobs = plan(project)
    slides = len(cohort(patients=12))
    models = 3 * 4  # resolutions, folds
    expected = {"phantom": slides + 1, "pyramid": slides, "folds": 1, "train": models, "predict": models}
    assert jobs == {**expected, "survey": 1, "evaluate": 1, "map": 3, "settings": 1, "page": 1, "crate": 1, "all": 1}
    # Stages by name.
    assert plan(project, "slides") == {"phantom": slides, "slides": 1}
    assert plan(project, "pyramids") == {"phantom": slides, "pyramid": slides, "survey": 1, "pyramids": 1}
    assert plan(project, "trained")["train"] == models and "predict" not in plan(project, "trained")
    assert plan(project, "evaluated")["evaluate"] == 1


def test_seeds_and_kinds_of_folds_stand_side_by_side(project):
    (project / "several.yaml").write_text("seeds: [0, 7]\nfolds: {by: [site, patient]}\n")
    jobs = plan(project, "--configfile", "several.yaml")
    divisions = 2 * 2  # seeds, kinds of folds
    models = 3 * 4 * divisions
    assert (jobs["folds"], jobs["train"], jobs["predict"], jobs["evaluate"]) == (divisions, models, models, 1)
    _, output = snakemake(project, "-n", "-p", "--cores", 1, "--configfile", "several.yaml", "--", "trained")
    commands = [line for line in output.splitlines() if " gigapipe " in line]
    own = [line for line in commands if "/patient-7/" in line]
    assert len(own) == 1 + models / divisions and all("--seed 7 " in line for line in own)
    assert sum("--by patient" in line and "results/folds/patient-7 " in line for line in own) == 1
    assert sum("--folds results/folds/patient-7/folds.tsv" in line for line in own) == models / divisions
    assert any("--output results/2um/patient-7/fold-3/model.pt" in line for line in own)


def test_a_finer_training_waits_for_the_coarser_one_that_it_begins_with(project):
    finest = "results/2um/fold-1/model.pt"
    assert plan(project, finest)["train"] == 1
    (project / "mine.yaml").write_text("training: {coarse_to_fine: true}")
    assert plan(project, finest, "--configfile", "mine.yaml")["train"] == 3
    _, output = snakemake(project, "-n", "-p", finest, "--configfile", "mine.yaml")
    started = re.findall(r"--mpp (\d+) .* --start results/(\d+)um/fold-1/model.pt ", output)
    assert sorted(started) == [("2", "8"), ("8", "48")]


def test_the_workflow_is_a_module_of_another_and_runs_from_another_folder(project, tmp_path):
    mine = {
        "phantom": {"patients": 12},
        "folds": {"number": 3},
        "resolutions": [{"mpp": 8, "canvas": 52, "mesh": [1, 1, 1]}],
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    jobs = plan(tmp_path, "--snakefile", project / "Snakefile", "--configfile", "mine.yaml")
    assert jobs["train"] == 3 and jobs["page"] == 1
    (tmp_path / "Snakefile").write_text(
        'configfile: "mine.yaml"\n\nmodule gigapipe:\n'
        f'    snakefile: "{project}/workflow/Snakefile"\n    config: config\n\nuse rule * from gigapipe\n'
    )
    assert plan(tmp_path) == jobs


MADE_BY_0_1 = {
    "phantom": {"patients": 6, "seed": 0, "sites": 3},
    "folds": {"number": 3},
    "resolutions": [{"mpp": 8, "canvas": 52, "mesh": [1, 1, 1]}, {"mpp": 32, "canvas": 13, "mesh": [1, 2, 1]}],
    "training": {"batch": 2, "epochs": 2, "width": 8, "network": "resnet10"},
}


@pytest.mark.slow
def test_what_0_1_made_is_not_made_again_and_what_depends_on_a_change_is(tmp_path):
    project = fresh_copy(tmp_path)
    made = json.loads((ROOT / "tests/provenance-0.1.json").read_text())
    noted = project / ".snakemake/metadata"
    noted.mkdir(parents=True)
    for name, params in made["params"].items():
        output, rule = project / name, made["rule"][name]
        output.parent.mkdir(parents=True, exist_ok=True)
        output.mkdir() if rule in ("pyramid", "map") else output.touch()
        os.utime(output, (1e9, 1e9))
        record = {"record_format_version": 6, "rule": rule, "params": params, "code": made["code"][rule]}
        (noted / base64.b64encode(name.encode()).decode()).write_text(json.dumps(record | {"incomplete": False}))

    def again(**changes) -> dict[str, int]:
        (project / "mine.yaml").write_text(yaml.safe_dump(MADE_BY_0_1 | changes))
        jobs = plan(project, "--configfile", "mine.yaml")
        return {rule: jobs[rule] for rule in ("phantom", "pyramid", "folds", "train", "predict") if rule in jobs}

    assert again() == {}
    (project / "mine.py").touch()  # what is new and of no slide here changes nothing, nor does who watches
    watched = MADE_BY_0_1["training"] | {"tensorboard": True}
    assert again(pyramids={"readers": {"npz": "mine.py:opened"}}, training=watched) == {}
    fine, coarse = MADE_BY_0_1["resolutions"]
    assert again(resolutions=[fine | {"canvas": 60}, coarse]) == {"train": 3, "predict": 3}
    assert again(training=MADE_BY_0_1["training"] | {"stain": 0.1}) == {"train": 6, "predict": 6}


def test_the_workflow_is_lint_free(project):
    _, output = snakemake(project, "--lint")
    assert "good condition" in output


def test_the_catalogue_of_workflows_finds_what_it_shows(project):
    """What it asks of a workflow for its list of standardized usage, which has no schema of its own."""
    usage = yaml.safe_load((project / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage.keys() == {"mandatory-flags", "software-stack-deployment", "report"} and usage["report"] is True
    assert usage["software-stack-deployment"] == {"conda": True, "report": True}
    flags = usage["mandatory-flags"]
    assert flags.keys() == {"desc", "flags"} and all(isinstance(text, str) for text in flags.values())
    assert (project / "workflow/Snakefile").exists() and (project / "config/README.md").exists()
    words = (project / "README.md").read_text().lower()
    assert "snakemake" in words and "workflow" in words
    for file in (project / "workflow/rules").glob("*.smk"):
        rules = re.split(r"^ *rule ", file.read_text(), flags=re.MULTILINE)[1:]
        assert all("conda:" in rule for rule in rules if "shell:" in rule), file


@pytest.mark.parametrize(
    "setting, message",
    [
        ("fold: 3", "config: fold: there is no such key; did you mean folds?"),
        ("slides: nowhere.tsv", "sample sheet nowhere.tsv: cannot be read"),
        ("phantom: {confounder: 0.5, sites: 1}", "confounder 0.5 with 1 site"),
        ("training: {batch: 40}", "config: training.batch: 9 training slides of fold 0 are fewer than a step of 40"),
    ],
)
def test_a_wrong_config_is_said_in_one_line(project, setting, message):
    (project / "mine.yaml").write_text(setting)
    code, output = snakemake(project, "-n", "--configfile", "mine.yaml", check=False)
    assert code == 1
    assert message in output.splitlines()[-1] and "Error" not in output.partition(message)[0], output


def test_official_weights_are_fetched_once_before_networks_are_trained(project):
    weights = {"network": "resnet18", "weights": "imagenet", "train": "last"}
    arguments = configured(project, training=weights)
    _, output = snakemake(project, "-n", "--printshellcmds", "--cores", 2, *arguments)
    (fetch,) = re.findall(r"gigapipe weights (\S+) --output (\S+)", output)
    assert fetch == ("resnet18", f"resources/weights/{OFFICIAL['resnet18'].file}")
    trainings = re.findall(r"gigapipe train .*", output)
    assert len(trainings) == 12 and all(f"--weights {fetch[1]} --train last" in line for line in trainings)
    assert all("--norm frozen" in line for line in trainings)


def test_methods_are_trained_on_the_same_folds_in_folders_of_their_own(project):
    probe = {"name": "probe", "network": "efficientnet_lite0", "weights": "imagenet", "train": "probe"}
    arguments = configured(project, methods=[probe, {"name": "whole", "epochs": 3}], training={"coarse_to_fine": False})
    _, output = snakemake(project, "-n", "--printshellcmds", "--cores", 2, *arguments)
    trainings = [line.strip() for line in output.splitlines() if " gigapipe train " in f" {line.strip()}"]
    assert len(trainings) == 2 * 3 * 4 and all("--folds results/folds.tsv" in line for line in trainings)
    of_probe = [line for line in trainings if "--method probe" in line]
    assert len(of_probe) == 12 and all("--train probe" in line and "--epochs 6 " in line for line in of_probe)
    assert any("--output results/2um/probe/fold-3/model.pt" in line for line in of_probe)
    whole = [line for line in trainings if "--method whole" in line]
    assert len(whole) == 12 and all("--network resnet18" in line and "--epochs 3 " in line for line in whole)
    assert not any("--weights" in line for line in whole) and len(re.findall("gigapipe weights ", output)) == 1
    for name in ("probe", "whole"):
        models = " ".join(f"results/8um/{name}/fold-{fold}/model.pt" for fold in range(4))
        assert f"gigapipe map --models {models} " in output and f"--output results/8um/{name}/maps" in output
    (evaluate,) = re.findall(r"gigapipe evaluate --predictions (.*) --trainings", output)
    assert len(evaluate.split()) == 24


EIGHT = list({p.patient: p for p in cohort(seed=9, patients=8, folder="my")}.values())
"""Phantoms, one of each patient."""


@pytest.fixture
def eight(tmp_path_factory):
    """A folder with the slides of `EIGHT`."""

    def make(folder) -> None:
        for phantom in EIGHT:
            write_slide(folder / f"{phantom.slide}.svs", render(phantom))

    return made_once(tmp_path_factory, "eight", make)


@pytest.fixture
def own_slides(eight, tmp_path):
    """A project with a sheet of its own: phantoms on disk, one of them torn, and one behind an address."""
    folder = fresh_copy(tmp_path / "project")
    shutil.copytree(eight, folder / "my")
    sheet = pd.DataFrame(map(sheet_row, EIGHT))
    torn = folder / sheet.loc[1, "source"]
    torn.write_bytes(torn.read_bytes()[:5000])
    (folder / "archive").mkdir()
    (folder / sheet.loc[2, "source"]).rename(folder / "archive" / "remote.svs")

    class Archive(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=folder / "archive")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Archive)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sheet.loc[2, "source"] = f"http://127.0.0.1:{server.server_port}/remote.svs"
    sheet.to_csv(folder / "my/slides.tsv", sep="\t", index=False)
    yield folder, sheet
    server.shutdown()


def test_a_missing_file_is_named_before_anything_runs(own_slides):
    folder, sheet = own_slides
    (folder / sheet.loc[0, "source"]).unlink()
    code, output = snakemake(folder, "-n", "--config", "slides=my/slides.tsv", check=False)
    assert code == 1 and f"slide {sheet.loc[0, 'slide']}: no such file" in output
    sheet.assign(source=sheet["source"].where(sheet.index > 0, "x" * 300)).to_csv(folder / "my/long.tsv", sep="\t")
    code, output = snakemake(folder, "-n", "--config", "slides=my/long.tsv", check=False)
    assert code == 1 and f"slide {sheet.loc[0, 'slide']}: File name too long: xxx" in output.splitlines()[-1]


def test_a_resolution_finer_than_slides_is_one_line(own_slides):
    folder, _ = own_slides
    finer = "resolutions=[{mpp: 0.1}]"
    code, output = snakemake(folder, "-n", "--config", "slides=my/slides.tsv", finer, check=False)
    assert code == 1 and "Traceback" not in output and "BrokenPipe" not in output, output


def test_a_forgotten_config_does_not_replace_results_by_the_demo_s(own_slides):
    folder, _ = own_slides
    snakemake(folder, "--cores", 1, "--config", "slides=my/slides.tsv", "--", "results/config.yaml")
    code, output = snakemake(folder, "-n", check=False)
    assert code == 1 and "these results are of the slides in my/slides.tsv, and this config names none" in output
    more = "resolutions=[{mpp: 8}, {mpp: 16}]"
    _, output = snakemake(folder, "-n", "--config", "slides=my/slides.tsv", more, "--", "results/config.yaml")
    assert "changed: resolutions" in output


def test_a_sheet_without_source_takes_the_config_s_pattern(own_slides):
    folder, sheet = own_slides
    here = sheet.drop(index=2).assign(site="a")
    here[["slide", "patient", "label"]].to_csv(folder / "my/short.csv", index=False)
    (folder / "mine.yaml").write_text(
        "slides: my/short.csv\nsource: my/{slide}.svs\nfolds: {number: 3}\ntraining: {batch: 2}\n"
    )
    snakemake(folder, "--cores", 2, "--configfile", "mine.yaml", "--", "results/folds.tsv")
    assert len(pd.read_csv(folder / "results/folds.tsv", sep="\t")) == len(here)


def test_a_bad_slide_is_named_and_not_tried_in_vain_and_the_others_go_on(own_slides, eight):
    folder, sheet = own_slides
    sheet = sheet.head(4)
    sheet.to_csv(folder / "my/slides.tsv", sep="\t", index=False)
    arguments = ["--cores", 2, "--config", "slides=my/slides.tsv", "--"]
    patient = ["--retries", 20, "--set-threads", "pyramid=2", "--printshellcmds"]
    code, output = snakemake(folder, *patient, *arguments, "pyramids", check=False)
    assert code == 1
    torn = sheet.loc[1, "slide"]
    said = collections.Counter(line.strip() for line in output.splitlines() if line.strip().startswith("gigapipe:"))
    (line, _), (again, _) = said.items()
    assert f"{torn}.svs" in line and "sample sheet" in line
    assert re.fullmatch(re.escape(line) + r" \(recorded on .*; the next run of the workflow tries it again\)", again)
    started = re.findall(rf"gigapipe pyramid .*--threads (\d) .* results/pyramids/{torn} ", output)
    assert list(dict.fromkeys(started)) == ["2", "1"]  # that one process tells it again
    assert output.count("Trying to restart job") == 1
    assert "Traceback" not in output
    whole = {p.name for p in (folder / "results/pyramids").iterdir()}
    assert whole == set(sheet["slide"]) - {torn}
    remote = sheet.loc[2, "slide"]
    assert Pyramid(folder / "results/pyramids" / remote).source["name"] == f"{remote}.svs"
    assert (folder / "resources/slides" / f"{remote}.svs").exists()
    # One that is put right is tried, and be it older.
    whole = shutil.copy(eight / f"{torn}.svs", folder / "my")
    os.utime(whole, (0, 0))
    snakemake(folder, *arguments, f"results/pyramids/{torn}")


def test_an_interrupted_run_leaves_nothing_that_is_taken_for_whole(own_slides):
    folder, sheet = own_slides
    sheet = sheet.drop(index=[1, 2]).head(3)
    sheet.to_csv(folder / "my/slides.tsv", sep="\t", index=False)
    arguments = ["--cores", 2, "--config", "slides=my/slides.tsv", "--", "pyramids"]
    process = start(folder, *arguments)
    while not list((folder / "results/pyramids").glob(".*.partial")):
        assert process.poll() is None
        time.sleep(0.01)
    kill(process)
    snakemake(folder, *arguments)  # nothing is to be unlocked first
    pyramids = [p for p in (folder / "results/pyramids").iterdir()]
    assert {p.name for p in pyramids} == set(sheet["slide"])
    assert all((Pyramid(p).array(8)[:] < 255).any() for p in pyramids)
    # A slide that is gone now stops nothing, but what would have to be made of it.
    gone = folder / sheet.iloc[0]["source"]
    gone.unlink()
    _, output = snakemake(folder, *arguments)
    assert "Nothing to be done" in output
    (folder / "more.yaml").write_text("resolutions: [{mpp: 8}, {mpp: 1}]")
    code, output = snakemake(folder, "-n", "--configfile", "more.yaml", *arguments, check=False)
    said = f"no such file: {sheet.iloc[0]['source']}, and no pyramid of it has 1 µm/px; correct its source, or"
    assert code == 1 and said in output.splitlines()[-1]
