"""Verbs of the classifier: trained on whole canvases, applied to held-out slides, and compared."""

import argparse
import sys
from pathlib import Path

from gigapipe.allocator import return_freed_tensors
from gigapipe.atomic import atomic_file
from gigapipe.cli.arguments import Verbs, positive, verb
from gigapipe.cli.distributed import (
    launching,
    learning_arguments,
    mesh_of,
    ranks_arguments,
    slides_of,
    stage_of,
    training_settings,
)
from gigapipe.configuration.command_line import add_options, values
from gigapipe.configuration.configuration import Network
from gigapipe.training.stopping import Stop


def add_verbs(verbs: Verbs) -> None:
    add_train(verbs)
    add_predict(verbs)
    add_evaluate(verbs)


def add_train(verbs: Verbs) -> None:
    sub = verb(verbs, train, "Train a network on whole canvases, decomposed over ranks. Start it with mpiexec.")
    ranks_arguments(sub)
    learning_arguments(sub)
    sub.add_argument("--canvas", type=positive, required=True, help="pixels a side that the network sees")
    add_options(sub, Network)
    sub.add_argument(
        "--start", metavar="FILE", help="model of a coarser resolution, of the same network and fold, to begin with"
    )


def train(args: argparse.Namespace) -> None:
    stop = Stop(args.time_limit)
    return_freed_tensors()
    from gigapipe.evaluation.folds import roles
    from gigapipe.pyramids.canvas import lost_tissue
    from gigapipe.training.classification import Classification, ClassifierSettings
    from gigapipe.training.loop import train
    from gigapipe.training.ranks import started

    with started(*mesh_of(args), **launching(args)) as mesh:
        table = slides_of(args)
        parts = roles(table, args.fold)
        classes = sorted(table["label"].unique())
        settings = ClassifierSettings.of(
            values(Network, args)
            | training_settings(args)
            | {"canvas": args.canvas, "classes": classes, "start": args.start}
        )
        training, validation = (
            settings.canvases(parts[role], args.pyramids, mesh, stage_of(args)) for role in ("training", "validation")
        )
        if mesh.rank == 0:
            for slide, pyramid in zip(training.slides, training.pyramids, strict=True):
                lost = lost_tissue(pyramid, args.mpp, args.canvas)
                if lost > 0.01:
                    print(
                        f"slide {slide}: {lost:.0%} of its tissue's box lies outside the canvas of {args.canvas} px at "
                        f"{args.mpp:g} µm/px",
                        file=sys.stderr,
                    )
        task = Classification(settings, training, validation, mesh, args.memory)
        train(task, args.output, stop, args.keep_checkpoints)


def add_predict(verbs: Verbs) -> None:
    sub = verb(
        verbs, predict, "Score the slides that a model was not trained on, held-out fold first. Start it with mpiexec."
    )
    ranks_arguments(sub)
    sub.add_argument("--model", type=Path, required=True, help="the model that `gigapipe train` wrote")
    sub.add_argument("--output", type=Path, required=True, help="the table to write: a line for each of these slides")


def predict(args: argparse.Namespace) -> None:
    return_freed_tensors()
    import pandas as pd

    from gigapipe.evaluation.columns import FOLD, MPP, NAMES, PART, SEED, TEST, VALIDATION
    from gigapipe.evaluation.folds import roles
    from gigapipe.evaluation.targets import targets_of
    from gigapipe.training.classification import ClassifierSettings, predict
    from gigapipe.training.model_files import trained_model
    from gigapipe.training.ranks import started
    from gigapipe.training.streaming import Streaming

    with started(*mesh_of(args), **launching(args)) as mesh:
        model, settings = trained_model(args.model, ClassifierSettings, mesh)
        parts = roles(slides_of(args), settings.fold)
        # The fold that chose the epoch, too: a threshold may be fixed on it, and on no other slide.
        table = pd.concat([parts[part].assign(**{PART: part}) for part in (TEST, VALIDATION)])
        canvases = settings.canvases(table, args.pyramids, mesh, stage_of(args))
        probabilities = predict(model, settings, canvases, Streaming(args.memory, mesh))
        if mesh.rank == 0:
            table = table[NAMES].assign(**{SEED: settings.seed, FOLD: settings.fold, MPP: settings.mpp})
            for name, column in targets_of(settings.classes).items():
                table[column] = probabilities[:, settings.classes.index(name)].tolist()
            with atomic_file(args.output) as partial:
                table.to_csv(partial, sep="\t", index=False)


def add_evaluate(verbs: Verbs) -> None:
    sub = verb(verbs, evaluate, "Compare resolutions: AUC with intervals, and cost, as table and figure.")
    sub.add_argument("--predictions", type=Path, nargs="+", required=True, help="tables that `gigapipe predict` wrote")
    sub.add_argument("--trainings", type=Path, nargs="+", required=True, help="their training.json, in the same order")
    sub.add_argument("--output", type=Path, required=True, help="folder for comparison.tsv, .md, .html and .png")


def evaluate(args: argparse.Namespace) -> None:
    from gigapipe.evaluation import figures
    from gigapipe.evaluation.comparison import compare
    from gigapipe.evaluation.comparison_text import as_html, as_markdown
    from gigapipe.evaluation.networks import read_networks

    table = compare(*read_networks(args.predictions, args.trainings))
    with atomic_file(args.output / "comparison.tsv") as partial:
        table.to_csv(partial, sep="\t", index=False, float_format="%.6g")
    for name, text in (("comparison.md", as_markdown(table)), ("comparison.html", as_html(table))):
        with atomic_file(args.output / name) as partial:
            partial.write_text(text)
    with atomic_file(args.output / "comparison.png") as partial:
        figures.write(figures.comparison(table), partial, "png")
