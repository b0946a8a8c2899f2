"""Verbs of segmentation, of tissue or of several classes: masks, the U-Net that learns them, and their agreement."""

import argparse
import sys
from pathlib import Path

from gigapipe.allocator import return_freed_tensors
from gigapipe.atomic import atomic_file, atomic_folder
from gigapipe.cli.arguments import Verbs, attempts_argument, verb
from gigapipe.cli.distributed import (
    applied_model_arguments,
    launching,
    learning_arguments,
    memory_of,
    mesh_of,
    own_network,
    own_network_arguments,
    own_task,
    ranks_arguments,
    settings_of_task,
    slides_of,
    stage_of,
    task_argument,
    task_to_train,
    training_settings,
)
from gigapipe.configuration.command_line import add_options, values
from gigapipe.configuration.configuration import Comparison, OwnNetwork
from gigapipe.configuration.tasks import learning_of
from gigapipe.errors import InputError
from gigapipe.training.stopping import Stop


def add_verbs(verbs: Verbs) -> None:
    add_mask(verbs)
    add_train_tissue(verbs)
    add_train_segmentation(verbs)
    add_segment(verbs)
    add_dice(verbs)


def add_mask(verbs: Verbs) -> None:
    sub = verb(verbs, mask, "Write a mask of a slide as a label image: detected tissue, or your annotation.")
    sub.add_argument("pyramid", type=Path, help="the folder that `gigapipe pyramid` wrote")
    sub.add_argument("folder", type=Path, help="the folder to write; the store is image.zarr in it")
    sub.add_argument("--mpp", type=float, required=True, help="resolution, in µm per pixel")
    sub.add_argument(
        "--drawn",
        type=Path,
        metavar="FILE",
        help="your annotation: an image or .npy file of the whole slide, non-zero in tissue (with --labels: the "
        "class's value), or annotations from QuPath (GeoJSON) or ASAP (XML)",
    )
    sub.add_argument(
        "--class",
        dest="classes",
        action="append",
        default=[],
        metavar="NAME",
        help="use only annotations of this class, instead of all; may be repeated",
    )
    sub.add_argument(
        "--labels",
        action="store_true",
        help="write regions of several classes: the classes given by --class have the label values 1, 2, …, in this "
        "order; where annotations overlap, the later class is used",
    )
    attempts_argument(sub)


def mask(args: argparse.Namespace) -> None:
    from gigapipe.pyramids import Pyramid
    from gigapipe.pyramids.folders import leave_out, left_out
    from gigapipe.pyramids.masks import make_labels, make_mask

    if args.labels and not (args.drawn and args.classes):
        raise InputError("mask: --labels needs an annotation (--drawn) and the names of its classes (--class)")
    if reason := left_out(args.pyramid):
        leave_out(args.folder, reason)
    elif args.labels:
        shares, others = make_labels(Pyramid(args.pyramid), args.mpp, args.folder, args.drawn, args.classes)
        said = ", ".join(f"{name} covers {share:.1%}" for name, share in shares.items())
        print(f"{args.pyramid}: {said} of the slide" + f"; not in --class: {', '.join(others)}" * bool(others))
    else:
        share = make_mask(Pyramid(args.pyramid), args.mpp, args.folder, args.drawn, tuple(args.classes))
        print(f"{args.pyramid}: the mask covers {share:.1%} of the slide" + ", it is empty" * (share == 0))


def masks_argument(sub: argparse.ArgumentParser) -> None:
    """The masks that training learns from and segmenting is measured by."""
    sub.add_argument(
        "--masks", type=Path, required=True, help="folder with one mask for each slide, written by `gigapipe mask`"
    )


def add_train_tissue(verbs: Verbs) -> None:
    sub = verb(
        verbs, train_tissue, "Train the gigapixel U-Net to segment tissue on whole slides. Start it with mpiexec."
    )
    training_arguments(sub, "train-tissue")


def training_arguments(sub: argparse.ArgumentParser, verb: str) -> None:
    """What both verbs that train on masks are told."""
    ranks_arguments(sub)
    masks_argument(sub)
    learning_arguments(sub)
    own_network_arguments(sub, "your own network instead of the U-Net")
    task_argument(sub, verb)


def train_tissue(args: argparse.Namespace) -> None:
    _train(args, "train-tissue", "tissue")


def add_train_segmentation(verbs: Verbs) -> None:
    sub = verb(
        verbs,
        train_segmentation,
        "Train the gigapixel U-Net to segment regions of several classes. Start it with mpiexec.",
    )
    training_arguments(sub, "train-segmentation")
    sub.add_argument(
        "--class",
        dest="classes",
        action="append",
        required=True,
        metavar="NAME",
        help="a class of the masks, in the order of their label values",
    )


def train_segmentation(args: argparse.Namespace) -> None:
    _train(args, "train-segmentation", "segmentation", classes=args.classes)


