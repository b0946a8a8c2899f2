# Config and sample sheet, checked before anything runs, and the helpers that rules share.

import os
import shlex
from pathlib import Path
from urllib.parse import urlparse

import jsonschema
import yaml
from snakemake.exceptions import WorkflowError

from gigapipe.cli.messages import log_to_stderr
from gigapipe.errors import InputError
from gigapipe.gdc.client import addresses_of
from gigapipe.progress import watch
from gigapipe.slides import phantom
from gigapipe.slides.room import Wanted, announce
from gigapipe.slides.sheet import read_sheet

# Slides of one file; the others (MRXS, DICOM) are folders, and no URL fetches one whole.
SUFFIXES = {".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif", ".svslide"}


def validator(schema):
    path = Path(workflow.basedir) / "workflow" / "schemas" / schema
    return jsonschema.Draft202012Validator(yaml.safe_load(path.read_text()))


def check(instance, validator, where):
    """Raise a one-line WorkflowError for the first thing in `instance` that is not as its schema says."""
    error = jsonschema.exceptions.best_match(validator.iter_errors(instance))
    if error:
        place = error.json_path.removeprefix("$").lstrip(".") or "top level"
        meaning = error.schema.get("description", "see config/README.md")
        raise WorkflowError(f"{where}: {place}: {error.message} ({meaning})")


def sample_sheet():
    """The cohort, by slide: the user's sheet, or the phantoms' own; None if the sheet has to be asked for first."""
    if config.get("cohort") and not config.get("slides"):
        raise WorkflowError(
            "config: cohort: needs `slides`, the sample sheet to make of it"
        )
    if config.get("cohort") and not Path(config["slides"]).exists():
        return None
    try:
        if not config.get("slides"):
            slides = phantom.cohort(**config["phantom"], folder="<results>/phantom")
            return {slide.slide: phantom.sheet_row(slide) for slide in slides}
        sheet = read_sheet(config["slides"], config.get("source"), LABELLED)
    except InputError as error:
        raise WorkflowError(str(error))
    slides_schema = validator("slides.schema.yaml")
    for row in sheet.to_dict("records"):
        where = f"sample sheet {config['slides']}: slide {row['slide']}"
        check(row, slides_schema, where)
        if not is_remote(row["source"]) and not Path(row["source"]).exists():
            raise WorkflowError(
                f"{where}: no such file: {row['source']}; correct its source, or remove the row"
            )
        if not LABELLED and row.get("mask") and not Path(row["mask"]).exists():
            raise WorkflowError(
                f"{where}: no such file: {row['mask']}; correct its mask, or leave it empty"
            )
    return sheet.set_index("slide", drop=False).to_dict("index")


def is_remote(source):
    return source.startswith(("http://", "https://", "gdc:"))


check(config, validator("config.schema.yaml"), "config")
LABELLED = config["task"] == "classes"
SHEET = sample_sheet()
SHEET_FILE = config.get("slides") or "<results>/phantom/slides.tsv"
RESOLUTIONS = {f"{r['mpp']:g}": r for r in config["resolutions"]}
FOLDS = range(config["folds"]["number"])
SEEDS = config["seeds"]
BY = config["folds"]["by"]
SPLITS = (
    ["given"]
    if config["folds"].get("given")
    else [BY] if BY in ("site", "patient") else BY
)
# Where folds are, and what is made of one network: a level deeper if the cohort is divided more than once.
DIVISION, NETWORK = "", "{mpp}um/fold-{fold}"
if len(SPLITS) * len(SEEDS) > 1:
    DIVISION, NETWORK = "folds/{split}-{seed}/", "{mpp}um/{split}-{seed}/fold-{fold}"
    if not LABELLED:
        raise WorkflowError(
            "config: task tissue takes one seed and one kind of folds; give one of each"
        )
if len(SPLITS) > 1 and {row["site"] for row in (SHEET or {}).values()} == {"unknown"}:
    raise WorkflowError(
        "config: folds.by: the sheet knows no site, so that both kinds of folds are the same; give patient"
    )
if len(RESOLUTIONS) < len(config["resolutions"]):
    raise WorkflowError("config: resolutions: an mpp is given twice; remove one")
if weights := config["training"].get("weights"):
    if not Path(weights).exists():
        raise WorkflowError(f"config: training.weights: no such file: {weights}")
if config["training"]["schedule"] == "plateau" and not config["training"]["patience"]:
    raise WorkflowError(
        "config: training.schedule: plateau needs training.patience, the epochs after which the learning rate falls"
    )
if config["training"]["coarse_to_fine"] and config["training"].get("weights"):
    raise WorkflowError(
        "config: training: coarse_to_fine and weights are two beginnings of one network; remove one"
    )
for resolution in config["resolutions"]:
    if config["training"]["batch"] % resolution["mesh"][0]:
        raise WorkflowError(
            f"config: training.batch: {config['training']['batch']} slides do not divide over the "
            f"{resolution['mesh'][0]} data ranks at {resolution['mpp']} µm/px"
        )


