# The sample sheet, checked before anything runs, and the helpers that rules share.

import csv
import functools
import math
import os
import sys
from pathlib import Path
from urllib.parse import urlparse

import jsonschema
import pandas
import yaml

from gigapipe.configuration.command_line import arguments
from gigapipe.configuration.configuration import (
    Comparison,
    Computing,
    Learning,
    Network,
    OwnNetwork,
)
from gigapipe.configuration.sources import Archive, Phantom
from gigapipe.errors import InputError
from gigapipe.evaluation.design import check_design, check_resolutions
from gigapipe.evaluation.divisions import divisions, note_divisions
from gigapipe.given_text import option
from gigapipe.published_weights import OFFICIAL
from gigapipe.slides import phantom
from gigapipe.slides.readers import one_file, suffix_of
from gigapipe.slides.sheet import read_sheet


def absence_of(path):
    """Why a file cannot be seen: there is none, or the way to it is closed. None if it can."""
    try:
        return None if Path(path).exists() else "no such file"
    except OSError as error:
        return error.strerror


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
        sheet = read_sheet(
            CONFIG.slides,
            CONFIG.source,
            TASK.needs == "label",
            CONFIG.confirmed_labels,
            TARGET,
        )
    except (InputError, OSError) as error:
        refuse(said(error))
    schema = Path(workflow.source_path("../schemas/slides.schema.yaml"))
    validator = jsonschema.Draft202012Validator(
        yaml.safe_load(schema.read_text(encoding="utf-8"))
    )
    for row in sheet.to_dict("records"):
        where = f"sample sheet {CONFIG.slides}: slide {row['slide']}"
        check_row({k: v for k, v in row.items() if k != TARGET}, validator, where)
        if not is_remote(row["source"]) and (absence := absence_of(row["source"])):
            lacking = ", ".join(not_in_pyramid(row["slide"]))
            if lacking:
                refuse(
                    f"{where}: {absence}: {row['source']}, and no pyramid of it has {lacking}; correct its source, "
                    "or remove the row"
                )
        if TASK.needs == "mask" and not row.get("mask"):
            refuse(
                f"{where}: has no mask, which task {CONFIG.task} needs; give one, or remove the row"
            )
        for drawn in TASK.drawings:
            if not row.get(drawn) or not (absence := absence_of(row[drawn])):
                continue
            if not stands_without(row["slide"], drawn):
                refuse(
                    f"{where}: {absence}: {row[drawn]}; correct its {drawn}, or leave it empty"
                )
    return sheet.set_index("slide", drop=False).to_dict("index")


def not_in_pyramid(slide):
    """The resolutions that are not in a slide's pyramid, nor can be made of a finer one there.

    What was made of a slide stands without its file.
    """
    from gigapipe.pyramids.made_of import resolutions_of
    from gigapipe.pyramids.folders import left_out

    folder = Path(CONFIG.pathvars.results, "pyramids", slide)
    if folder.exists() and left_out(folder):
        return []
    finest = min(resolutions_of(folder) or [math.inf])
    return [str(one) for one in CONFIG.resolutions if one.mpp < finest]


def stands_without(slide, drawn):
    """Whether all is made of a slide's drawing `tissue` or `mask`, which then may be gone."""
    if drawn == "tissue":
        return not not_in_pyramid(slide)
    masks = Path(CONFIG.pathvars.results, "masks")
    return all((masks / f"{r.mpp:g}um" / slide).exists() for r in CONFIG.resolutions)


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
    except (InputError, OSError) as error:
        refuse(said(error))
    if not (RESULTS / "canvases.tsv").exists():
        for mpp in AUTO_CANVASES:
            most = (
                f", at most {longest / float(mpp):.0f} px per side" if longest else ""
            )
            print(
                f"canvas at {mpp} µm/px: is chosen when the pyramids are finished{most}",
                file=sys.stderr,
            )
    return SHEET_FILE


def is_remote(source):
    return source.startswith(("http://", "https://", "gdc:"))


