"""Verbs of networks that see canvases and predict a class or a number: train, predict, compare."""

import argparse
import sys
from pathlib import Path

from gigapipe.allocator import return_freed_tensors
from gigapipe.atomic import atomic_file
from gigapipe.cli.arguments import Verbs, attempts_argument, positive, verb
from gigapipe.cli.distributed import (
    applied_model_arguments,
    features_of,
    launching,
    learning_arguments,
    memory_of,
    mesh_of,
    own_network,
    own_task,
    ranks_arguments,
    settings_of_task,
    slides_of,
    stage_of,
    task_argument,
    task_to_train,
    training_settings,
)
from gigapipe.configuration.command_line import add_options, converter, values
from gigapipe.configuration.configuration import Comparison, Network
from gigapipe.configuration.tasks import learning_of
from gigapipe.configuration.values import MethodName
from gigapipe.plural import counted
from gigapipe.training.stopping import Stop


def add_verbs(verbs: Verbs) -> None:
    add_train(verbs)
    add_predict(verbs)
    add_evaluate(verbs)


def add_train(verbs: Verbs) -> None:
    sub = verb(verbs, train, "Train a network on whole slides (canvases), divided over ranks. Start it with mpiexec.")
    ranks_arguments(sub)
    learning_arguments(sub)
    task_argument(sub, "train")
    sub.add_argument(
        "--canvas",
        type=positive,
        required=True,
        help="side length of the canvas, the image that the network sees, in pixels",
    )
    sub.add_argument(
        "--target", metavar="COLUMN", help="regression: learn the numbers in this column of the folds instead of labels"
    )
    add_options(sub, Network)
    sub.add_argument(
        "--method",
        type=converter(MethodName),
        metavar="NAME",
        help="name of the method that this training belongs to in a comparison",
    )
    sub.add_argument(
        "--start", metavar="FILE", help="start from this model: the same network and fold at a coarser resolution"
    )


def train(args: argparse.Namespace) -> None:
    stop = Stop(args.time_limit)
    return_freed_tensors()
    from gigapipe.evaluation.folds import roles
    from gigapipe.pyramids.canvas import lost_tissue
    from gigapipe.training.loop import train
    from gigapipe.training.probe import solve
    from gigapipe.training.ranks import started

    network = Network.of(values(Network, args))
    task = task_to_train(args, "train", "regression" if args.target else "classes")
    memory = memory_of(args)
    with started(*mesh_of(args), **launching(args)) as mesh:
        table = slides_of(args)
        parts = roles(table, args.fold)
        common = values(Network, args) | training_settings(args) | {"canvas": args.canvas, "start": args.start}
        common |= {"method": args.method or "", "network_code": network.code(), **settings_of_task(task)}
        learning = learning_of(task)
        settings = learning.kind.of(common | learning.kind.of_slides(table, parts["training"], args.target, args.fold))
        training, validation = (
            settings.canvases(parts[role], args.pyramids, mesh, stage_of(args), features_of(args))
            for role in ("training", "validation")
        )
        if mesh.rank == 0:
            for slide, pyramid in zip(training.slides, training.pyramids, strict=True):
                lost = lost_tissue(pyramid, args.mpp, args.canvas)
                if lost > 0.01:
                    print(
                        f"slide {slide}: {lost:.0%} of its tissue's bounding box is outside the canvas of "
                        f"{args.canvas} px at {args.mpp:g} µm/px",
                        file=sys.stderr,
                    )
        to_learn = learning(settings, training, validation, mesh, memory)
        if settings.train == "probe":
            solve(to_learn, args.output, stop)
        else:
            train(to_learn, args.output, stop, args.keep_checkpoints, args.tensorboard)


def add_predict(verbs: Verbs) -> None:
    sub = verb(verbs, predict, "Predict the slides of the test fold and the validation fold. Start it with mpiexec.")
    ranks_arguments(sub)
    sub.add_argument("--model", type=Path, required=True, help="the model that `gigapipe train` wrote")
    applied_model_arguments(sub)
    sub.add_argument("--output", type=Path, required=True, help="the table to write, one line per slide")


