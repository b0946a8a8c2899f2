"""The report: one page of a whole run, made of the files in its folder of results, that needs nothing beside it."""

import base64
import datetime
import importlib.metadata
import io
import json
import logging
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

import gigapipe
from gigapipe.errors import InputError
from gigapipe.evaluation import figures
from gigapipe.evaluation.columns import (
    CANVAS,
    FILE,
    FOLD,
    FOLDS,
    LABEL,
    METHOD,
    MPP,
    PART,
    PEAK_MEMORY,
    SLIDE,
    SPLIT,
    TEST,
)
from gigapipe.evaluation.decisions import decided, rule
from gigapipe.evaluation.predictions import classes_of, read_predictions
from gigapipe.evaluation.recommendation import recommend
from gigapipe.evaluation.report_tables import blocks, costs, decisions, runtimes, worth
from gigapipe.evaluation.targets import SCORE

logger = logging.getLogger(__name__)

LIBRARIES = ["torch", "numpy", "scikit-learn", "scipy", "pandas", "zarr", "openslide-bin", "mpi4py", "snakemake"]
SAVED_BYTES = {"resnet18": 442, "resnet34": 643, "resnet50": 1714}
"""What autograd keeps of a training step for each pixel of the image, float32: counted with saved_tensors_hooks."""
FULL_WIDTH = 64
DASHED = (
    " Dashed: what a step keeps of an undivided image on one rank in float32, from the layers' sizes. Ranks and tiles "
    "divide it."
)
SIDES = [1024, 22528]  # px, between which the memory of an undivided step is drawn
PICTURE = 1600  # px of the longest side of a picture in the page


def report(results: Path, config: Path | None, benchmarks: Path, figures_to: Path | None = None) -> str:
    """The page, as HTML, of a run in the folder `results`; its figures are written to a folder, too, if one is given.

    Needed is only comparison.tsv, and InputError is raised without it: what else is missing is left out, so are columns
    that the table has not, and figures of what was not measured. What stems from other resolutions or folds than those
    of the table is not looked at.
    """
    try:
        table = pd.read_csv(results / "comparison.tsv", sep="\t")
    except (OSError, ValueError) as error:
        raise InputError(
            f"report: {results}/comparison.tsv cannot be read ({error}); make it with `gigapipe evaluate`"
        ) from None
    if "arm" in table:  # as 0.1 called it
        logger.warning(
            f"{results}/comparison.tsv: its column arm is called {METHOD} now; `gigapipe evaluate` renames it"
        )
        table = table.rename(columns={"arm": METHOD})
    paths = found(results, "predictions.tsv")
    predictions = of_table(read_predictions(paths), table) if paths else None
    trainings = [json.loads(path.read_text()) for path in found(results, "training.json")]
    trainings = [record for record in trainings if record["settings"]["mpp"] in set(table[MPP])]
    drawn = {}
    for name, (figure, caption) in all_figures(table, predictions, trainings, results).items():
        if figures_to:
            figures.save(figure, figures_to / name)
        drawn[name] = {"source": inline_figure(figure), "caption": caption}
    recommended = recommend(table)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.jinja").render(
        recommendation=recommended,
        table=table,
        worth=worth(table),
        decisions=decisions(table),
        costs=costs(table),
        figures=drawn,
        cohort=cohort(results),
        contact_sheet=inline_picture(results / "slides.png"),
        maps=list(maps(results, table, recommended.mpp)),
        runtimes=runtimes(benchmarks),
        config=config.read_text() if config else "",
        made=made(),
    )


def found(results: Path, name: str) -> list[Path]:
    """Files of this name of all networks of a run; another run's results may lie in a folder beside them."""
    return sorted(results.glob(f"*um/**/{name}"))


def cohort(results: Path) -> dict[str, list[dict]]:
    """What `gigapipe folds` says of each way to divide the cohort, by its name; of several seeds the first."""
    divisions: dict[str, list[dict]] = {}
    for path in sorted([*results.glob("folds.md"), *results.glob("folds/*/folds.md")]):
        split = "" if path.parent == results else path.parent.name.rpartition("-")[0]
        divisions.setdefault(split, blocks(path.read_text()))
    return divisions