def refuse_another_cohort():
    """Refuse to replace the results of somebody's slides by those of phantoms, because a config was forgotten."""
    told = RESULTS / "config.yaml"
    if CONFIG.slides or not told.exists():
        return
    if slides := yaml.safe_load(told.read_text(encoding="utf-8")).get("slides"):
        refuse(
            f"{told}: these results are of the slides in {slides}, and this config names none, so that the demo's "
            "generated slides would replace them; give your config with --configfile, or another folder for the demo "
            "(pathvars: {results: …})"
        )


TARGET = CONFIG.target if TASK.needs == "target" else None
SHEET = sample_sheet()
SHEET_FILE = CONFIG.slides or "<results>/phantom/slides.tsv"
RESOLUTIONS = {f"{resolution.mpp:g}": resolution for resolution in CONFIG.resolutions}
# Of these the canvas is chosen when the pyramids are there.
AUTO_CANVASES = [
    mpp for mpp, r in RESOLUTIONS.items() if r.canvas == "auto" and TASK.canvas
]
FOLDS = range(CONFIG.folds.number)
SPLITS = CONFIG.folds.splits
RESULTS = Path(CONFIG.pathvars.results)
refuse_another_cohort()
# The ways in which the cohort is divided, by what stands between the folders of a resolution and of its folds.
DIVISIONS = {division.folder: division for division in divisions(RESULTS, CONFIG)}
PLACES = {division.folds: division for division in DIVISIONS.values()}
# The config as it would be if there were one method alone, by the folder of each.
METHODS = {
    folder_of(training): CONFIG.model_copy(update={"training": training})
    for training in CONFIG.trainings.values()
}
# What is made of one network.
NETWORK = "{mpp}um{method}/{division}fold-{fold}"
MAPS = "<results>/{mpp}um{method}/maps"
if len(SPLITS) > 1 and {row["site"] for row in (SHEET or {}).values()} == {"unknown"}:
    refuse(
        "config: folds.by: the sheet names no sites, so that both kinds of folds are the same; give patient"
    )
# The file of pretrained weights of each training, by its key in the config; of those that have a name, and are fetched,
# also the network, by the file's name.
WEIGHTS, FETCHED = {}, {}
for where, training in CONFIG.trainings.items():
    WEIGHTS[where] = training.weights
    if training.weights == "imagenet":
        official = OFFICIAL[training.network].file
        FETCHED[official] = training.network
        WEIGHTS[where] = f"{CONFIG.pathvars.resources}/weights/{official}"
    elif training.weights and (absence := absence_of(training.weights)):
        refuse(f"config: {where}.weights: {absence}: {training.weights}")
TRAININGS = {
    folder_of(training): training.model_copy(update={"weights": WEIGHTS[where]})
    for where, training in CONFIG.trainings.items()
}


def training_of(wildcards):
    """How a network is trained."""
    return TRAININGS[folder_of_method(wildcards)]


wildcard_constraints:
    slide="|".join(map(re.escape, SHEET or [])),
    mpp="|".join(map(re.escape, RESOLUTIONS)),
    fold=r"\d+",
    method=f"(?:{'|'.join(map(re.escape, METHODS))})",
    official="|".join(map(re.escape, FETCHED)),
    division=f"(?:{'|'.join(map(re.escape, DIVISIONS))})",
    place=f"(?:{'|'.join(map(re.escape, PLACES))})",


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
    suffix, known = suffix_of(name), one_file(CONFIG.pyramids.readers)
    if suffix not in known:
        refuse(
            f"slide {slide}: the name of its file ends in {suffix!r}, not in one of {', '.join(known)}; "
            "download it yourself, and give its path as source"
        )
    return f"<resources>/slides/{slide}.{suffix}"


def reader_of(file):
    """The user's function that reads a slide's file; None where OpenSlide does."""
    return CONFIG.pyramids.readers.get(suffix_of(file))


def reader_option(file):
    own = reader_of(file)
    return [shlex.join(option("--reader", own))] if own else []


