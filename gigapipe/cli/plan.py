"""The verb that says which meshes hold a training, and how fast they would be, before any of it runs."""

import argparse
import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from gigapipe.atomic import atomic_file
from gigapipe.cli.arguments import Verbs, positive, size_in_bytes, sizes, verb
from gigapipe.configuration.command_line import add_options
from gigapipe.configuration.configuration import NETWORKS, Learning, Network
from gigapipe.errors import InputError
from gigapipe.planning.machines import MACHINES, Machine, machine

if TYPE_CHECKING:
    from gigapipe.planning.scaling import Point
    from gigapipe.planning.streamed import Elsewhere

NAMES = (*get_args(NETWORKS), "unet")


def add_verbs(verbs: Verbs) -> None:
    sub = verb(verbs, plan, "Estimate which meshes hold a training, what a step would take, and which mesh is best.")
    sub.add_argument("model", help=f"{', '.join(NAMES)}, or a function that returns one, as mine.py:unet")
    sub.add_argument("canvas", type=sizes, help="rows and columns of an image, as 22528x22528")
    sub.add_argument(
        "--machine",
        default="summit",
        help=f"{', '.join(MACHINES)}, or a file that --measure wrote: the hardware of a rank",
    )
    sub.add_argument(
        "--ranks", type=positive, help="number of GPUs; without it, the smallest sufficient number is used"
    )
    sub.add_argument("--batch", type=positive, default=1, help="images per step, over all data ranks")
    add_options(sub, Learning, ["precision"])
    add_options(sub, Network, ["norm", "network_options"])
    sub.add_argument("--memory", type=size_in_bytes, metavar="SIZE", help="memory of a rank, instead of the machine's")
    sub.add_argument("--ranks-per-node", type=positive, help="number of ranks per node, instead of the machine's")
    sub.add_argument(
        "--near", type=size_in_bytes, metavar="SIZE", help="bandwidth between ranks of a node, in bytes per second"
    )
    sub.add_argument("--far", type=size_in_bytes, metavar="SIZE", help="bandwidth between nodes, in bytes per second")
    sub.add_argument(
        "--disk-speed",
        type=size_in_bytes,
        metavar="SIZE",
        help="bytes that a local disk writes, or reads, in a second: images that are streamed may then be kept on it",
    )
    sub.add_argument(
        "--host-speed",
        type=size_in_bytes,
        metavar="SIZE",
        help="bytes that a GPU sends to the memory of its host, or brings back, in a second: images that are streamed "
        "may then be kept there",
    )
    sub.add_argument(
        "--host-memory", type=size_in_bytes, metavar="SIZE", help="of that memory, what a rank may take; default: all"
    )
    sub.add_argument(
        "--tradeoff",
        action="store_true",
        help="also print the time of a step on one rank against its memory, from undivided to the least; may take "
        "minutes",
    )
    sub.add_argument(
        "--scaling", action="store_true", help="also print tables of strong and weak scaling up to --ranks"
    )
    sub.add_argument(
        "--trainings",
        type=Path,
        nargs="+",
        default=[],
        help="training.json of real trainings, to show measured values beside the predicted ones",
    )
    sub.add_argument(
        "--table", type=Path, metavar="FILE", help="write the tables of scaling to this file, for the report"
    )
    sub.add_argument(
        "--measure",
        type=Path,
        metavar="FILE",
        help="measure this machine (a minute or two), write the result to FILE, and plan for it",
    )
    sub.add_argument(
        "--device",
        default="auto",
        help="what --measure measures: cpu, cuda, xpu, mps, or auto: cuda if there is a GPU, otherwise cpu",
    )


