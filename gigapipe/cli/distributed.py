"""What the verbs that are started with mpiexec share: their arguments, and how they are read."""

import argparse
import os
import re
import socket
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from gigapipe.attempts import Attempts
from gigapipe.cli.arguments import micrometres, minutes, positive, renamed
from gigapipe.configuration.command_line import add_options, converter, values
from gigapipe.configuration.configuration import Computing, Learning, OwnNetwork, Training
from gigapipe.configuration.messages import allowed, either
from gigapipe.configuration.tasks import TASKS, Task, TaskName, code_of, task_named
from gigapipe.configuration.values import Function
from gigapipe.errors import InputError
from gigapipe.exit_status import UNFINISHED
from gigapipe.named import PATTERN
from gigapipe.training.carriers import AUTO, TRANSPORTS

if TYPE_CHECKING:  # it imports torch
    from gigapipe.training.streaming import Memory

TRANSPORT = either([AUTO, *TRANSPORTS, allowed(Function)])
"""What may be given for one, in words."""


def _transport(text: str) -> str:
    if text in (AUTO, *TRANSPORTS) or re.fullmatch(PATTERN, text):
        return text
    raise argparse.ArgumentTypeError(f"found {text}; allowed is {TRANSPORT}")


def ranks_arguments(sub: argparse.ArgumentParser, folds: bool = True, pyramids: bool = True) -> None:
    """The slides, those of all `folds` or others, their `pyramids`, and the ranks that work on them."""
    if folds:
        sub.add_argument("--folds", type=Path, required=True, help="table that `gigapipe folds` wrote")
    if pyramids:
        sub.add_argument("--pyramids", type=Path, required=True, help="folder with one pyramid for each slide")
    sub.add_argument(
        "--mesh",
        nargs="+",
        default=["1", "1", "1"],
        metavar="RANKS",
        help="arrangement of the ranks: DATA ROWS COLUMNS; start as many with `mpiexec -n` as their product; or auto: "
        "all started ranks share each image",
    )
    sub.add_argument(
        "--threads",
        type=positive,
        help="CPU threads of each rank; by default the machine's cores are divided among the ranks",
    )
    sub.add_argument(
        "--transport",
        type=_transport,
        default=AUTO,
        metavar="TRANSPORT",
        help=f"communication between ranks: {TRANSPORT}; auto is MPI between CPUs, and torch (NCCL) between GPUs",
    )
    add_options(sub, Computing)
    sub.add_argument(
        "--timeout",
        type=minutes,
        metavar="TIME",
        help="the job ends if a rank waits longer than this for another, as 90 (minutes) or 45s; by default 10 "
        "minutes, or 2 hours with --memory",
    )
    renamed(sub, "--silence", "--timeout")
    sub.add_argument(
        "--attempts",
        metavar="KEY",
        help="an identifier of these settings, set by the workflow: if a run fails in a way that would recur, this is "
        "recorded beside the output, and the next run with the same KEY ends at once",
    )


def own_network_arguments(sub: argparse.ArgumentParser, help: str) -> None:
    """A network of the user's, which is made by a function."""
    sub.add_argument("--network", type=converter(Function), metavar="NETWORK", help=f"{help}: {allowed(Function)}")
    add_options(sub, OwnNetwork, ["network_options"])


def applied_model_arguments(sub: argparse.ArgumentParser) -> None:
    """What a model needs beside its file, which runs no code that is not named here."""
    own_network_arguments(sub, "the model's network, if it is your own; its code is executed")
    sub.add_argument(
        "--task",
        type=converter(Function),
        metavar="TASK",
        help=f"the model's task, if it is your own; its code is executed: {allowed(Function)}",
    )


def own_task(args: argparse.Namespace, canvas: bool) -> Task | None:
    """The task of the user's that a model has learnt. InputError if its networks see something else than canvases, or
    than slides as they are."""
    task = task_named(args.task) if args.task else None
    if task and task.canvas is not canvas:
        raise InputError(f"task {args.task}: use `gigapipe {'predict' if task.canvas else 'segment'}` for this task")
    return task


