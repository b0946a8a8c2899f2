"""What the verbs that are started with mpiexec share: their arguments, and how they are read."""

import argparse
import os
import socket
from datetime import timedelta
from pathlib import Path

from gigapipe.cli.arguments import micrometres, minutes, positive, renamed
from gigapipe.configuration.command_line import add_options, values
from gigapipe.configuration.configuration import Computing, Learning, Training
from gigapipe.errors import InputError
from gigapipe.training.stopping import UNFINISHED


def ranks_arguments(sub: argparse.ArgumentParser, folds: bool = True) -> None:
    """The slides, those of all `folds` or others, and the ranks that work on them."""
    if folds:
        sub.add_argument("--folds", type=Path, required=True, help="table that `gigapipe folds` wrote")
    sub.add_argument("--pyramids", type=Path, required=True, help="folder with one pyramid a slide")
    sub.add_argument(
        "--mesh",
        nargs="+",
        default=["1", "1", "1"],
        metavar="RANKS",
        help="how the ranks are arranged: DATA ROWS COLUMNS, started with `mpiexec -n` their product; or auto: all "
        "that were started share each image",
    )
    sub.add_argument(
        "--threads",
        type=positive,
        help="CPU threads of each rank; the machine's cores are shared out unless it is given",
    )
    sub.add_argument(
        "--transport",
        choices=["auto", "mpi", "torch"],
        default="auto",
        help="what carries halos and sums between ranks; auto is MPI between CPUs, and torch (NCCL) between GPUs",
    )
    add_options(sub, Computing)
    sub.add_argument(
        "--timeout",
        type=minutes,
        metavar="TIME",
        help="a rank that waits for another for longer, as 90 (minutes) or 45s, ends the job; by default 10 minutes, "
        "and 2 hours with --memory",
    )
    renamed(sub, "--silence", "--timeout")


def slides_of(args: argparse.Namespace):
    """The table of folds, without the slides that were left out when their pyramids were made."""
    from gigapipe.evaluation.folds import read_folds
    from gigapipe.pyramids.store import left_out

    table = read_folds(args.folds)
    return table[[left_out(args.pyramids / slide) is None for slide in table["slide"]]]


def mesh_of(args: argparse.Namespace) -> tuple[int, int, int]:
    """Data, rows and columns of the ranks."""
    if args.mesh == ["auto"]:
        from gigapipe.planning.scaling import shapes
        from gigapipe.training.ranks import launched

        ranks = launched()
        rows, columns = shapes(ranks, (ranks, ranks))[0]
        return 1, rows, columns
    try:
        data, rows, columns = map(positive, args.mesh)
    except (ValueError, argparse.ArgumentTypeError):
        raise InputError(f"mesh: found {' '.join(args.mesh)}; give DATA ROWS COLUMNS, as 1 2 2, or auto") from None
    return data, rows, columns


def stage_of(args: argparse.Namespace) -> Path | None:
    """The folder on the node's own disk, its variables those of the environment that the process finds itself in."""
    if args.stage is None:
        return None
    folder = os.path.expandvars(args.stage)
    if "$" in folder:
        raise InputError(f"stage: {args.stage} has a variable that is not set on {socket.gethostname()}; set it there")
    return Path(folder)


def launching(args: argparse.Namespace) -> dict:
    """What `started` is told beside the mesh."""
    from gigapipe.training.ranks import STREAMING_TIMEOUT, TIMEOUT

    timeout = STREAMING_TIMEOUT if args.memory else TIMEOUT
    if args.timeout:
        timeout = timedelta(minutes=args.timeout)
    failure_records = args.output.with_name(f"{args.output.name}.failed")
    names = ("threads", "transport", "device")
    return {name: getattr(args, name) for name in names} | {"timeout": timeout, "failure_records": failure_records}


def learning_arguments(sub: argparse.ArgumentParser) -> None:
    """What all kinds of training are told."""
    sub.add_argument("--fold", type=int, required=True, help="held out; the next fold chooses the epoch")
    sub.add_argument("--mpp", type=micrometres, required=True, help="resolution, in µm per pixel")
    add_options(sub, Learning)
    sub.add_argument("--seed", type=int, default=0, help="of the first weights, the order of slides and augmentation")
    sub.add_argument("--output", type=Path, required=True, help="the model to write; training.json comes beside it")
    sub.add_argument(
        "--time-limit",
        type=minutes,
        metavar="TIME",
        help=f"what the job has, as 90 (minutes) or 2h: it stops in time, or at SIGTERM or SIGUSR1, with status "
        f"{UNFINISHED}; the same command then goes on",
    )
    add_options(sub, Training, ["keep_checkpoints"])


def training_settings(args: argparse.Namespace) -> dict:
    """The same, as keywords of the settings."""
    return values(Learning, args) | {name: getattr(args, name) for name in ("mpp", "fold", "seed")}