def plan(args: argparse.Namespace) -> None:
    if len(args.canvas) != 2:
        raise InputError("canvas: give rows and columns, as 22528x22528")
    from gigapipe.planning import scaling
    from gigapipe.planning.calibration import measure

    if args.measure:
        import torch

        from gigapipe.training.devices import GPUS, choose

        choice = choose(args.device)
        kind, cards = choice.device.type, 0
        if kind in GPUS:
            cards = torch.get_device_module(kind).device_count()
        elif kind != "cpu":
            raise InputError(f"device {kind}: cannot be measured; give --device cpu")
        ranks = args.ranks_per_node or cards or 2
        if cards and ranks > cards:
            raise InputError(f"--ranks-per-node {ranks}: there are {cards} GPUs to measure; give no more")
        print(choice)
        fit = measure(ranks, kind)
        print(*fit.lines, "", sep="\n")
        with atomic_file(args.measure) as partial:
            partial.write_text(json.dumps(fit.machine._asdict(), indent=2) + "\n", encoding="utf-8")
        chosen = fit.machine
    else:
        chosen = machine(args.machine)
    given = {name: getattr(args, name) for name in ("memory", "ranks_per_node", "near", "far")}
    chosen = chosen._replace(**{name: value for name, value in given.items() if value})
    job = job_of(args, on_gpu=chosen.has_gpus)
    elsewhere = _elsewhere(args, chosen)
    points = scaling.meshes(job, chosen, args.ranks, args.batch)
    best = scaling.best(points)
    rows, columns = args.canvas
    norm = f", norm {_network(args).norm}" if args.model in get_args(NETWORKS) else ""
    print(
        f"{args.model}{norm}, {rows:,} × {columns:,} px, batch {args.batch}, {args.precision}, on {chosen.name}.\n"
        "Predicted by a model; nothing was run.\n"
    )
    print(_table(points, best, chosen))
    if best:
        print(f"\nThe time of the step marked →: {scaling.spent(job, chosen, best)}")
    if best is None:
        most = max(point.ranks for point in points)
        print(f"\nNo mesh of up to {most} ranks holds it in {chosen.usable_memory / 1e9:.1f} GB per rank.", flush=True)
        from gigapipe.planning.streamed import streamed

        print(*streamed(job, chosen, elsewhere), sep="\n")
    elif args.scaling:
        modes = _print_scaling(job, chosen, best, args.ranks, args.trainings)
        if args.table:
            with atomic_file(args.table) as partial:
                _write(modes, partial)
    if args.tradeoff:
        from gigapipe.planning.streamed import tradeoff

        print("\nTime against memory, one image on one rank:", flush=True)
        for line in tradeoff(job, chosen, elsewhere):
            print(line, flush=True)
    print("\nAssumed:", *(f"- {line}" for line in (*chosen.assumptions(), *_assumptions(args))), sep="\n")


def job_of(args: argparse.Namespace, on_gpu: bool):
    """What is to be planned: the model, its canvas, and the loss that gigapipe trains it with."""
    import functools

    import torch
    from torch import nn

    from gigapipe import named
    from gigapipe.models import GigapixelUNet
    from gigapipe.models.networks import classifier, made
    from gigapipe.planning.cost import default_loss
    from gigapipe.planning.scaling import Job
    from gigapipe.spatial.recording import without_pixels
    from gigapipe.training.losses import dice_and_cross_entropy

    if args.network_options and args.model in NAMES:
        raise InputError(f"network options: {args.model} has none; they are for your own network")
    loss = default_loss
    make: Callable[[], nn.Module]
    if args.model in get_args(NETWORKS):
        settings = _network(args)
        form = settings.norm, settings.pool, settings.width
        make = functools.partial(classifier, args.model, {}, 2, max(args.canvas), *form)
    elif args.model == "unet":
        make = GigapixelUNet

        def loss(output):
            return dice_and_cross_entropy(output, torch.zeros_like(output, dtype=torch.float32))
    else:
        try:
            named.load(args.model)
        except InputError as error:
            raise InputError(f"model {error}; or give one of {', '.join(NAMES)}") from None
        make = functools.partial(made, args.model, args.network_options)
    with without_pixels():
        first = next((m for m in make().modules() if isinstance(m, nn.Conv2d)), None)
    return Job(make, args.canvas, args.precision, first.in_channels if first else 3, loss, on_gpu)


