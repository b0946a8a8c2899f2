"""What the verbs that are started with mpiexec share: their arguments, and how they are read."""

import argparse
from datetime import timedelta
from pathlib import Path

from gigapipe.cli.arguments import device, folder_of_variables, minutes, positive, share, size_in_bytes
from gigapipe.training.stopping import UNFINISHED


def ranks_arguments(sub: argparse.ArgumentParser, folds: bool = True) -> None:
    """The slides, those of all `folds` or others, and the ranks that work on them."""
    if folds:
        sub.add_argument("--folds", type=Path, required=True, help="table that `gigapipe folds` wrote")
    sub.add_argument("--pyramids", type=Path, required=True, help="folder with one pyramid a slide")
    sub.add_argument(
        "--mesh",
        type=positive,
        nargs=3,
        default=[1, 1, 1],
        metavar=("DATA", "ROWS", "COLUMNS"),
        help="how the ranks are arranged; start it with `mpiexec -n` their product",
    )
    sub.add_argument(
        "--threads",
        type=positive,
        help="CPU threads of each rank; the machine's cores are shared out unless it is given",
    )
    sub.add_argument(
        "--device",
        type=device,
        default="auto",
        help="where ranks compute: cpu; cuda (AMD's GPUs too), one for each rank; cuda:0, which a host's ranks share; "
        "xpu or mps, both untried; auto is cuda if there is one for each rank, and else cpu",
    )
    sub.add_argument(
        "--transport",
        choices=["auto", "mpi", "torch"],
        default="auto",
        help="what carries halos and sums between ranks; auto is MPI between CPUs, and torch (NCCL) between GPUs",
    )
    sub.add_argument(
        "--memory",
        type=size_in_bytes,
        metavar="SIZE",
        help="what a rank may take, as 6GiB: what does not fit is computed tile by tile, with the same gradients",
    )

    sub.add_argument(
        "--stage",
        type=folder_of_variables,
        metavar="FOLDER",
        help="on the node's own disk, as '$TMPDIR/gigapipe': what is read of pyramids is kept there, as far as it fits",
    )
    sub.add_argument(
        "--silence",
        type=minutes,
        metavar="TIME",
        help="a rank that waits for another for longer, as 90 (minutes) or 45s, ends the job; by default 10 minutes, "
        "and 2 hours with --memory",
    )


def slides_of(args: argparse.Namespace):
    """The table of folds, without the slides that were left out when their pyramids were made."""
    from gigapipe.evaluation.folds import read_folds
    from gigapipe.pyramids.store import left_out

    table = read_folds(args.folds)
    return table[[left_out(args.pyramids / slide) is None for slide in table["slide"]]]


def launching(args: argparse.Namespace) -> dict:
    """What `started` is told beside the mesh."""
    from gigapipe.training.ranks import LONG_SILENCE, SILENCE

    silence = LONG_SILENCE if args.memory else SILENCE
    if args.silence:
        silence = timedelta(minutes=args.silence)
    last_words = args.output.with_name(f"{args.output.name}.failed")
    names = ("threads", "transport", "device")
    return {name: getattr(args, name) for name in names} | {"silence": silence, "last_words": last_words}


def learning_arguments(sub: argparse.ArgumentParser, batch: int) -> None:
    """What all kinds of training are told; `batch` is the default, which differs."""
    sub.add_argument("--fold", type=int, required=True, help="held out; the next fold chooses the epoch")
    sub.add_argument("--mpp", type=float, required=True, help="resolution, in µm per pixel")
    sub.add_argument("--epochs", type=positive, default=10, help="passes over the training slides")
    sub.add_argument("--batch", type=positive, default=batch, help="slides a step, over all data ranks")
    sub.add_argument("--learning-rate", type=float, default=3e-4, help="AdamW's, after warm-up; it falls as a cosine")
    sub.add_argument("--weight-decay", type=float, default=1e-2, help="AdamW's")
    sub.add_argument(
        "--schedule",
        choices=["cosine", "plateau"],
        default="cosine",
        help="of the learning rate, after warm-up: a half cosine, or it falls, back to the best weights, where "
        "validation gets no better for --patience epochs",
    )
    sub.add_argument(
        "--patience", type=positive, metavar="EPOCHS", help="end when validation gets no better for so long"
    )
    sub.add_argument(
        "--accumulate", type=positive, default=1, help="batches whose gradients are added up before a step"
    )
    sub.add_argument(
        "--symmetries",
        choices=["all", "none"],
        default="all",
        help="how slides are flipped and turned, drawn for each slide and epoch",
    )
    sub.add_argument("--stain", type=share, default=0.0, help="by what share stains may be stronger or weaker")
    sub.add_argument("--brightness", type=share, default=0.0, help="by what share slides may be darker or lighter")
    sub.add_argument("--contrast", type=share, default=0.0, help="how far contrast may differ: an exponent of 1 + this")
    sub.add_argument("--seed", type=int, default=0, help="of the first weights, the order of slides and how they look")
    sub.add_argument(
        "--precision",
        choices=["float32", "bfloat16"],
        default="float32",
        help="of activations; weights stay float32",
    )
    sub.add_argument("--output", type=Path, required=True, help="the model to write; training.json comes beside it")
    sub.add_argument(
        "--time-limit",
        type=minutes,
        metavar="TIME",
        help=f"what the job has, as 90 (minutes) or 2h: it stops in time, or at SIGTERM or SIGUSR1, with status "
        f"{UNFINISHED}; the same command then goes on",
    )
    sub.add_argument("--keep-checkpoints", type=positive, default=2, help="how many of the last states stay on disk")


def training_settings(args: argparse.Namespace) -> dict:
    """The same, as keywords of the settings."""
    names = (
        "mpp", "fold", "epochs", "batch", "learning_rate", "weight_decay", "seed", "precision",
        "schedule", "patience", "accumulate", "symmetries", "stain", "brightness", "contrast",
    )  # fmt: skip
    return {name: getattr(args, name) for name in names}