def _train(args: argparse.Namespace, verb: str, default: str, **more) -> None:
    stop = Stop(args.time_limit)
    return_freed_tensors()
    from gigapipe.evaluation.folds import roles
    from gigapipe.training.loop import train
    from gigapipe.training.ranks import started

    network, task, memory = own_network(args), task_to_train(args, verb, default), memory_of(args)
    with started(*mesh_of(args), **launching(args)) as mesh:
        parts = roles(slides_of(args), args.fold)
        own = values(OwnNetwork, args) | {"network_code": network.code(), **settings_of_task(task)}
        learning = learning_of(task)
        settings = learning.kind.of(training_settings(args) | own | more)
        training, validation = (
            settings.pairs(parts[role], args.pyramids, args.masks, mesh, stage_of(args))
            for role in ("training", "validation")
        )
        to_learn = learning(settings, training, validation, mesh, memory)
        train(to_learn, args.output, stop, args.keep_checkpoints, args.tensorboard)


def add_segment(verbs: Verbs) -> None:
    sub = verb(
        verbs,
        segment,
        "Segment the tissue or the regions of held-out slides: masks, images, Dice. Start it with mpiexec.",
    )
    ranks_arguments(sub)
    masks_argument(sub)
    sub.add_argument(
        "--model", type=Path, required=True, help="the model that `gigapipe train-tissue` or `train-segmentation` wrote"
    )
    applied_model_arguments(sub)
    sub.add_argument(
        "--output", type=Path, required=True, help="folder to write: a mask and a PNG for each slide, and dice.tsv"
    )


def segment(args: argparse.Namespace) -> None:
    return_freed_tensors()
    import numpy as np
    import pandas as pd

    from gigapipe.evaluation.folds import roles
    from gigapipe.evaluation.identity import identity_beside, refuse_other_folds, without_identity
    from gigapipe.evaluation.overlap import compared, draw
    from gigapipe.pyramids.masks import write_mask
    from gigapipe.slides.written_tables import write_table
    from gigapipe.training.model_files import trained_model
    from gigapipe.training.ranks import started
    from gigapipe.training.segmentation import SegmenterSettings, segment
    from gigapipe.training.streaming import Streaming
    from gigapipe.training.task import kinds_of_settings

    task = own_task(args, canvas=False)
    data, rows, columns = mesh_of(args)
    with started(1, data * rows, columns, **launching(args)) as mesh:
        model, settings = trained_model(args.model, kinds_of_settings(canvas=False), mesh, own_network(args), task)
        assert isinstance(settings, SegmenterSettings)
        parts = roles(slides_of(args), settings.fold)
        table = parts["test"]
        pairs = settings.pairs(table, args.pyramids, args.masks, mesh, stage_of(args))
        identity = identity_beside(args.model)
        if mesh.rank == 0:
            without_identity(int(identity is None), 1, f"model {args.model}")
        refuse_other_folds(args.model, identity, parts)
        found = segment(model, settings, pairs, Streaming(memory_of(args), mesh))
        if mesh.rank:
            for _ in found:
                pass
            return
        scores = []
        with atomic_folder(args.output) as partial:
            partial.mkdir(parents=True)
            for i, values in enumerate(found):
                name, mask = pairs.slides[i], np.asarray(pairs.masks[i][:])
                write_mask(partial / name, values, pairs.pyramids[i], settings.mpp, pairs.classes)
                draw(partial / f"{name}.png", pairs.images[i], values, mask, pairs.classes)
                scores.append(compared(values, mask, pairs.classes).assign(slide=name))
                said = ", ".join(
                    f"{row.get('class', 'Dice')} {row['dice']:.4f}" for row in scores[-1].to_dict("records")
                )
                print(f"slide {name}: {said}", file=sys.stderr, flush=True)
            table = table[["slide", "patient", "site", "fold"]].assign(mpp=settings.mpp)
            write_table(table.merge(pd.concat(scores), on="slide"), partial / "dice.tsv")


def add_dice(verbs: Verbs) -> None:
    sub = verb(verbs, dice, "Summarise Dice of all held-out slides: mean and standard deviation, and a recommendation.")
    sub.add_argument("--tables", type=Path, nargs="+", required=True, help="the dice.tsv that `gigapipe segment` wrote")
    sub.add_argument("--trainings", type=Path, nargs="+", required=True, help="the training.json of the same models")
    add_options(sub, Comparison)
    sub.add_argument("--output", type=Path, required=True, help="folder for dice.tsv and dice.md")
    attempts_argument(sub)


def dice(args: argparse.Namespace) -> None:
    from gigapipe.evaluation.overlap import as_markdown, overlaps
    from gigapipe.slides.written_tables import write_table

    table = overlaps(args.tables)
    with atomic_file(args.output / "dice.tsv") as partial:
        write_table(table, partial, float_format="%.6g")
    with atomic_file(args.output / "dice.md") as partial:
        partial.write_text(as_markdown(table, args.trainings, args.margin), encoding="utf-8")
