"""The record of what results were computed from: read back with the library of RO-Crate, compared with the files."""

import hashlib
import json

import pandas as pd
import pytest
import yaml
from launching import ROOT
from rocrate.rocrate import ROCrate

import gigapipe
from gigapipe.cli import main
from gigapipe.configuration import Configuration
from gigapipe.evaluation.software import revision

SLIDES = [
    {"slide": "a", "fate": "whole", "rows": 20, "columns": 30, "mpp": 0.5, "md5": "0cc175b9c0f1b6a831c399e269772661"},
    {"slide": "b", "fate": "whole", "rows": 20, "columns": 30, "mpp": 0.5, "md5": "92eb5ffee6ae2fec3ad71c777531578f"},
    {"slide": "c", "fate": "slide c: no tissue was found"},
]


@pytest.fixture
def results(tmp_path):
    """Two networks of a run, one of a resolution that it no longer has, and a pyramid."""
    config = Configuration.of({"resolutions": [{"mpp": 8}], "folds": {"number": 3}}, "")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    pd.DataFrame(SLIDES).to_csv(tmp_path / "slides.tsv", sep="\t", index=False)
    (tmp_path / "comparison.tsv").write_text("mpp\n8\n")
    for network in ("8um/fold-0", "8um/fold-1", "4um/fold-0"):
        (tmp_path / network).mkdir(parents=True)
        (tmp_path / network / "model.pt").write_bytes(network.encode())
        (tmp_path / network / "training.json").write_text(json.dumps({"identity": {"network": f"id of {network}"}}))
    (tmp_path / "pyramids/a/image.zarr").mkdir(parents=True)
    return tmp_path


def test_a_crate_names_slides_config_weights_and_software_with_their_checksums(results):
    assert main(["crate", str(results)]) == 0
    crate = ROCrate(results)
    run = crate.get("#run")
    used = {one["name"]: one.get("md5") for one in run["object"] if one.id.startswith("#slide-")}
    assert used == {row["slide"]: row["md5"] for row in SLIDES[:2]}  # what was left out was not used
    assert crate.get("config.yaml") in run["object"] and crate.get("comparison.tsv") in run["result"]
    weights = crate.get("8um/fold-1/model.pt")
    assert weights in run["result"] and weights["identifier"] == "id of 8um/fold-1"
    assert weights["sha256"] == hashlib.sha256(b"8um/fold-1").hexdigest()
    assert crate.get("4um/fold-0/model.pt") is None  # of a resolution that the config no longer has
    assert crate.get("pyramids/a/image.zarr/") in run["result"]
    assert run["instrument"] is crate.mainEntity and "ComputationalWorkflow" in crate.mainEntity.type
    assert crate.get("#gigapipe")["softwareVersion"] == f"{gigapipe.__version__}, revision {revision()}"
    assert {one["name"] for one in crate.mainEntity["softwareRequirements"]} >= {"gigapipe", "torch", "snakemake"}
    copied = (results / "provenance/workflow/Snakefile").read_bytes()
    assert copied == (ROOT / "workflow/Snakefile").read_bytes()
    described = [one for one in crate.data_entities if "File" in one.type]
    assert len(described) > 30 and all((results / one.id).is_file() for one in described)


def test_a_crate_written_again_is_the_same_but_for_its_date(results):
    def written() -> list[dict]:
        main(["crate", str(results)])
        graph = json.loads((results / "ro-crate-metadata.json").read_text())["@graph"]
        return [{key: value for key, value in one.items() if key != "datePublished"} for one in graph]

    assert written() == written()


def test_without_results_there_is_no_crate(tmp_path, capsys):
    assert main(["crate", str(tmp_path)]) == 1
    assert "has no readable config.yaml and slides.tsv" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