def predict(args: argparse.Namespace) -> None:
    return_freed_tensors()
    import pandas as pd

    from gigapipe.evaluation.columns import (
        FOLD,
        IDENTITY,
        MD5,
        METHOD_NAME,
        MPP,
        NAMES,
        NUMBER,
        PART,
        PREDICTED,
        SEED,
        SLIDE,
        TARGET,
        TEST,
        VALIDATION,
    )
    from gigapipe.evaluation.folds import roles
    from gigapipe.evaluation.identity import (
        NETWORK,
        identity_beside,
        refuse_other_folds,
        refuse_other_slides,
        without_identity,
    )
    from gigapipe.evaluation.targets import targets_of
    from gigapipe.slides.written_tables import write_table
    from gigapipe.training.classification import CanvasSettings, ClassifierSettings, frozen_features, predict
    from gigapipe.training.model_files import trained_model
    from gigapipe.training.ranks import started
    from gigapipe.training.streaming import Streaming
    from gigapipe.training.task import files_of, kinds_of_settings

    task = own_task(args, canvas=True)
    with started(*mesh_of(args), **launching(args)) as mesh:
        model, settings = trained_model(args.model, kinds_of_settings(canvas=True), mesh, own_network(args), task)
        assert isinstance(settings, CanvasSettings)
        parts = roles(slides_of(args), settings.fold)
        # The fold that chose the epoch, too: a threshold may be fixed on it, and on no other slide.
        table = pd.concat([parts[part].assign(**{PART: part}) for part in (TEST, VALIDATION)])
        canvases = settings.canvases(table, args.pyramids, mesh, stage_of(args), features_of(args))
        identity, files = identity_beside(args.model), files_of(canvases)
        if mesh.rank == 0:
            without_identity(int(identity is None), 1, f"model {args.model}")
        refuse_other_folds(args.model, identity, parts)
        refuse_other_slides(f"model {args.model}", files, identity)
        streaming = Streaming(memory_of(args), mesh)
        features = frozen_features(model, settings, streaming) if canvases.features else None
        said = predict(model, settings, canvases, streaming, features)
        if mesh.rank == 0:
            table = table[NAMES].assign(**{SEED: settings.seed, FOLD: settings.fold, MPP: settings.mpp})
            if settings.method:
                table[METHOD_NAME] = settings.method
            if identity:
                table = table.assign(**{IDENTITY: identity[NETWORK], MD5: table[SLIDE].map(files)})
            if isinstance(settings, ClassifierSettings):
                for name, column in targets_of(settings.classes).items():
                    table[column] = said[:, settings.classes.index(name)].tolist()
            else:
                numbers = {NUMBER: canvases.truth.tolist(), PREDICTED: said[:, 0].tolist()}
                table = table.assign(**{TARGET: settings.outputs[0], **numbers})
            with atomic_file(args.output) as partial:
                write_table(table, partial)


def add_evaluate(verbs: Verbs) -> None:
    sub = verb(
        verbs, evaluate, "Compare resolutions: AUC or R² with confidence intervals, and cost, as table and figure."
    )
    sub.add_argument("--predictions", type=Path, nargs="+", required=True, help="tables that `gigapipe predict` wrote")
    sub.add_argument(
        "--trainings", type=Path, nargs="+", required=True, help="training.json of the same models, in the same order"
    )
    add_options(sub, Comparison)
    sub.add_argument(
        "--output",
        type=Path,
        required=True,
        help="folder for comparison.tsv, .md, .html and .png, and methods.tsv, if there are several methods",
    )
    attempts_argument(sub)


def evaluate(args: argparse.Namespace) -> None:
    from gigapipe.evaluation import between_methods, figures
    from gigapipe.evaluation.columns import PATIENTS_OF_SEVERAL_LABELS, PREDICTED
    from gigapipe.evaluation.comparison import compare
    from gigapipe.evaluation.comparison_text import as_html, as_markdown
    from gigapipe.evaluation.networks import read_networks
    from gigapipe.evaluation.regression import compare_numbers
    from gigapipe.slides.written_tables import write_table

    scores, costs = read_networks(args.predictions, args.trainings)
    table = (compare_numbers if PREDICTED in scores else compare)(scores, costs, args.margin)
    if PATIENTS_OF_SEVERAL_LABELS in table and (mixed := table[PATIENTS_OF_SEVERAL_LABELS].max()):
        print(
            f"the AUC per patient is not computed: slides of {counted(mixed, 'patient')} have different labels",
            file=sys.stderr,
        )
    with atomic_file(args.output / "comparison.tsv") as partial:
        write_table(table, partial, float_format="%.6g")
    between = between_methods.between_methods(scores)
    if between is not None:
        with atomic_file(args.output / between_methods.FILE) as partial:
            write_table(between, partial, float_format="%.6g")
    for name, text in (("comparison.md", as_markdown(table, between)), ("comparison.html", as_html(table, between))):
        with atomic_file(args.output / name) as partial:
            partial.write_text(text, encoding="utf-8")
    with atomic_file(args.output / "comparison.png") as partial:
        figures.write(figures.comparison(table), partial, "png")
