"""The report: one page of a whole run, made of the files in its folder of results, that needs nothing beside it."""

import datetime
import json
import logging
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import gigapipe
from gigapipe.errors import InputError
from gigapipe.evaluation import figures, pages
from gigapipe.evaluation.between_methods import NOTE as NOTE_OF_METHODS
from gigapipe.evaluation.columns import (
    CANVAS,
    FILE,
    FOLD,
    FOLDS,
    IDENTITY,
    METHOD,
    METHOD_NAME,
    MPP,
    NETWORKS,
    PART,
    PEAK_MEMORY,
    PREDICTED,
    SLIDE,
    SPLIT,
    TARGET,
    TEST,
    main_figure,
)
from gigapipe.evaluation.comparison_text import NOTE_OF_FLAGS
from gigapipe.evaluation.decisions import decided, rule
from gigapipe.evaluation.external import NOTE as NOTE_OF_EXTERNAL
from gigapipe.evaluation.identity import of_networks
from gigapipe.evaluation.learning import flags_of, none_learned
from gigapipe.evaluation.predictions import classes_of, read_predictions
from gigapipe.evaluation.recommendation import recommend
from gigapipe.evaluation.report_pictures import Place, found, inline_picture, inline_svg, maps, wrong_slides
from gigapipe.evaluation.report_tables import between, blocks, costs, decisions, external, runtimes, worth
from gigapipe.evaluation.software import revision, versions
from gigapipe.evaluation.targets import SCORE
from gigapipe.pyramids.survey import same_files, summary
from gigapipe.slides.written_tables import read_written

logger = logging.getLogger(__name__)

SAVED_BYTES = {"resnet18": 442, "resnet34": 643, "resnet50": 1714}
"""What autograd keeps of a training step for each pixel of the image, float32: counted with saved_tensors_hooks."""
FULL_WIDTH = 64
DASHED = (
    " Dashed: activations of a step that one rank keeps for an undivided image in float32, computed from the layers' "
    "sizes. Ranks and tiles divide them."
)
SIDES = [1024, 22528]  # px, between which the memory of an undivided step is drawn


def report(
    results: Path, config: Path | None, benchmarks: Path, figures_to: Path | None = None, page: Path | None = None
) -> str:
    """The page, as HTML, of a run in the folder `results`; its figures are written to a folder, too, if one is given.

    `page` is the folder that the page will lie in, by default the results: from there it links to stores of slides.

    Needed is only comparison.tsv, and InputError is raised without it: what else is missing is left out, so are columns
    that the table has not, and figures of what was not measured. What stems from other resolutions or folds than those
    of the table is not looked at.
    """
    try:
        table = read_written(results / "comparison.tsv")
    except (OSError, ValueError) as error:
        raise InputError(
            f"report: {results}/comparison.tsv cannot be read ({error}); make it with `gigapipe evaluate`"
        ) from None
    if "arm" in table:  # as 0.1 called it
        logger.warning(
            f"{results}/comparison.tsv: its column arm is now called {METHOD}; `gigapipe evaluate` renames it"
        )
        table = table.rename(columns={"arm": METHOD})
    networks = list(table[NETWORKS]) if NETWORKS in table else list[str]()
    scored = {path: _identities(path) for path in found(results, "predictions.tsv")}
    paths = of_networks(scored, networks, results / "comparison.tsv")
    predictions = of_table(read_predictions(paths), table) if paths else None
    records = {path: json.loads(path.read_text(encoding="utf-8")) for path in found(results, "training.json")}
    for path in set(scored) - set(paths):
        records.pop(path.with_name("training.json"), None)
    trainings = [record for record in records.values() if record["settings"]["mpp"] in set(table[MPP])]
    drawn = {}
    for name, (figure, caption) in all_figures(table, predictions, trainings, results).items():
        svg = figures.as_svg(figure)
        if figures_to:
            figures.save(figure, svg, figures_to / name)
        drawn[name] = {"source": inline_svg(svg), "caption": caption}
    recommended = recommend(table)
    place = Place(results, page or results)
    first = (recommended.mpp, recommended.method) if METHOD_NAME in table else (recommended.mpp,)
    return pages.page(
        "report",
        recommendation=recommended,
        table=table,
        main=main_figure(table).heading,
        methods=list(dict.fromkeys(table[METHOD_NAME])) if METHOD_NAME in table else [],
        target=table[TARGET].iloc[0] if TARGET in table else "",
        worth=worth(table),
        decisions=decisions(table),
        costs=costs(table),
        between=between(results, table),
        external=external(results, table),
        figures=drawn,
        cohort=cohort(results),
        slides=slides(place),
        flags=flags_of(table),
        none_learned=none_learned(table),
        note_of_flags=NOTE_OF_FLAGS,
        note_of_methods=NOTE_OF_METHODS,
        note_of_external=NOTE_OF_EXTERNAL,
        decided_by=rule(classes_of(predictions)) if predictions is not None and TARGET not in table else "",
        maps=list(maps(place, table, first)),
        mistakes=wrong_slides(place, predictions, first),
        runtimes=runtimes(benchmarks),
        config=config.read_text(encoding="utf-8") if config else "",
        made=made(),
    )


