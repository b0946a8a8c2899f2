# What is made stays while its content would be the same: neither a date alone, nor a word in which a rule is told of
# where and in what it computes, makes anything again.

import ast
import atexit
import hashlib

from snakemake.io import IOFile

from gigapipe.evaluation.folds import read_folds
from gigapipe.pyramids.made_of import Slides, resolutions_of


class NotNoted:
    """Of such a value Snakemake neither notes nor compares anything."""


NOTHING = NotNoted()
MESH = r"\[\d+, \d+, \d+\]"
MPPS = r"'[\d.e+-]+( [\d.e+-]+)*'"
ANOTHER = "of another file: "


def path_of(pattern, wildcards):
    path = pattern.format(**dict(wildcards.items()))
    return path.replace("<results>", CONFIG.pathvars.results)


def noted(output, *like):
    """The first of the params noted of an output that looks like one of `like`, in this order; or else NOTHING."""
    said = workflow.persistence.params(IOFile(output, rule=next(iter(workflow.rules))))
    found = [one for look in like for one in said or [] if re.fullmatch(look, one)]
    return ast.literal_eval(found[0]) if found else NOTHING


def as_noted(pattern, *like):
    """A param that release 0.1 had, and that makes nothing again any more: it is for ever what was noted of it."""
    return lambda wildcards: noted(path_of(pattern, wildcards), *like)


def mesh_as_noted(pattern):
    return as_noted(pattern, MESH, "'auto'")


def says_mesh(wildcards):
    """As an option: data, rows and columns of the ranks at a resolution, or `auto`."""
    mesh = RESOLUTIONS[wildcards.mpp].mesh
    return mesh if mesh == "auto" else " ".join(map(str, mesh))


PYRAMIDS = "<results>/pyramids"
LEVELS = f"{PYRAMIDS}/.added"


def path_of_slide(slide):
    path = slide_file(slide).replace("<resources>", CONFIG.pathvars.resources)
    return Path(path.replace("<results>", str(RESULTS)))


SLIDES = Slides(RESULTS / "workflow/slides.json")


@functools.cache
def another_file(slide):
    """What tells a slide's file from that which its pyramid was made of; None if it is the same, or not to be told."""
    folder, path = RESULTS / "pyramids" / slide, path_of_slide(slide)
    if not workflow.is_main_process or not path.exists() or not folder.exists():
        return None
    made = folder / ".snakemake_timestamp"
    made = made if made.exists() else folder
    try:
        return SLIDES.another(path, folder, made.stat().st_mtime)
    except OSError as error:
        refuse(said(error))


def note_slides():
    """Keep which files pyramids were made of, so that a change is seen by the next run, whatever its date."""
    another_file.cache_clear()
    for slide in SHEET:
        another_file(slide)
    SLIDES.keep()


if workflow.is_main_process:
    atexit.register(SLIDES.keep)


def slide_as_dated(wildcards):
    """A slide's file: without its date, if it is what its pyramid was made of."""
    path, slide = slide_file(wildcards.slide), wildcards.slide
    there = (RESULTS / "pyramids" / slide).exists() and path_of_slide(slide).exists()
    return path if not there or another_file(slide) else ancient(path)


def made_of(wildcards):
    """A param that is another once a slide is another than its pyramid was made of, whatever its date says."""
    told = another_file(wildcards.slide)
    if told:
        return f"{ANOTHER}{told}"
    return noted(path_of(f"{PYRAMIDS}/{{slide}}", wildcards), f"'{ANOTHER}.*'")


COMPARED = ["slide", "patient", "site", "label"]
OTHER_ROWS = "of other rows: "


@functools.cache
def other_rows(place):
    """What tells the sheet's rows from those that folds were made of, as far as folds and trainings read them.

    None if they are the same, in whichever order; or if there are no folds.
    """
    file = RESULTS / f"{place}folds.tsv"
    if not CONFIG.slides or not workflow.is_main_process or not file.exists():
        return None
    try:
        folds = read_folds(file)
    except (InputError, OSError) as error:
        refuse(said(error))
    sheet = pandas.DataFrame(SHEET.values())
    compared = [column for column in COMPARED if column in sheet]
    if TARGET:  # of which labels are made
        compared = [column for column in compared if column != "label"] + [TARGET]
    rows = sorted(zip(*(sheet[column].astype(str) for column in compared)))
    if set(compared) <= set(folds):
        if rows == sorted(zip(*(folds[column] for column in compared))):
            return None
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def rows_of(wildcards):
    """A param that is another once the sheet has other rows than folds were made of, whatever its date says."""
    told = other_rows(wildcards.place)
    if told:
        return f"{OTHER_ROWS}{told}"
    return noted(path_of("<results>/{place}folds.tsv", wildcards), f"'{OTHER_ROWS}.*'")


def sheet_as_dated(wildcards):
    """The sample sheet: without its date, if the folds were made of the same rows."""
    sheet = suitable_sheet()
    known = CONFIG.slides and (RESULTS / f"{wildcards.place}folds.tsv").exists()
    return ancient(sheet) if known and not other_rows(wildcards.place) else sheet


@functools.cache
def added_levels(slide):
    """The mark of each resolution (as the config writes it) that was added, or is to be, to a slide's pyramid."""
    folder = RESULTS / "pyramids/.added" / slide
    found = {
        mpp: f"{LEVELS}/{slide}/{file.name}"
        for file in sorted(folder.glob("*um.json"))
        for mpp in file.name.removesuffix("um.json").split("_")
    }
    if workflow.is_main_process:
        made = resolutions_of(RESULTS / "pyramids" / slide)
        lacking = [
            mpp
            for mpp in RESOLUTIONS
            if made is not None and float(mpp) not in made and mpp not in found
        ]
        if lacking:
            name = "_".join(sorted(lacking, key=float))
            found |= dict.fromkeys(lacking, f"{LEVELS}/{slide}/{name}um.json")
    return found


def pyramid_at(slide, mpp):
    """What says that a slide is there at a resolution: its pyramid or, if that got it later, the mark of that."""
    return added_levels(slide).get(mpp, f"{PYRAMIDS}/{slide}")


def pyramids_at(wildcards):
    return [pyramid_at(slide, wildcards.mpp) for slide in SHEET]


def marks_of_levels(wildcards):
    """The marks of the config's resolutions that were added, or are to be."""
    marks = [added_levels(slide).get(mpp) for slide in SHEET for mpp in RESOLUTIONS]
    return list(dict.fromkeys(filter(None, marks)))


def folder_of_pyramids(wildcards, input):
    return RESULTS / "pyramids"


def slide_to_add_from(wildcards):
    """The slide of which a resolution is made; nothing where it is gone, and a finer one is there to make it of."""
    from gigapipe.pyramids.adding import finer_than

    slide, mark = wildcards.slide, path_of(
        f"{LEVELS}/{{slide}}/{{mpps}}um.json", wildcards
    )
    if Path(mark).exists():
        own = workflow.persistence.input(IOFile(mark, rule=next(iter(workflow.rules))))
        return [path for path in own or [] if not path.endswith(f"pyramids/{slide}")]
    source = SHEET[slide]["source"]
    if path_of_slide(slide).exists() or source.startswith("<results>"):
        return slide_file(slide)
    made = resolutions_of(RESULTS / "pyramids" / slide) or []
    if all(finer_than(float(mpp), made) for mpp in wildcards.mpps.split("_")):
        return []
    return slide_file(slide).replace("<resources>/slides/", "<resources>/slides/again/")