def file_at_source(wildcards):
    """Arguments of `gigapipe download` that say which file it is: of the archive its name, elsewhere its address."""
    row = SHEET[wildcards.slide]
    if row["source"].startswith("gdc:"):
        return option("--filename", row["filename"])
    return [row["source"]]


def release_of(wildcards):
    """The arguments that say which release of the file it is, as far as the sheet knows."""
    row = SHEET[wildcards.slide]
    release = [row["source"]] if row["source"].startswith("gdc:") else []
    known = [f"--{key} {row[key]}" for key in ("md5", "size") if row.get(key)]
    return " ".join(release + known)


def coarser_model(wildcards):
    """The model that this training begins with: of the next coarser resolution and the same fold, if it is to."""
    coarser = [mpp for mpp in RESOLUTIONS if float(mpp) > float(wildcards.mpp)]
    if not training_of(wildcards).coarse_to_fine or not coarser:
        return []
    of_coarser = dict(wildcards.items()) | {"mpp": min(coarser, key=float)}
    return f"<results>/{NETWORK}/model.pt".format(**of_coarser)


def for_each_model(pattern):
    return expand(
        pattern,
        mpp=RESOLUTIONS,
        method=METHODS,
        division=DIVISIONS,
        place=PLACES,
        fold=FOLDS,
    )


def once_each(pattern):
    """The files of a rule that is run once for several networks."""
    return list(dict.fromkeys(for_each_model(pattern)))


def at_resolution(pattern):
    """The files of a rule, of all networks of the resolution and method in the wildcards."""

    def files(wildcards):
        of = pattern.replace("{mpp}", wildcards.mpp)
        return once_each(of.replace("{method}", wildcards.method))

    return files


def division_of(wildcards):
    """How the cohort is divided, of a network or of folds; tasks that take one division name none."""
    named = dict(wildcards.items())
    if "place" in named:
        return PLACES[named["place"]]
    return DIVISIONS[named.get("division", next(iter(DIVISIONS)))]


def folds_of(wildcards):
    """The folds of a network."""
    return f"<results>/{division_of(wildcards).folds}folds.tsv"


def split_of(wildcards):
    """What folds do not share."""
    return division_of(wildcards).split


def seed_of(wildcards):
    """What the division into folds begins with, and the weights."""
    return division_of(wildcards).seed


CANVASES = "<results>/canvases.tsv"
OWN_CANVAS = "<results>/{mpp}um/canvas.tsv"


@functools.cache
def chosen_together():
    """The resolutions (as the config writes them) in the table of canvases: those of the first run that made it.

    One that is added later has a table of its own, and changes nothing of this.
    """
    try:
        with open(RESULTS / "canvases.tsv", encoding="utf-8") as table:
            mpps = [float(row["mpp"]) for row in csv.DictReader(table, delimiter="\t")]
    except FileNotFoundError:
        return AUTO_CANVASES
    return [f"{mpp:g}" for mpp in mpps]


def canvases_of(wildcards):
    """The table that says a resolution's canvas, if that is to be chosen."""
    if wildcards.mpp not in AUTO_CANVASES:
        return []
    return (
        CANVASES
        if wildcards.mpp in chosen_together()
        else OWN_CANVAS.format(mpp=wildcards.mpp)
    )


def canvas_of(wildcards, input):
    """Pixels a side of a resolution's canvas; until one that is chosen is known, a dry run shows <TBD>."""
    if not input.canvases:
        return canvas_asked_for(wildcards)
    with open(input.canvases, encoding="utf-8") as table:
        chosen = {
            row["mpp"]: row["canvas"] for row in csv.DictReader(table, delimiter="\t")
        }
    return next(c for mpp, c in chosen.items() if float(mpp) == float(wildcards.mpp))


def canvas_asked_for(wildcards):
    """The canvas as the config says it, which may be `auto`."""
    return RESOLUTIONS[wildcards.mpp].canvas