def _identities(path: Path) -> set[str]:
    """Of which networks the predictions or maps in a table are; empty where it does not say."""
    try:
        table = read_written(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); make it again") from None
    return set(table.get(IDENTITY, []))


def cohort(results: Path) -> dict[str, list[dict]]:
    """What `gigapipe folds` says of each way to divide the cohort, by its name; of several seeds the first."""
    divisions: dict[str, list[dict]] = {}
    for path in sorted([*results.glob("folds.md"), *results.glob("folds/*/folds.md")]):
        split = "" if path.parent == results else path.parent.name.rpartition("-")[0]
        divisions.setdefault(split, blocks(path.read_text(encoding="utf-8")))
    return divisions


def slides(place: Place) -> dict[str, Any]:
    """A line about what became of the slides and their tissue, whether to look at it, which were one file, and `each`.

    The lines are empty where there is nothing to say, or no slides.tsv. Each has what `Place.slide` says, and `why` it
    was left out or its tissue is doubtful; where none has a picture, there are none, and `sheet` is that of them all.
    """
    sheet, path = inline_picture(place.results / "slides.png"), place.results / "slides.tsv"
    if not path.exists():
        return {"line": "", "look": False, "same_files": "", "each": [], "sheet": sheet}
    rows = read_written(path, dtype={SLIDE: str, "md5": str}, keep_default_na=False, na_values=[""])
    line, each = summary(rows), []
    with ThreadPoolExecutor() as pool:  # decoding pictures is most of what a report takes
        shown = list(pool.map(place.slide, rows[SLIDE]))
    for row, slide in zip(rows.to_dict("records"), shown, strict=True):
        why = row["fate"] if row["fate"] != "whole" else row.get("why")
        each.append(slide | {"why": "" if pd.isna(why) else why, "out": row["fate"] != "whole"})
    if any(slide["source"] for slide in each):
        sheet = ""
    else:
        each = []
    look = not line.endswith(f"{len(rows)} with tissue")
    return {"line": line, "look": look, "same_files": same_files(rows), "each": each, "sheet": sheet}