def task_argument(sub: argparse.ArgumentParser, verb: str) -> None:
    """What a verb is to train."""
    brought = [name for name, task in TASKS.items() if task.train == verb]
    sub.add_argument(
        "--task",
        type=converter(TaskName),
        metavar="TASK",
        help=f"what is learned: {either([*brought, 'your own task'])}, {allowed(Function)}",
    )


def task_to_train(args: argparse.Namespace, verb: str, default: str) -> Task:
    """What a verb is to train. InputError if that is another verb's."""
    task = task_named(args.task or default)
    if task.train != verb:
        raise InputError(f"task {args.task}: use `gigapipe {task.train}` for this task")
    return task


def settings_of_task(task: Task) -> dict:
    """What a model's settings say of a task of the user's; nothing of another."""
    return {"own_task": task.own, "task_code": code_of(task)} if task.own else {}


def own_network(args: argparse.Namespace) -> OwnNetwork:
    return OwnNetwork.of(values(OwnNetwork, args))


def slides_of(args: argparse.Namespace):
    """The table of folds, without the slides that were left out when their pyramids were made."""
    from gigapipe.evaluation.folds import read_folds
    from gigapipe.pyramids.folders import left_out

    table = read_folds(args.folds)
    return table.loc[[left_out(args.pyramids / slide) is None for slide in table["slide"]]]


def mesh_of(args: argparse.Namespace) -> tuple[int, int, int]:
    """Data, rows and columns of the ranks."""
    if args.mesh == ["auto"]:
        from gigapipe.planning.scaling import shapes
        from gigapipe.training.launched import launched

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
    return _on_the_node("stage", args.stage) if args.stage else None


def features_of(args: argparse.Namespace) -> Path | None:
    """The folder of features, likewise."""
    return _on_the_node("features", args.features) if args.features else None


def memory_of(args: argparse.Namespace) -> "Memory | None":
    """What a rank may use. InputError if there is a place for what does not fit, but no limit."""
    from gigapipe.training.streaming import Memory

    if args.memory is None:
        for key, given in (("host_memory", args.host_memory), ("disk", args.disk)):
            if given:
                raise InputError(f"{key}: {given}: give memory, too: this is for what does not fit into it")
        return None
    return Memory(args.memory, _on_the_node("disk", args.disk) if args.disk else None, args.host_memory)


def _on_the_node(key: str, given: str) -> Path:
    folder = os.path.expandvars(given)
    if "$" in folder:
        raise InputError(
            f"{key}: {given} contains an environment variable that is not set on {socket.gethostname()}; set it there"
        )
    return Path(folder)


def launching(args: argparse.Namespace) -> dict:
    """What `started` is told beside the mesh."""
    from gigapipe.training.ranks import STREAMING_TIMEOUT, TIMEOUT

    timeout = STREAMING_TIMEOUT if args.memory else TIMEOUT
    if args.timeout:
        timeout = timedelta(minutes=args.timeout)
    names = ("threads", "transport", "device", "memory", "deterministic")
    attempts = Attempts(args.output, args.attempts)
    return {name: getattr(args, name) for name in names} | {"timeout": timeout, "attempts": attempts}


def learning_arguments(sub: argparse.ArgumentParser) -> None:
    """What all kinds of training are told."""
    sub.add_argument(
        "--fold", type=int, required=True, help="number of the test fold; the next fold is the validation fold"
    )
    sub.add_argument("--mpp", type=micrometres, required=True, help="resolution, in µm per pixel")
    add_options(sub, Learning)
    sub.add_argument(
        "--seed", type=int, default=0, help="random seed of initial weights, order of slides and augmentation"
    )
    sub.add_argument(
        "--output", type=Path, required=True, help="the model to write; training.json is written beside it"
    )
    sub.add_argument(
        "--time-limit",
        type=minutes,
        metavar="TIME",
        help="time limit of the job, as 90 (minutes) or 2h: training stops before it, or at SIGTERM or SIGUSR1, with "
        f"exit status {UNFINISHED}; the same command then resumes it",
    )
    add_options(sub, Training, ["keep_checkpoints", "tensorboard"])


def training_settings(args: argparse.Namespace) -> dict:
    """The same, as keywords of the settings."""
    return values(Learning, args) | {name: getattr(args, name) for name in ("mpp", "fold", "seed")}
