"""What results were computed from and by what, as a Workflow Run RO-Crate: `ro-crate-metadata.json` in their folder.

Workflow Run RO-Crate 0.5 (https://w3id.org/ro/wfrun/workflow) is what catalogues of workflow runs read. The workflow's
files are copied beside it, for it describes only what is in the folder. It has names and MD5 of slides, but not their
paths or addresses, which may say more than their owner wants to publish.
"""

import datetime
import hashlib
import json
import shutil
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from rocrate.model.computationalworkflow import ComputationalWorkflow
from rocrate.model.contextentity import ContextEntity
from rocrate.model.entity import Entity
from rocrate.rocrate import ROCrate

import gigapipe
from gigapipe.atomic import atomic_file, atomic_folder
from gigapipe.configuration import Configuration
from gigapipe.disks import read_again
from gigapipe.errors import InputError
from gigapipe.evaluation.identity import identity_beside
from gigapipe.evaluation.leftovers import leftovers
from gigapipe.evaluation.software import NOT_INSTALLED, revision, versions
from gigapipe.pyramids.folders import NAME
from gigapipe.slides.written_tables import read_written

METADATA = "ro-crate-metadata.json"
COPIES = "provenance"
"""The folder, among the results, of the copies of the workflow's files."""

PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
TERMS = "https://w3id.org/ro/terms/workflow-run/context"
"""Where `md5` and `sha256` are defined."""

ADDRESSES = {
    "Python": "https://www.python.org/",
    "torch": "https://pytorch.org/",
    "snakemake": "https://snakemake.github.io/",
}
"""Of software; that of a library which is not here is its page in the package index."""

FORMATS = {
    ".tsv": "text/tab-separated-values",
    ".json": "application/json",
    ".html": "text/html",
    ".md": "text/markdown",
    ".png": "image/png",
    ".yaml": "application/yaml",
    ".pt": "application/octet-stream",
}

SAYS = {
    "config.yaml": "all options of the run",
    "slides.tsv": "what became of each slide, with its MD5",
    "slides.png": "all slides, with the outline of their tissue",
    "folds.tsv": "which slide is in which fold",
    "splits.tsv": "the role of each slide for each test fold",
    "comparison.tsv": "the comparison of resolutions",
    "methods.tsv": "the differences between methods",
    "external.tsv": "the comparison with other cohorts",
    "dice.tsv": "the overlap of true and predicted masks",
    "report.html": "the report",
    "model.pt": "weights of a trained network",
    "training.json": "how a network was trained, and what it cost",
    "predictions.tsv": "scores of slides that were held out",
}
"""The files of results that are described, by their names."""

INPUTS, OUTPUTS = ("config.yaml",), ("comparison.tsv", "dice.tsv", "report.html", "folds.tsv", "slides.tsv")
"""Those that have a parameter of the workflow."""


