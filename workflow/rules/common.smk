# Config and sample sheet, checked before anything runs, and the helpers that rules share.

from pathlib import Path
from urllib.parse import urlparse

import jsonschema
import pandas as pd
import yaml
from snakemake.exceptions import WorkflowError

from gigapipe.errors import InputError
from gigapipe.slides import phantom
from gigapipe.slides.sheet import read_sheet

# Slides of one file; the others (MRXS, DICOM) are folders, and no URL fetches one whole.
SUFFIXES = {".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif", ".svslide"}


def check(instance, schema, where):
    """Raise a one-line WorkflowError for the first thing in `instance` that is not as `schema` says."""
    path = Path(workflow.basedir) / "workflow" / "schemas" / schema
    validator = jsonschema.Draft202012Validator(yaml.safe_load(path.read_text()))
    error = jsonschema.exceptions.best_match(validator.iter_errors(instance))
    if error:
        place = error.json_path.removeprefix("$").lstrip(".") or "top level"
        meaning = error.schema.get("description", "see config/README.md")
        raise WorkflowError(f"{where}: {place}: {error.message} ({meaning})")


def sample_sheet():
    """The cohort, one row a slide: the user's sheet, or the phantoms' own."""
    if not config.get("slides"):
        slides = phantom.cohort(**config["phantom"], folder="<results>/phantom")
        return pd.DataFrame(map(phantom.sheet_row, slides))
    try:
        sheet = read_sheet(config["slides"], config.get("source"))
    except InputError as error:
        raise WorkflowError(str(error))
    for row in sheet.to_dict("records"):
        check(
            row,
            "slides.schema.yaml",
            f"sample sheet {config['slides']}: slide {row['slide']}",
        )
    return sheet


check(config, "config.schema.yaml", "config")
SHEET = sample_sheet().set_index("slide")
SHEET_FILE = config.get("slides") or "<results>/phantom/slides.tsv"
RESOLUTIONS = {f"{r['mpp']:g}": r for r in config["resolutions"]}
FOLDS = range(config["folds"]["number"])


wildcard_constraints:
    slide="|".join(map(re.escape, SHEET.index)),
    mpp="|".join(map(re.escape, RESOLUTIONS)),
    fold=r"\d+",


def is_url(source):
    return source.startswith(("http://", "https://"))


def slide_file(slide):
    """Where a slide's file is, or will be once it is fetched."""
    source = SHEET.loc[slide, "source"]
    if not is_url(source):
        return source
    suffix = Path(urlparse(source).path).suffix.lower()
    if suffix not in SUFFIXES:
        raise WorkflowError(
            f"slide {slide}: its address ends in {suffix!r}, not in one of {', '.join(sorted(SUFFIXES))}; "
            "fetch it by hand and give its path as source"
        )
    return f"<resources>/slides/{slide}{suffix}"


def mesh_of(wildcards):
    """Data, rows, columns of the ranks at a resolution."""
    return RESOLUTIONS[wildcards.mpp]["mesh"]


def ranks_of(wildcards):
    data, rows, columns = mesh_of(wildcards)
    return data * rows * columns


def for_each_model(pattern):
    return expand(pattern, mpp=RESOLUTIONS, fold=FOLDS)
