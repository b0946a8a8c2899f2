"""Verbs of the tissue's segmentation: its masks, the U-Net that learns them, and their agreement."""

import argparse
import sys
from pathlib import Path

from gigapipe.allocator import return_freed_tensors
from gigapipe.atomic import atomic_file, atomic_folder
from gigapipe.cli.arguments import Verbs, verb
from gigapipe.cli.distributed import (
    launching,
    learning_arguments,
    mesh_of,
    ranks_arguments,
    slides_of,
    stage_of,
    training_settings,
)
from gigapipe.training.stopping import Stop


def add_verbs(verbs: Verbs) -> None:
    add_mask(verbs)
    add_train_tissue(verbs)
    add_segment(verbs)
    add_dice(verbs)


def add_mask(verbs: Verbs) -> None:
    sub = verb(verbs, mask, "Find where a slide has tissue, or take it from a picture, as a label image.")
    sub.add_argument("pyramid", type=Path, help="the folder that `gigapipe pyramid` wrote")
    sub.add_argument("folder", type=Path, help="the folder to write; the store is image.zarr in it")
    sub.add_argument("--mpp", type=float, required=True, help="resolution, in µm per pixel")
    sub.add_argument(
        "--drawn", type=Path, metavar="FILE", help="picture or .npy of the whole slide, not zero where there is tissue"
    )


def mask(args: argparse.Namespace) -> None:
    from gigapipe.pyramids import Pyramid
    from gigapipe.pyramids.masks import make_mask
    from gigapipe.pyramids.store import leave_out, left_out

    if reason := left_out(args.pyramid):
        leave_out(args.folder, reason)
    else:
        make_mask(Pyramid(args.pyramid), args.mpp, args.folder, args.drawn)


def masks_argument(sub: argparse.ArgumentParser) -> None:
    """The masks that training learns from and segmenting is measured by."""
    sub.add_argument("--masks", type=Path, required=True, help="folder with one mask a slide, as `gigapipe mask` makes")


def add_train_tissue(verbs: Verbs) -> None:
    sub = verb(verbs, train_tissue, "Train the gigapixel U-Net to find tissue on whole slides. Start it with mpiexec.")
    ranks_arguments(sub)
    masks_argument(sub)
    learning_arguments(sub)


def train_tissue(args: argparse.Namespace) -> None:
    stop = Stop(args.time_limit)
    return_freed_tensors()
    from gigapipe.evaluation.folds import roles
    from gigapipe.training.loop import train
    from gigapipe.training.ranks import started
    from gigapipe.training.segmentation import Pairs, Segmentation, SegmenterSettings

    with started(*mesh_of(args), **launching(args)) as mesh:
        parts = roles(slides_of(args), args.fold)
        settings = SegmenterSettings.of(training_settings(args))
        training, validation = (
            Pairs(parts[role], args.pyramids, args.masks, args.mpp, mesh, stage_of(args))
            for role in ("training", "validation")
        )
        task = Segmentation(settings, training, validation, mesh, args.memory)
        train(task, args.output, stop, args.keep_checkpoints)


def add_segment(verbs: Verbs) -> None:
    sub = verb(verbs, segment, "Find the tissue of held-out slides: masks, pictures and Dice. Start it with mpiexec.")
    ranks_arguments(sub)
    masks_argument(sub)
    sub.add_argument("--model", type=Path, required=True, help="the model that `gigapipe train-tissue` wrote")
    sub.add_argument(
        "--output", type=Path, required=True, help="folder to write: a mask and a PNG a slide, and dice.tsv"
    )


def segment(args: argparse.Namespace) -> None:
    return_freed_tensors()
    import numpy as np

    from gigapipe.evaluation.folds import roles
    from gigapipe.evaluation.overlap import dice, draw_overlay
    from gigapipe.pyramids.masks import write_mask
    from gigapipe.training.model_files import trained_model
    from gigapipe.training.ranks import started
    from gigapipe.training.segmentation import Pairs, SegmenterSettings, segment
    from gigapipe.training.streaming import Streaming

    data, rows, columns = mesh_of(args)
    with started(1, data * rows, columns, **launching(args)) as mesh:
        model, settings = trained_model(args.model, SegmenterSettings, mesh)
        table = roles(slides_of(args), settings.fold)["test"]
        pairs = Pairs(table, args.pyramids, args.masks, settings.mpp, mesh, stage_of(args))
        found = segment(model, settings, pairs, Streaming(args.memory, mesh))
        if mesh.rank:
            for _ in found:
                pass
            return
        scores = []
        with atomic_folder(args.output) as partial:
            partial.mkdir(parents=True)
            for i, tissue in enumerate(found):
                write_mask(partial / pairs.slides[i], tissue, settings.mpp, tuple(pairs.pyramids[i].source["mpp"]))
                mask = np.asarray(pairs.masks[i][:])
                draw_overlay(partial / f"{pairs.slides[i]}.png", pairs.images[i], tissue, mask)
                scores.append(dice(tissue, mask))
                print(f"slide {pairs.slides[i]}: Dice {scores[-1]:.4f}", file=sys.stderr, flush=True)
            table = table[["slide", "patient", "site", "fold"]].assign(mpp=settings.mpp, dice=scores)
            table.to_csv(partial / "dice.tsv", sep="\t", index=False)


def add_dice(verbs: Verbs) -> None:
    sub = verb(verbs, dice, "Dice of all held-out slides, and its mean and standard deviation.")
    sub.add_argument("--tables", type=Path, nargs="+", required=True, help="the dice.tsv that `gigapipe segment` wrote")
    sub.add_argument("--trainings", type=Path, nargs="+", required=True, help="the training.json of the same models")
    sub.add_argument("--output", type=Path, required=True, help="folder for dice.tsv and dice.md")


def dice(args: argparse.Namespace) -> None:
    from gigapipe.evaluation.overlap import as_markdown, overlaps

    table = overlaps(args.tables)
    with atomic_file(args.output / "dice.tsv") as partial:
        table.to_csv(partial, sep="\t", index=False, float_format="%.6g")
    with atomic_file(args.output / "dice.md") as partial:
        partial.write_text(as_markdown(table, args.trainings))