wildcard_constraints:
    slide="|".join(map(re.escape, SHEET or [])),
    mpp="|".join(map(re.escape, RESOLUTIONS)),
    fold=r"\d+",
    seed=r"\d+",
    split="|".join(SPLITS),


def slide_file(slide):
    """Where a slide's file is, or will be once it is fetched."""
    source = SHEET[slide]["source"]
    if not is_remote(source):
        return source
    name = (
        SHEET[slide].get("filename", "")
        if source.startswith("gdc:")
        else urlparse(source).path
    )
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise WorkflowError(
            f"slide {slide}: its file's name ends in {suffix!r}, not in one of {', '.join(sorted(SUFFIXES))}; "
            "fetch it by hand and give its path as source"
        )
    return f"<resources>/slides/{slide}{suffix}"


def file_at_source(wildcards):
    """Arguments of `gigapipe download` that say which file it is: of the archive its name, elsewhere its address."""
    row = SHEET[wildcards.slide]
    if row["source"].startswith("gdc:"):
        return ["--filename", row["filename"]]
    return [row["source"]]


def release_of(wildcards):
    """The arguments that say which release of the file it is, as far as the sheet knows."""
    row = SHEET[wildcards.slide]
    release = [row["source"]] if row["source"].startswith("gdc:") else []
    known = [f"--{key} {row[key]}" for key in ("md5", "size") if row.get(key)]
    return " ".join(release + known)


def with_pyramid():
    """The slides whose pyramids are made."""
    folder = Path(config.get("pathvars", {}).get("results", "results")) / "pyramids"
    return {path.name for path in folder.glob("[!.]*")} & set(SHEET)


def to_fetch():
    """The slides that neither are here nor have a pyramid: their files, and what `announce` is told of them."""
    resources = config.get("pathvars", {}).get("resources", "resources")
    made, wanted = with_pyramid(), {}
    for slide in REMOTE:
        path = Path(slide_file(slide).replace("<resources>", resources))
        if slide not in made and not path.exists():
            row = SHEET[slide]
            name, size = row.get("filename", ""), int(row.get("size") or 0)
            addresses = addresses_of(
                row["source"], name, config["gdc"]["api"], config["gdc"]["mirrors"]
            )
            wanted[path] = Wanted(addresses, size, resumable=bool(row.get("md5")))
    return wanted


def announce_work():
    """Say what is going to be fetched, refuse it if the disk cannot hold it, and tell of the pyramids as they come."""
    log_to_stderr()
    try:
        announce(to_fetch(), config["keep_slides"])
    except InputError as error:
        raise WorkflowError(str(error))
    watch("pyramids", lambda: len(with_pyramid()), len(SHEET))


COMMON = [
    "epochs",
    "batch",
    "learning_rate",
    "weight_decay",
    "precision",
    "schedule",
    "patience",
    "accumulate",
    "symmetries",
    "stain",
    "brightness",
    "contrast",
]
# Of a rank, and not of what it learns: for another, nothing is trained again.
LIMITS = ["device", "memory", "stage"]
CLASSIFIER = [
    "network",
    "width",
    "norm",
    "pool",
    "weights",
    "class_weights",
    "shift",
    "background",
]


def options(section, keys):
    """Options of `gigapipe`, of what a section of the config says of these keys."""
    chosen = {key: config[section].get(key) for key in keys}
    return " ".join(
        f"--{key.replace('_', '-')} {shlex.quote(str(value))}"
        for key, value in chosen.items()
        if value is not None
    )


def pyramid_options():
    """Options of `gigapipe pyramid`, of what the config says."""
    keys = ["source_level", "damaged", "colours", "chunk", "shard", "ome_zarr"]
    flags = ["assume_mpp", "clean_background"]
    chosen = [
        f"--{flag.replace('_', '-')}" for flag in flags if config["pyramids"][flag]
    ]
    return " ".join([options("pyramids", keys), *chosen])


def coarser_model(wildcards):
    """The model that this training begins with: of the next coarser resolution and the same fold, if it is to."""
    coarser = [mpp for mpp in RESOLUTIONS if float(mpp) > float(wildcards.mpp)]
    if not config["training"]["coarse_to_fine"] or not coarser:
        return []
    of_coarser = dict(wildcards.items()) | {"mpp": min(coarser, key=float)}
    return f"<results>/{NETWORK}/model.pt".format(**of_coarser)


def for_each_model(pattern):
    return expand(pattern, mpp=RESOLUTIONS, split=SPLITS, seed=SEEDS, fold=FOLDS)


def once_each(pattern):
    """The files of a rule that is run once for several networks."""
    return list(dict.fromkeys(for_each_model(pattern)))


def at_resolution(pattern):
    """The files of a rule, of all networks of the resolution in the wildcards."""

    def files(wildcards):
        return once_each(pattern.replace("{mpp}", wildcards.mpp))

    return files


def split_of(wildcards):
    """What folds do not share."""
    return getattr(wildcards, "split", SPLITS[0])


def seed_of(wildcards):
    """What the division into folds begins with, and the weights."""
    return getattr(wildcards, "seed", SEEDS[0])
