"""Options are stated once: what is derived from them is as they are, and a wrong value is said in a sentence."""

import argparse
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import jsonschema
import pandas as pd
import pytest
import yaml
from launching import ROOT

from gigapipe.cli import parser
from gigapipe.configuration import Configuration, configuration
from gigapipe.configuration.command_line import add_options, arguments, values
from gigapipe.configuration.configuration import (
    Computing,
    Learning,
    Network,
    Training,
)
from gigapipe.configuration.pyramids import PyramidPixels, Pyramids
from gigapipe.configuration.sources import Archive, Phantom
from gigapipe.errors import InputError
from gigapipe.evaluation.design import check_design, check_resolutions
from gigapipe.gdc.client import Client
from gigapipe.models import NORMS, POOLS, RESNETS
from gigapipe.pyramids.build import build_pyramid
from gigapipe.slides.download import download
from gigapipe.slides.phantom import cohort, render, sheet_row, write_slide
from gigapipe.slides.reader import Slide
from gigapipe.training.checkpoints import Checkpoints

GROUPS = [Archive, Computing, Learning, Network, Phantom, PyramidPixels]  # what rules hand on as arguments
OTHERWISE = {
    Archive: {"api": "https://a/$(b)", "mirrors": ["https://c/'d'", "https://e"], "token": "-a file", "timeout": 5},
    Computing: {"device": "cuda:1", "memory": "6GiB", "stage": "$TMPDIR/a b"},
    Learning: {"epochs": 3, "learning_rate": 1e-5, "patience": 2, "symmetries": "none", "stain": 0.25},
    Network: {
        "network": "my nets/mine.py:net",
        "network_options": {"a": [1, {"b": None}], "it's": 'a "b" $(c)'},
        "weights": "it's; here & there",
        "shift": 0.0,
    },
    Phantom: {"confounder": 0.5, "seed": 7},
    PyramidPixels: {"assume_mpp": True, "clean_background": True, "chunk": 64, "shard": 128, "ome_zarr": "0.5"},
}


def test_what_is_made_of_the_options_is_as_they_are():
    sys.path.insert(0, str(ROOT / "docs"))
    from configuration import documents

    old = [str(path.relative_to(ROOT)) for path, text in documents().items() if path.read_text("utf-8") != text]
    assert not old, f"{old}: run python docs/configuration.py"


def test_every_option_stands_in_every_table():
    readme = (ROOT / "config/README.md").read_text("utf-8")
    groups = {"": Configuration} | {
        name: type(default)
        for name, field in Configuration.model_fields.items()
        if isinstance(default := field.default, Configuration.__base__)
    }
    for key, group in groups.items():
        table = readme.partition(f"<!-- options: {key} -->" if key else "<!-- options: -->")[2]
        table = table.partition("<!-- end -->")[0].strip()
        assert [line.split("`")[1] for line in table.splitlines()[2:]] == list(group.model_fields), key


def test_the_default_config_and_the_examples_are_as_the_schema_says():
    validator = jsonschema.Draft202012Validator(
        yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text("utf-8"))
    )
    for path in sorted((ROOT / "config").glob("*.yaml")):
        config = yaml.safe_load(path.read_text("utf-8"))
        validator.validate(config)
        Configuration.of(config)
    assert not validator.is_valid({"training": {"epochs": 0}}) and not validator.is_valid({"trainig": {}})
    assert Configuration.of(yaml.safe_load((ROOT / "config/config.yaml").read_text("utf-8"))) == Configuration()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("given", [{}, None], ids=["defaults", "others"])
def test_a_group_goes_through_the_command_line(group, given):
    """As a rule writes it, a shell reads it, and argparse takes it."""
    options = group.of(OTHERWISE[group] if given is None else given)
    shell = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {arguments(options, group)}"], capture_output=True, text=True, check=True
    )
    line = argparse.ArgumentParser()
    add_options(line, group)
    assert group.of(values(group, line.parse_args(shell.stdout.splitlines()))) == options
    assert group.of(values(group, line.parse_args([]))) == group()


