# Config and sample sheet, checked before anything runs, and the helpers that rules share.

import csv
import functools
import os
import shlex
import sys
from pathlib import Path
from urllib.parse import urlparse

import jsonschema
import pandas
import yaml
from snakemake.exceptions import WorkflowError

from gigapipe.cli.messages import log_to_stderr
from gigapipe.configuration import Configuration
from gigapipe.configuration.command_line import arguments
from gigapipe.configuration.configuration import (
    Archive,
    Computing,
    Learning,
    Network,
    Phantom,
    PyramidPixels,
)
from gigapipe.errors import InputError
from gigapipe.evaluation.design import check_design, check_resolutions
from gigapipe.gdc.client import addresses_of
from gigapipe.progress import watch
from gigapipe.slides import phantom
from gigapipe.slides.disk_space import Wanted, announce
from gigapipe.slides.sheet import read_sheet

# Slides of one file; the others (MRXS, DICOM) are folders, and no URL fetches one whole.
SUFFIXES = {".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif", ".svslide"}


def refuse(message):
    """End before anything runs, with one line: Snakemake would add places in these files, which say nothing to users."""
    raise SystemExit(message)


def configuration():
    """The config, checked; what it does not set is at its default."""
    try:
        return Configuration.of(config, "config: ")
    except InputError as error:
        refuse(str(error))


def check_row(row, validator, where):
    """Refuse the first thing in a sheet's row that is not as its schema says."""
    error = jsonschema.exceptions.best_match(validator.iter_errors(row))
    if error:
        place = error.json_path.removeprefix("$").lstrip(".")
        meaning = error.schema.get("description", "see config/README.md")
        refuse(f"{where}: {place}: {error.message} ({meaning})")


def sample_sheet():
    """The cohort, by slide: the user's sheet, or the phantoms' own; None if the sheet has to be asked for first."""
    if CONFIG.cohort and not Path(CONFIG.slides).exists():
        return None
    try:
        if not CONFIG.slides:
            slides = phantom.cohort(
                **CONFIG.phantom.model_dump(), folder="<results>/phantom"
            )
            return {slide.slide: phantom.sheet_row(slide) for slide in slides}
        sheet = read_sheet(CONFIG.slides, CONFIG.source, LABELLED)
    except InputError as error:
        refuse(str(error))
    schema = Path(workflow.source_path("../schemas/slides.schema.yaml"))
    validator = jsonschema.Draft202012Validator(yaml.safe_load(schema.read_text()))
    for row in sheet.to_dict("records"):
        where = f"sample sheet {CONFIG.slides}: slide {row['slide']}"
        check_row(row, validator, where)
        if not is_remote(row["source"]) and not Path(row["source"]).exists():
            refuse(
                f"{where}: no such file: {row['source']}; correct its source, or remove the row"
            )
        if not LABELLED and row.get("mask") and not Path(row["mask"]).exists():
            refuse(
                f"{where}: no such file: {row['mask']}; correct its mask, or leave it empty"
            )
    return sheet.set_index("slide", drop=False).to_dict("index")


@functools.cache
def suitable_sheet():
    """The sample sheet, of a cohort that folds and batches suit, and resolutions its slides: asked for with its folds.

    Slides and pyramids alone any cohort may have. Jobs, which read this file too, need not look again.
    """
    if not workflow.is_main_process:
        return SHEET_FILE
    here = {
        Path(row["source"]): float(row["mpp"]) if row.get("mpp") else None
        for row in SHEET.values()
        if CONFIG.slides and not is_remote(row["source"])
    }
    try:
        check_design(pandas.DataFrame(SHEET.values()), CONFIG)
        longest = check_resolutions(here, CONFIG)
    except InputError as error:
        refuse(str(error))
    if not Path(CANVASES.replace("<results>", CONFIG.pathvars.results)).exists():
        for mpp in AUTO_CANVASES:
            most = f", at most {longest / float(mpp):.0f} px a side" if longest else ""
            print(
                f"canvas at {mpp} µm/px: chosen when the pyramids are there{most}",
                file=sys.stderr,
            )
    return SHEET_FILE


def is_remote(source):
    return source.startswith(("http://", "https://", "gdc:"))


CONFIG = configuration()
LABELLED = CONFIG.task == "classes"
SHEET = sample_sheet()
SHEET_FILE = CONFIG.slides or "<results>/phantom/slides.tsv"
RESOLUTIONS = {f"{resolution.mpp:g}": resolution for resolution in CONFIG.resolutions}
# Of these the canvas is chosen when the pyramids are there.
AUTO_CANVASES = [
    mpp for mpp, r in RESOLUTIONS.items() if r.canvas == "auto" and LABELLED
]
CANVASES = "<results>/canvases.tsv"
FOLDS = range(CONFIG.folds.number)
SEEDS = CONFIG.seeds
SPLITS = CONFIG.folds.splits
# Where folds are, and what is made of one network: a level deeper if the cohort is divided more than once.
DIVISION, NETWORK = "", "{mpp}um/fold-{fold}"
if len(SPLITS) * len(SEEDS) > 1:
    DIVISION, NETWORK = "folds/{split}-{seed}/", "{mpp}um/{split}-{seed}/fold-{fold}"
if len(SPLITS) > 1 and {row["site"] for row in (SHEET or {}).values()} == {"unknown"}:
    refuse(
        "config: folds.by: the sheet knows no site, so that both kinds of folds are the same; give patient"
    )
if CONFIG.training.weights and not Path(CONFIG.training.weights).exists():
    refuse(f"config: training.weights: no such file: {CONFIG.training.weights}")


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
        refuse(
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
    folder = Path(CONFIG.pathvars.results) / "pyramids"
    return {path.name for path in folder.glob("[!.]*")} & set(SHEET)


def to_fetch():
    """The slides that neither are here nor have a pyramid: their files, and what `announce` is told of them."""
    made, wanted = with_pyramid(), {}
    for slide in REMOTE:
        path = Path(slide_file(slide).replace("<resources>", CONFIG.pathvars.resources))
        if slide not in made and not path.exists():
            row = SHEET[slide]
            name, size = row.get("filename", ""), int(row.get("size") or 0)
            addresses = addresses_of(
                row["source"], name, CONFIG.gdc.api, CONFIG.gdc.mirrors
            )
            wanted[path] = Wanted(addresses, size, resumable=bool(row.get("md5")))
    return wanted


def announce_work():
    """Say what is going to be fetched, refuse it if the disk cannot hold it, and tell of the pyramids as they come."""
    log_to_stderr()
    try:
        announce(to_fetch(), CONFIG.keep_slides)
    except InputError as error:
        raise WorkflowError(str(error))
    watch("pyramids", lambda: len(with_pyramid()), len(SHEET))


def canvas_of(wildcards, input):
    """Pixels a side of a resolution's canvas; until one that is chosen is known, a dry run shows <TBD>."""
    if not input.canvases:
        return RESOLUTIONS[wildcards.mpp].canvas
    with open(input.canvases) as table:
        chosen = {
            row["mpp"]: row["canvas"] for row in csv.DictReader(table, delimiter="\t")
        }
    return next(c for mpp, c in chosen.items() if float(mpp) == float(wildcards.mpp))


def coarser_model(wildcards):
    """The model that this training begins with: of the next coarser resolution and the same fold, if it is to."""
    coarser = [mpp for mpp in RESOLUTIONS if float(mpp) > float(wildcards.mpp)]
    if not CONFIG.training.coarse_to_fine or not coarser:
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