def of_table(predictions: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Those of the table's resolutions, methods, folds and split."""
    kept = predictions[MPP].isin(table[MPP])
    if METHOD_NAME in predictions:
        kept &= predictions[METHOD_NAME].isin(table.get(METHOD_NAME, [""]))
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
        "auc-resolution": (figures.auc_against_resolution(table), f"{main_figure(table).heading} against resolution."),
        "auc-cost": (
            figures.auc_against_cost(table),
            f"{main_figure(table).heading} against cost. A rank is a process, on a GPU or on CPU cores.",
        ),
    }
    held_out = predictions[predictions[PART] == TEST] if predictions is not None else None
    if held_out is not None and len(held_out) and PREDICTED in held_out:
        drawn["predicted"] = (
            figures.predicted(held_out),
            "Predicted against true number of each test slide; all folds and seeds together.",
        )
    elif predictions is not None and held_out is not None and len(held_out):
        drawn["roc"] = (
            figures.roc(held_out),
            "ROC curves on test slides: thin lines for each network, thick lines for their mean. Each network is "
            "evaluated on its own slides, because scores of different networks have different scales."
            + (" Each class against the rest, and their mean." if SCORE not in predictions else ""),
        )
        classes = classes_of(predictions)
        taken = pd.concat(decided(network, classes) for _, network in predictions.groupby(FILE))
        if len(taken):
            undecided = len(held_out) - len(taken)
            drawn["confusion"] = (
                figures.confusion(taken),
                f"Test slides by true and predicted class, {rule(classes)}, as in the table; all folds and seeds "
                "together." + (f" Not shown: {undecided} slides of networks without a threshold." if undecided else ""),
            )
    if history := [
        epoch | _of_network(record) | {FILE: number, "best_epoch": record["best_epoch"]}
        for number, record in enumerate(trainings)
        for epoch in record.get("history", [])
        if "validation_loss" in epoch and record["settings"].get("train") != "probe"  # which has no epochs
    ]:
        drawn["training"] = (
            figures.training_curves(pd.DataFrame(history), loss_of(table)),
            "Loss by epoch: thin lines for each network, thick lines for their mean. The weights are those of the "
            "epoch with the lowest loss on the validation slides, which are neither training nor test slides.",
        )
    memory = memory_table(table, trainings)
    if len(memory):
        drawn["memory"] = (
            figures.memory(memory),
            "Memory of training. Points: peak memory of the largest process, including its libraries."
            + DASHED * bool((memory["kind"] == "model").any()),
        )
    if (path := results / "scaling.tsv").exists():
        drawn["scaling"] = (
            figures.scaling(pd.read_csv(path, sep="\t")),
            "Parallel efficiency against the number of ranks. Points are measured; the dashed line is a model, and "
            "beyond the points a prediction.",
        )
    return drawn


def _of_network(record: dict) -> dict[str, Any]:
    """The columns by which `names_of` tells a training."""
    settings = record["settings"]
    return {MPP: settings["mpp"]} | ({METHOD_NAME: settings["method"]} if settings.get("method") else {})


def loss_of(table: pd.DataFrame) -> str:
    return "squared error of standardised numbers" if TARGET in table else "cross-entropy"


def memory_table(table: pd.DataFrame, trainings: list[dict]) -> pd.DataFrame:
    """What `figures.memory` draws: measured peaks, and what an undivided step keeps of the networks that were used."""
    measured = table.dropna(subset=[PEAK_MEMORY])
    measured = measured.assign(
        side=measured[CANVAS], gigabytes=measured[PEAK_MEMORY] / 1000, kind="measured", what="measured"
    )
    parts = [measured[["side", "gigabytes", "kind", "what"]]]
    full = {r["settings"].get("network") for r in trainings if r["settings"].get("width", FULL_WIDTH) == FULL_WIDTH}
    for network in sorted(full & set(SAVED_BYTES)):
        kept = SAVED_BYTES[network] * np.array(SIDES) ** 2 / 1e9
        parts.append(pd.DataFrame({"side": SIDES, "gigabytes": kept, "kind": "model", "what": f"{network}, undivided"}))
    return pd.concat(parts)


def made() -> dict[str, str]:
    """By what, and where, this page is made."""
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    own = {"gigapipe": f"{gigapipe.__version__}, revision {revision()}"}
    return own | versions() | {"report written on": f"{machine}, {now}"}
