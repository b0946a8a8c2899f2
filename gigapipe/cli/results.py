"""Verbs that show results: what networks saw in slides, and the report of a whole run."""

import argparse
import sys
from pathlib import Path

from gigapipe.allocator import return_freed_tensors
from gigapipe.atomic import atomic_file, atomic_folder
from gigapipe.cli.arguments import Verbs, verb
from gigapipe.cli.distributed import launching, mesh_of, ranks_arguments, stage_of
from gigapipe.configuration import Configuration
from gigapipe.configuration.command_line import add_options
from gigapipe.errors import InputError


def add_verbs(verbs: Verbs) -> None:
    add_map(verbs)
    add_report(verbs)


def add_map(verbs: Verbs) -> None:
    sub = verb(verbs, map, "Class activation of whole held-out slides: OME-Zarr and pictures. Start it with mpiexec.")
    ranks_arguments(sub, folds=False)
    sub.add_argument(
        "--models", type=Path, nargs="+", required=True, help="models that `gigapipe train` wrote at one resolution"
    )
    sub.add_argument(
        "--predictions", type=Path, nargs="+", required=True, help="what `gigapipe predict` wrote for each of them"
    )
    add_options(sub, Configuration, ["maps"])
    sub.add_argument("--slides", nargs="+", metavar="SLIDE", help="these held-out slides instead; `all` for all")
    sub.add_argument(
        "--output", type=Path, required=True, help="folder to write: a store and a PNG a slide, and maps.tsv"
    )


def map(args: argparse.Namespace) -> None:
    return_freed_tensors()
    from gigapipe.evaluation.maps import chosen_slides, draw_map
    from gigapipe.models.resnet import ResNet
    from gigapipe.pyramids.maps import on_slide, write_map
    from gigapipe.training.activation import STRIDE, activations
    from gigapipe.training.classification import ClassifierSettings
    from gigapipe.training.model_files import trained_model
    from gigapipe.training.ranks import started
    from gigapipe.training.streaming import Streaming

    if len(args.models) != len(args.predictions):
        raise InputError(
            f"{len(args.models)} models and {len(args.predictions)} predictions: give those of each model, in one order"
        )
    chosen = chosen_slides(args.predictions, args.maps, args.slides)
    data, rows, columns = mesh_of(args)
    with started(1, data * rows, columns, **launching(args)) as mesh:

        def maps():
            for network, slides in chosen.groupby("network"):
                model, settings = trained_model(args.models[network], ClassifierSettings, mesh)
                assert isinstance(model, ResNet)  # as every classifier's is
                canvases = settings.canvases(slides, args.pyramids, mesh, stage_of(args))
                found = activations(model, settings, canvases, Streaming(args.memory, mesh))
                for slide, pyramid, values in zip(slides.itertuples(), canvases.pyramids, found, strict=True):
                    head = settings.classes, model.fc.bias.tolist()
                    yield slide, pyramid, on_slide(values, *head, pyramid, settings.mpp, settings.canvas, STRIDE)

        if mesh.rank:
            for _ in maps():
                pass
            return
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(args.output) as partial:
            partial.mkdir()
            for slide, pyramid, found in maps():
                write_map(partial / slide.slide, found, slide.slide, tuple(pyramid.source["mpp"]))
                draw_map(partial / f"{slide.slide}.png", found, pyramid, slide.label)
                print(f"slide {slide.slide}: {slide.chosen}", file=sys.stderr, flush=True)
            chosen.drop(columns="network").to_csv(partial / "maps.tsv", sep="\t", index=False)


def add_report(verbs: Verbs) -> None:
    sub = verb(verbs, report, "A page of a whole run: the answer, table, figures, maps, and how it was made.")
    sub.add_argument("results", type=Path, help="the folder of results of one run of the workflow")
    sub.add_argument("--config", type=Path, metavar="FILE", help="the config of that run, to be shown")
    sub.add_argument("--benchmarks", type=Path, help="what Snakemake measured of each job; by default in the results")
    sub.add_argument("--figures", type=Path, metavar="FOLDER", help="write each figure there too, as PNG and SVG")
    sub.add_argument("--output", type=Path, default=Path("report.html"), help="the page to write")


def report(args: argparse.Namespace) -> None:
    from gigapipe.evaluation.report import report

    page = report(args.results, args.config, args.benchmarks or args.results / "benchmarks", args.figures)
    with atomic_file(args.output) as partial:
        partial.write_text(page)