@pytest.mark.slow
def test_an_option_that_is_added_in_one_place_reaches_all(tmp_path):
    """A line in the class: YAML, schema, table, command line, and what is written into a model."""
    shutil.copytree(ROOT / "gigapipe", tmp_path / "gigapipe")
    path = tmp_path / "gigapipe/configuration/configuration.py"
    text = path.read_text("utf-8")
    line = '    novelty: Share = Field(0.125, description="how new")\n    epochs: Count'
    assert text.count("    epochs: Count") == 1
    path.write_text(text.replace("    epochs: Count", line), "utf-8")
    program = """if True:
        from gigapipe.cli import parser
        from gigapipe.configuration import Configuration
        from gigapipe.configuration.command_line import arguments
        from gigapipe.configuration.configuration import Learning
        from gigapipe.configuration.documents import defaults, schema, tables
        from gigapipe.cli.distributed import training_settings
        from gigapipe.training.segmentation import SegmenterSettings
        assert "novelty: 0.125" in defaults(Configuration) and "# how new" in defaults(Configuration)
        assert "novelty:" in schema(Configuration)
        row = "| `novelty` | a number of 0 or more and below 1 | `0.125` | how new |"
        assert row in tables(Configuration)["training"]
        given = ["--folds", "f", "--fold", "0", "--pyramids", "p", "--mpp", "2", "--output", "o", "--masks", "m"]
        args = parser().parse_args(["train-tissue", *given, "--novelty", "0.5"])
        assert SegmenterSettings.of(training_settings(args)).model_dump()["novelty"] == 0.5
        assert "--novelty 0.25" in arguments(Configuration.of({"training": {"novelty": 0.25}}).training, Learning)
    """
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, check=True)


def test_words_that_are_said_twice_are_the_same():
    """Those of the lower rooms, which know no options."""
    assert get_args(configuration.RESNETS) == tuple(RESNETS) and get_args(configuration.POOLS) == tuple(POOLS)
    assert set(get_args(Network.model_fields["norm"].annotation)) == {"auto", *NORMS}


@pytest.mark.parametrize(
    "function, options",
    [
        (cohort, Phantom),
        (build_pyramid, Pyramids),
        (RESNETS["resnet18"], Network),
        (download, Archive),
        (Client, Archive),
        (Checkpoints, Training),
        (Slide, PyramidPixels),
    ],
)
def test_defaults_of_functions_are_those_of_the_options(function, options):
    """Where the library is called without the workflow: an option of the same name has the same default."""
    renamed = {"keep": "keep_checkpoints"}
    found = {renamed.get(n, n): p.default for n, p in inspect.signature(function).parameters.items()}
    named = [n for n in found if n in options.model_fields and found[n] is not inspect.Parameter.empty]
    assert named and {n: found[n] for n in named} == {n: getattr(options(), n) for n in named}


WRONG = {
    "fold: 3": "fold: there is no such key; did you mean folds?",
    "training: {epoch: 3}": "training.epoch: there is no such key; did you mean epochs?",
    "pathvars: {xyz: x}": "pathvars.xyz: there is no such key; the keys here are results, resources",
    "training: {epochs: 0}": "training.epochs: found 0; allowed is a whole number of 1 or more. It is: passes over",
    "training: {epochs: true}": "training.epochs: found true; allowed is a whole number of 1 or more",
    "training: {stain: 2}": "training.stain: found 2; allowed is a number of 0 or more and below 1",
    "training: {memory: 6 gigs}": 'training.memory: found "6 gigs"; allowed is a size such as 6GiB or 500MB',
    "training: {device: gpu}": 'training.device: found "gpu"; allowed is auto, cpu, cuda, cuda:0',
    "training: {schedule: plateau}": "training.schedule: plateau needs patience",
    "training: {coarse_to_fine: true, weights: w}": "training.coarse_to_fine: it and weights both set the initial",
    "resolutions: [{mpp: fine, canvas: 8, mesh: [1, 1, 1]}]": 'resolutions[0].mpp: found "fine"; allowed is a number',
    "resolutions: [{canvas: 9}]": "resolutions[0].mpp: is missing; give a number above 0, µm per pixel",
    "resolutions: [{mpp: 8, canvas: large}]": 'resolutions[0].canvas: found "large"; allowed is a whole number of 1',
    "resolutions: [{mpp: 8, canvas: 9, mesh: [1, 1]}]": "resolutions[0].mesh: found [1, 1]; allowed is a list of 3",
    "resolutions: [{mpp: 8, canvas: 9, mesh: [3, 1, 1]}]": "training.batch: 4 slides cannot be divided evenly among",
    "resolutions: [{mpp: 8, canvas: 9, mesh: [1, 10, 1]}]": "resolutions[0].mesh: 10 × 1 ranks: a canvas of 9 px has",
    "resolutions: [{mpp: 8, canvas: 9, mesh: [1, 1, 1]}, {mpp: 8.0, canvas: 9, mesh: [1, 1, 1]}]": "given twice",
    "seeds: [0, 0]": "seeds: an entry is given twice",
    "{task: tissue, seeds: [0, 1]}": "task: tissue allows one seed",
    "{task: tissue, training: {network: 'mine.py:net', patch: 16, train: head}}": "training.train: is not used by task",
    "{task: tissue, training: {weights: w, train: head, network: 'mine.py:net'}}": "training.train: is not used",
    "{task: tissue, training: {shift: 0.1}}": "training.shift: is not used by task tissue; remove it",
    "training: {learning_rate: fast}": 'training.learning_rate: found "fast"; allowed is a number above 0, or auto',
    "{task: tissue, training: {weights: w.pt}}": "training.weights: is not used by task tissue; remove it",
    "folds: {by: hospital}": 'folds.by: found "hospital"; allowed is site or patient',
    "folds: {number: 2}": "folds.number: found 2; allowed is a whole number of 3 or more",
    "cohort: {projects: [TCGA-LUAD]}": "cohort: needs `slides`",
    "{slides: s, cohort: {label: project}}": "cohort.projects: give either projects or manifests",
    "{slides: s, cohort: {manifests: {a=b: m}}}": 'cohort.manifests: found "a=b"',
    "gdc: {token: t, api: 'http://a/b'}": "gdc.api: http://a/b is not encrypted, so that others",
    "{gdc: {token: t, api: 'http://a/b', plain_http: [c]}, maps: -1}": "allow it by plain_http: [a]",
    "pyramids: {shard: 100}": "pyramids.shard: 100 px must be a multiple of chunk, 512 px",
    "training: 7": "training: found 7; allowed is the keys",
    "training: {network: resnet19}": 'training.network: found "resnet19"; allowed is resnet10, resnet18, ',
    "training: {network_options: {depth: 3}}": "training.network_options: resnet18 takes width, norm and pool; network",
    "training: {network: 'mine:net', width: 8}": "training.width: is an option of ResNets; give arguments of mine:net",
    "training: {network: 'mine:net', network_options: 3}": "training.network_options: found 3; allowed is keywords",
    "{training: {epochs: 0, batch: 0, width: 0}}": "(2 more after this)",
}