def _elsewhere(args: argparse.Namespace, chosen: Machine) -> "Elsewhere":
    """Where images that are streamed may be kept beside a rank's memory."""
    from gigapipe.planning.streamed import Elsewhere

    if args.host_speed and not chosen.has_gpus:
        raise InputError(f"--host-speed: {chosen.name} has no GPU, whose host's memory would be another; leave it out")
    if args.host_memory and not args.host_speed:
        raise InputError("--host-memory: give --host-speed, too, as 20GB")
    return Elsewhere(args.disk_speed, args.host_speed, args.host_memory or sys.maxsize)


def _network(args: argparse.Namespace) -> Network:
    return Network.of({"network": args.model, "norm": args.norm})


def _table(points: "list[Point]", best: "Point | None", machine: Machine) -> str:
    room = f"fits {machine.usable_memory / 1e9:.1f}"
    lines = [
        f"    {'data × rows × columns':>21} {'ranks':>6} {'memory, GB':>11} {room:>10} {'halo, MB':>9} {'sent, MB':>9} "
        f"{'step, s':>9} {'images/s':>9} {'efficiency':>10}"
    ]
    for point in points:
        lines.append(
            f"  {'→' if point is best else ' '} {f'{point.data} × {point.rows} × {point.columns}':>21} {point.ranks:6} "
            f"{point.memory_gb:11.2f} {'yes' if point.fits else 'no':>10} {point.halo_mb:9.2f} {point.sent_mb:9.1f} "
            f"{point.seconds:9.4g} {point.images_per_second:9.4g} {point.efficiency:10.0%}"
        )
    return "\n".join(lines)


def _print_scaling(
    job, machine: Machine, best: "Point", ranks: int | None, trainings: list[Path]
) -> "list[tuple[str, Point]]":
    """All points, each with its mode: strong or weak."""
    from gigapipe.planning import scaling

    first = best.rows * best.columns
    last = ranks or (16 * first if machine.far else machine.ranks_per_node)
    print(f"\nStrong scaling: one image over {first} to {last} ranks")
    strong = scaling.strong_scaling(job, machine, list(scaling.ranks_up_to(first, last)))
    print(_table(strong, None, machine))
    data = list(scaling.ranks_up_to(1, max(1, last // first)))
    print(f"\nWeak scaling: an image for every {best.rows} × {best.columns} ranks")
    weak = scaling.weak_scaling(job, machine, (best.rows, best.columns), data)
    print(_table(weak, None, machine))
    found = [("strong", point) for point in strong] + [("weak", point) for point in weak]
    if trainings:
        ran = scaling.measured(trainings)
        print("\nMeasured, of trainings:")
        print(_table(ran, None, machine))
        found += [("strong" if point.data == 1 else "weak", point) for point in ran]
    return found


def _write(modes: "list[tuple[str, Point]]", path: Path) -> None:
    """A table with a line for each point and its `mode`, tab-separated; empty where a value is not known."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow([*modes[0][1]._fields, "mode"])
        for mode, point in modes:
            table.writerow([*("" if v != v else f"{v:.6g}" if isinstance(v, float) else v for v in point), mode])


def _assumptions(args: argparse.Namespace) -> list[str]:
    loss = "cross-entropy, with Dice for unet" if args.model in NAMES else "cross-entropy, of every pixel for an image"
    return [
        "memory and bytes are those of one rank and one step: of the rank in the middle of the mesh, which sends most; "
        "a canvas that cannot be divided evenly is counted as the next larger one that can",
        "for each number of ranks per image, the mesh with the shortest borders is used",
        "an operation takes as long as its arithmetic or its memory traffic, whichever is longer; nothing overlaps, "
        "neither exchange and arithmetic nor the all-reduce and the backward pass",
        "efficiency: time of the undivided step on one such rank, if it had enough memory, divided by ranks × the time "
        "of this step",
        f"the loss is {loss}; weights, gradients and AdamW's two moments are float32 on every rank; reading the images "
        "and AdamW's own time are not counted",
    ]