def write_crate(results: Path, workflow: Path) -> None:
    """Write the record of the results in a folder, which `workflow`, the folder of its Snakefile, has made.

    Raises InputError if the results have no config or no list of slides.
    """
    try:
        options = yaml.safe_load((results / "config.yaml").read_text(encoding="utf-8"))
        slides = read_written(results / "slides.tsv", dtype=str, keep_default_na=False)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"crate: {results} has no readable config.yaml and slides.tsv ({error}); run the workflow there first"
        ) from None
    config = Configuration.of(options, f"config {results}/config.yaml: ")
    with atomic_folder(results / COPIES) as partial:
        shutil.copytree(workflow, partial / "workflow", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    crate = ROCrate(version="1.1")
    crate.metadata.extra_contexts.append(TERMS)
    files = [_file(crate, results, path) for path in _files(results, config)]
    folders = [_folder(crate, path, says) for path, says in _folders(results)]
    sources = [_slide(crate, row) for row in slides.to_dict("records") if row["fate"] == "whole"]
    by_name = {file.id: file for file in files}
    ended = max((results / name).stat().st_mtime for name in by_name)
    program = _workflow(crate, results)
    for role, names in (("input", INPUTS), ("output", OUTPUTS)):
        for name in filter(by_name.__contains__, names):
            program.append_to(role, _parameter(crate, by_name[name]))
    given = [by_name[name] for name in INPUTS]
    action = crate.add_action(
        program,
        identifier="#run",
        object=[*given, *sources],
        result=[*(file for file in files if file not in given), *folders],
        properties={
            "name": f"Run of gigapipe, task {config.task}",
            "description": f"From {len(sources)} slides to {config.task} at {_resolutions(config)} µm per pixel",
            "endTime": datetime.datetime.fromtimestamp(ended, datetime.UTC).isoformat(timespec="seconds"),
            "actionStatus": "http://schema.org/CompletedActionStatus",
        },
    )
    _root(crate, config, action)
    with atomic_file(results / METADATA) as partial:
        partial.write_text(json.dumps(crate.metadata.generate(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _root(crate: ROCrate, config: Configuration, action: Entity) -> None:
    profiles = [
        crate.add(ContextEntity(crate, url, {"@type": "CreativeWork", "name": name, "version": url.rpartition("/")[2]}))
        for url, name in PROFILES.items()
    ]
    crate.root_dataset["conformsTo"] = profiles
    crate.root_dataset["mentions"] = action
    crate.name = f"Results of gigapipe: {config.task} at {_resolutions(config)} µm per pixel"
    crate.description = (
        "Whole-slide networks, their predictions on held-out patients, and the comparison of resolutions."
    )
    terms = "The owner of the slides decides under which terms these results may be used."
    license = {"@type": "CreativeWork", "name": "not stated", "description": terms}
    crate.license = crate.add(ContextEntity(crate, "#license", license))


def _resolutions(config: Configuration) -> str:
    return ", ".join(f"{resolution.mpp:g}" for resolution in config.resolutions)


def _files(results: Path, config: Configuration) -> Iterator[Path]:
    """Those that are described: of networks only those that the config still has."""
    gone = leftovers(results, config)
    places = [
        results,
        *sorted(results.glob("folds/*")),
        *sorted(path.parent for path in results.glob("*um/**/model.pt")),
    ]
    for place in places:
        if not any(place.is_relative_to(folder) for folder in gone):
            yield from (place / name for name in SAYS if (place / name).is_file())


def _folders(results: Path) -> Iterator[tuple[str, str]]:
    """Folders of images, from the results, and what they are."""
    for store in sorted(results.glob(f"pyramids/*/{NAME}")):
        name = store.parent.name
        yield f"pyramids/{name}/{NAME}/", f"slide {name} at all resolutions, with its tissue, as OME-Zarr"
    for maps in sorted(results.glob("*um/**/maps")):
        place = maps.relative_to(results)
        resolution, *method = place.parts[:-1]
        of = f", method {method[0]}" if method else ""
        yield f"{place}/", f"class activation maps at {resolution.removesuffix('um')} µm per pixel{of}"


def _file(crate: ROCrate, results: Path, path: Path) -> Entity:
    place = path.relative_to(results).as_posix()
    about: dict[str, Any] = {
        "name": place,
        "description": SAYS[path.name],
        "contentSize": str(path.stat().st_size),
        "encodingFormat": FORMATS[path.suffix],
        "sha256": _sha256(path),
    }
    if path.name == "model.pt" and (identity := identity_beside(path)):
        about["identifier"] = identity["network"]  # as in the tables of predictions and of the comparison
    return crate.add_file(path, place, properties=about)


def _sha256(path: Path) -> str:
    def whole() -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return read_again(whole, path)


def _folder(crate: ROCrate, place: str, says: str) -> Entity:
    return crate.add_dataset(dest_path=place, properties={"name": place.rstrip("/"), "description": says})


def _slide(crate: ROCrate, row: dict[Hashable, Any]) -> Entity:
    about = {
        "@type": ["CreativeWork", "ImageObject"],
        "name": row["slide"],
        "description": f"Whole-slide image, {row.get('columns')} × {row.get('rows')} px, {row.get('mpp')} µm per pixel",
    }
    if row.get("md5"):
        about["md5"] = row["md5"]
    return crate.add(ContextEntity(crate, f"#slide-{row['slide']}", about))


def _workflow(crate: ROCrate, results: Path) -> ComputationalWorkflow:
    """The workflow, with the software that it ran with."""
    place = f"{COPIES}/workflow/Snakefile"
    workflow = crate.add_workflow(
        results / place,
        place,
        main=True,
        lang="snakemake",
        properties={"name": "gigapipe", "version": gigapipe.__version__},
    )
    workflow["encodingFormat"] = "text/plain"
    workflow["conformsTo"] = {"@id": "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"}
    workflow["description"] = "From raw pathology slides to trained whole-slide models"
    workflow["license"] = "https://spdx.org/licenses/Apache-2.0"
    workflow["softwareRequirements"] = list(_software(crate))
    for path in sorted((results / COPIES).rglob("*")):
        if path.is_file() and path != results / place:
            about = {"name": path.name, "encodingFormat": "text/plain", "sha256": _sha256(path)}
            workflow.append_to("hasPart", crate.add_file(path, path.relative_to(results).as_posix(), properties=about))
    return workflow


def _software(crate: ROCrate) -> Iterable[Entity]:
    about = {"@type": "SoftwareApplication", "name": "gigapipe"}
    own = about | {"softwareVersion": f"{gigapipe.__version__}, revision {revision()}"}
    yield crate.add(ContextEntity(crate, "#gigapipe", own))
    for name, version in versions().items():
        if version != NOT_INSTALLED:
            address = ADDRESSES.get(name, f"https://pypi.org/project/{name}/")
            other = about | {"name": name, "softwareVersion": version, "url": {"@id": address}}
            yield crate.add(ContextEntity(crate, address, other))


def _parameter(crate: ROCrate, file: Entity) -> Entity:
    """The workflow's parameter of which a file is the value."""
    name = Path(file.id).stem
    made = crate.add_formal_parameter(name, "File", f"#parameter-{name}", description=file["description"])
    made["workExample"] = file
    file["exampleOfWork"] = made
    return made