@pytest.mark.parametrize("config", WRONG)
def test_a_wrong_config_is_said_in_a_sentence(config):
    with pytest.raises(InputError) as error:
        Configuration.of(yaml.safe_load(config), "config: ")
    message = str(error.value)
    assert message.startswith("config: ") and WRONG[config] in message
    assert "\n" not in message and "pydantic" not in message and "^" not in message


def test_numbers_may_be_written_as_yaml_reads_them():
    """1e-4 is a text to YAML, and 0.5 a number."""
    config = Configuration.of(yaml.safe_load("{training: {learning_rate: 1e-4}, pyramids: {ome_zarr: 0.5}}"))
    assert config.training.learning_rate == 1e-4 and config.pyramids.ome_zarr == "0.5"


def test_a_head_alone_takes_other_steps_unless_they_are_given():
    """In `training` and in methods, whether config.yaml's `auto` is there or not; and of a verb without options."""
    head = {"name": "mil", "network": "efficientnet_lite0", "weights": "imagenet", "train": "head"}
    usual, of_head = (0.0003, 0, 0.05), (0.001, 600, 0)

    def taken(one) -> tuple:
        return one.learning_rate, one.least_steps, one.shift

    written = yaml.safe_load((ROOT / "config/config.yaml").read_text("utf-8"))["training"]
    for training in ({}, written):
        config = Configuration.of({"training": training, "methods": [head, {"name": "whole"}]})
        assert [taken(one) for one in (config.training, *config.methods)] == [usual, of_head, usual]
        config = Configuration.of({"training": training | {"shift": 0.05, "learning_rate": 0.01}, "methods": [head]})
        assert taken(config.methods[0]) == (0.01, 600, 0.05)
    for given in ({}, {"least_steps": 0}, {"least_steps": 600, "learning_rate": 0.0003, "shift": 0.05}):
        method = Configuration.of({"methods": [head | given]}).methods[0]
        verb = argparse.ArgumentParser()
        add_options(verb, Learning)
        add_options(verb, Network)
        told = verb.parse_args(shlex.split(f"{arguments(method, Learning)} {arguments(method, Network)}"))
        again = Training.of(values(Learning, told) | values(Network, told))
        assert taken(again) == taken(method)
        assert ("--least-steps" in arguments(method, Learning)) == (given.get("least_steps") == 0)


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"training": {"batch": 40}}, "31 training slides of fold 0 are fewer than a step of 40"),
        ({"training": {"accumulate": 9}}, "31 training slides of fold 0 are fewer than a step of 36"),
        (
            {"folds": {"number": 25, "by": "patient"}},
            "20 patients, too few for 25 folds; add patients, or set folds: {number: 20}",
        ),
        (
            {"folds": {"number": 5}},
            "4 sites, too few for 5 folds that share none; set folds: {by: patient} in .*, or set folds: {number: 4}",
        ),
    ],
)
def test_a_design_that_cannot_come_to_its_end_is_refused(setting, message):
    sheet = pd.DataFrame(map(sheet_row, cohort(0, 40, 4, 0.0, folder="f")))
    check_design(sheet, Configuration())
    with pytest.raises(InputError, match=message):
        check_design(sheet, Configuration.of(setting))