def of_table(predictions: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Those of the table's resolutions, folds and split."""
    kept = predictions[MPP].isin(table[MPP])
    if FOLDS in table:
        kept &= predictions[FOLD] < table[FOLDS].max()
    if SPLIT in table and SPLIT in predictions:
        kept &= predictions[SPLIT] == table[SPLIT].iloc[0]
    return predictions[kept]


def all_figures(
    table: pd.DataFrame, predictions: pd.DataFrame | None, trainings: list[dict], results: Path
) -> dict[str, tuple[Figure, str]]:
    """Of each figure that there is data for its name, and what is to be seen in it."""
    drawn = {
        "auc-resolution": (figures.auc_against_resolution(table), "What resolution buys."),
        "auc-cost": (figures.auc_against_cost(table), "What it costs. A rank is a process, on a GPU or on CPU cores."),
    }
    if predictions is not None and len(held_out := predictions[predictions[PART] == TEST]):
        drawn["roc"] = (
            figures.roc(held_out),
            "ROC curves on held-out slides: thin for each network, thick their mean. Of each network its own slides, "
            "for scores of different networks have different scales."
            + (" Each class against the rest, and the mean of them." if SCORE not in predictions else ""),
        )
        classes = classes_of(predictions)
        taken = pd.concat(decided(network, classes) for _, network in predictions.groupby(FILE))
        if len(taken):
            undecided = len(held_out) - len(taken)
            drawn["confusion"] = (
                figures.confusion(taken),
                "Held-out slides by their label, and by the class that their network takes them for, "
                f"{rule(classes)}, as in the table; all folds and seeds together."
                + (f" Left out: {undecided} of networks without a threshold." if undecided else ""),
            )
    if history := [
        epoch | {MPP: record["settings"]["mpp"], FILE: number, "best_epoch": record["best_epoch"]}
        for number, record in enumerate(trainings)
        for epoch in record.get("history", [])
        if "validation_loss" in epoch
    ]:
        drawn["training"] = (
            figures.training_curves(pd.DataFrame(history)),
            "Loss by epoch: thin for each network, thick their mean. The weights are those of the epoch that is best "
            "in validation, on slides that are neither trained on nor held out.",
        )
    memory = memory_table(table, trainings)
    drawn["memory"] = (
        figures.memory(memory),
        "What training takes of memory. Points: the largest process of a run, with all that it loads."
        + DASHED * bool((memory["kind"] == "model").any()),
    )
    if (path := results / "scaling.tsv").exists():
        drawn["scaling"] = (
            figures.scaling(pd.read_csv(path, sep="\t")),
            "Efficiency over more ranks. Points are measured; the dashed line is a model, and a forecast beyond them.",
        )
    return drawn


def memory_table(table: pd.DataFrame, trainings: list[dict]) -> pd.DataFrame:
    """What `figures.memory` draws: measured peaks, and what an undivided step keeps of the networks that were used."""
    measured = table.assign(side=table[CANVAS], gigabytes=table[PEAK_MEMORY] / 1000, kind="measured", what="measured")
    parts = [measured[["side", "gigabytes", "kind", "what"]]]
    full = {r["settings"].get("network") for r in trainings if r["settings"].get("width", FULL_WIDTH) == FULL_WIDTH}
    for network in sorted(full & set(SAVED_BYTES)):
        kept = SAVED_BYTES[network] * np.array(SIDES) ** 2 / 1e9
        parts.append(pd.DataFrame({"side": SIDES, "gigabytes": kept, "kind": "model", "what": f"{network}, undivided"}))
    return pd.concat(parts)


def maps(results: Path, table: pd.DataFrame, first: float | None) -> Iterator[dict]:
    """What `gigapipe map` has left of each resolution, that of the answer first, then from fine to coarse."""
    tables = {path: pd.read_csv(path, sep="\t", dtype={SLIDE: str, LABEL: str}) for path in found(results, "maps.tsv")}
    tables = {path: rows for path, rows in tables.items() if len(rows) and rows[MPP].iloc[0] in set(table[MPP])}
    for path, rows in sorted(tables.items(), key=lambda item: (item[1][MPP].iloc[0] != first, item[1][MPP].iloc[0])):
        groups = []
        for chosen in ("highest", "lowest", "most wrong", "asked for"):
            slides = [
                {
                    "slide": row[SLIDE],
                    "label": row[LABEL],
                    "said": {
                        name.removeprefix("probability of "): row[name]
                        for name in rows.columns
                        if name.startswith("probability of ")
                    },
                    "source": inline_picture(path.parent / f"{row[SLIDE]}.png"),
                }
                for row in rows[rows["chosen"] == chosen].to_dict("records")
            ]
            if slides:
                groups.append({"chosen": chosen, "slides": slides})
        yield {"mpp": rows[MPP].iloc[0], "groups": groups}


def inline_figure(figure: Figure) -> str:
    file = io.BytesIO()
    figures.write(figure, file, "svg")
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def inline_picture(path: Path) -> str:
    """A picture as JPEG, smaller if it is large; empty if there is none."""
    if not path.exists():
        return ""
    Image.MAX_IMAGE_PIXELS = None  # a contact sheet of many slides is larger than what Pillow takes for an attack
    picture = Image.open(path).convert("RGB")
    picture.thumbnail((PICTURE, PICTURE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def made() -> dict[str, str]:
    """By what, and where, this page is made."""
    versions = {"gigapipe": f"{gigapipe.__version__}, revision {revision()}", "Python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = "not installed"
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return versions | {"page made on": f"{machine}, {now}"}


def revision() -> str:
    """The git revision of gigapipe's source, and whether it has been changed since; `unknown` if it is installed."""
    folder = Path(gigapipe.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # or the repository around it is another
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