def test_labels_that_are_not_needed_need_no_patients():
    sheet = pd.DataFrame(map(sheet_row, cohort(0, 8, 4, 0.0, folder="f")))
    folds = {"folds": {"number": 5, "by": "patient"}, "training": {"batch": 1}}
    check_design(sheet, Configuration.of(folds | {"task": "tissue"}))
    with pytest.raises(InputError, match="4 patients, too few for 5 folds"):
        check_design(sheet, Configuration.of(folds))


def test_published_folds_of_another_number_are_refused(tmp_path):
    sheet = pd.DataFrame(map(sheet_row, cohort(0, 12, 4, 0.0, folder="f")))
    given = tmp_path / "folds.csv"
    fold_of = {patient: i % 3 for i, patient in enumerate(sorted(sheet["patient"].unique()))}
    sheet.assign(fold=sheet["patient"].map(fold_of))[["slide", "fold"]].to_csv(given, index=False)
    with pytest.raises(InputError, match="folds.number: found 4, but .* has 3 folds"):
        check_design(sheet, Configuration.of({"folds": {"given": str(given)}}))


def test_a_finer_resolution_than_a_slides_own_is_refused_by_name(tmp_path):
    slide = tmp_path / "slide.svs"
    write_slide(slide, render(cohort(patients=2)[0]))
    fine = Configuration.of({"resolutions": [{"mpp": 0.1, "canvas": 9, "mesh": [1, 1, 1]}]})
    check_resolutions({slide: None}, Configuration())
    check_resolutions({Path("nowhere.svs"): None}, fine)
    with pytest.raises(InputError, match=f"{slide.name}.* coarser than the requested 0.1"):
        check_resolutions({slide: None}, fine)


def test_settings_of_older_models_are_read_and_their_checkpoints_gone_on_from():
    """As 0.1 wrote them; a checkpoint's identity is their JSON."""
    from gigapipe.training.classification import ClassifierSettings
    from gigapipe.training.segmentation import SegmenterSettings

    learning = {
        "mpp": 2.0, "fold": 1, "epochs": 6, "batch": 4, "learning_rate": 0.0003, "weight_decay": 0.01, "seed": 0,
        "precision": "float32", "accumulate": 1, "schedule": "cosine", "patience": None, "symmetries": "all",
        "shift": 0.0, "stain": 0.2, "brightness": 0.0, "contrast": 0.0,
    }  # fmt: skip
    network = {
        "canvas": 208, "classes": ["acinar", "solid"], "network": "resnet18", "norm": "batch", "pool": "average",
        "width": 64, "class_weights": "none", "background": "keep", "weights": None, "start": None,
    }  # fmt: skip
    for kind, settings in ((SegmenterSettings, learning), (ClassifierSettings, learning | network)):
        assert json.dumps(kind.of(settings).model_dump(), sort_keys=True) == json.dumps(settings, sort_keys=True)
        with pytest.raises(InputError, match="model.pt: novelty: there is no such key"):
            kind.of(settings | {"novelty": 1}, "model.pt: ")


def test_an_argument_s_old_name_is_taken_with_a_word(capsys):
    given = ["--folds", "f", "--fold", "0", "--pyramids", "p", "--mpp", "2", "--output", "o", "--canvas", "9"]
    assert parser().parse_args(["train", *given, "--silence", "45s"]).timeout == 0.75
    assert (
        capsys.readouterr().err
        == "gigapipe: --silence is now called --timeout; the old name will be removed in the next release\n"
    )
    assert parser().parse_args(["train", *given, "--timeout", "45s"]).timeout == 0.75
    assert parser().parse_args(["train", *given]).timeout is None and capsys.readouterr().err == ""


@pytest.mark.slow
def test_the_core_needs_none_of_the_workflow_s_packages():
    """`pip install gigapipe` gives gigapipe.spatial, check and plan; other verbs say what is missing."""
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]["workflow"]
    names = {re.split(r"[^\w-]", package)[0].replace("-", "_").lower() for package in extra}
    names |= {"sklearn", "openslide", "dask", "PIL"}
    program = f"""if True:
        import importlib.machinery
        import sys
        class Without:  # torch asks for specs of packages that it does not import: it is their import that fails
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {names!r}:
                    return importlib.machinery.ModuleSpec(name, self)
            def create_module(self, spec):
                raise ModuleNotFoundError(f"No module named {{spec.name!r}}", name=spec.name)
            def exec_module(self, module):
                pass
        sys.meta_path.insert(0, Without())
        import gigapipe.spatial
        import gigapipe.spatial.check
        from gigapipe.cli import main
        assert main(["plan", "unet", "64x64", "--machine", "summit", "--ranks", "2", "--scaling"]) == 0
        assert main(["folds", "sheet.tsv", "folder"]) == 1
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "gigapipe: pandas is not installed; install it with pip install 'gigapipe[workflow]'\n"
