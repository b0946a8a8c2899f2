"""Verbs that show results: what networks saw in slides, the report of a whole run, and the record of its provenance."""

import argparse
import contextlib
import shutil
import sys
from pathlib import Path

from gigapipe.allocator import return_freed_tensors
from gigapipe.atomic import atomic_file, atomic_folder
from gigapipe.cli.arguments import Verbs, attempts_argument, verb
from gigapipe.cli.distributed import (
    applied_model_arguments,
    launching,
    memory_of,
    mesh_of,
    own_network,
    own_task,
    ranks_arguments,
    stage_of,
)
from gigapipe.configuration import Configuration
from gigapipe.configuration.command_line import add_options
from gigapipe.errors import InputError


def add_verbs(verbs: Verbs) -> None:
    add_map(verbs)
    add_report(verbs)
    add_crate(verbs)
    add_serve(verbs)
    add_leftovers(verbs)


def add_map(verbs: Verbs) -> None:
    sub = verb(
        verbs,
        map,
        "Compute class activation maps of whole held-out slides: OME-Zarr and images. Start it with mpiexec.",
    )
    ranks_arguments(sub, folds=False)
    sub.add_argument(
        "--models", type=Path, nargs="+", required=True, help="models that `gigapipe train` wrote at one resolution"
    )
    applied_model_arguments(sub)
    sub.add_argument(
        "--predictions",
        type=Path,
        nargs="+",
        required=True,
        help="tables that `gigapipe predict` wrote for these models, in the same order",
    )
    add_options(sub, Configuration, ["maps"])
    sub.add_argument("--slides", nargs="+", metavar="SLIDE", help="map these held-out slides; `all`: all of them")
    sub.add_argument(
        "--output",
        type=Path,
        required=True,
        help="folder to write: an OME-Zarr store and a PNG for each slide, and maps.tsv",
    )


def map(args: argparse.Namespace) -> None:
    return_freed_tensors()
    from gigapipe.evaluation.columns import NUMBER
    from gigapipe.evaluation.identity import identity_beside, refuse_another_network, without_identity
    from gigapipe.evaluation.maps import chosen_slides, draw_map
    from gigapipe.pyramids.maps import on_slide, write_map
    from gigapipe.slides.written_tables import write_table
    from gigapipe.training.activation import Mapper
    from gigapipe.training.classification import CanvasSettings
    from gigapipe.training.model_files import trained_model
    from gigapipe.training.ranks import started
    from gigapipe.training.regression import RegressorSettings
    from gigapipe.training.streaming import Streaming
    from gigapipe.training.task import files_of, kinds_of_settings

    if len(args.models) != len(args.predictions):
        raise InputError(
            f"{len(args.models)} models and {len(args.predictions)} predictions: give one table for each model, in the "
            "same order"
        )
    task = own_task(args, canvas=True)
    chosen = chosen_slides(args.predictions, args.maps, args.slides)
    data, rows, columns = mesh_of(args)
    with started(1, data * rows, columns, **launching(args)) as mesh:
        if mesh.rank == 0:
            unknown = [model for model in args.models if identity_beside(model) is None]
            without_identity(len(unknown), len(args.models), "models")

        def maps():
            for network, slides in chosen.groupby("network"):
                kinds = kinds_of_settings(canvas=True)
                model, settings = trained_model(args.models[network], kinds, mesh, own_network(args), task)
                assert isinstance(settings, CanvasSettings)
                unit = 1.0
                if isinstance(settings, RegressorSettings):
                    unit, slides = settings.deviation, slides.assign(**{settings.target: slides[NUMBER]})
                mapper = Mapper(model, settings)
                canvases = settings.canvases(slides, args.pyramids, mesh, stage_of(args))
                refuse_another_network(args.models[network], slides, files_of(canvases))
                activations = mapper.activations(canvases, Streaming(memory_of(args), mesh))
                mpp, canvas = settings.mpp, settings.canvas
                for slide, pyramid, found in zip(slides.itertuples(), canvases.pyramids, activations, strict=True):
                    head = settings.outputs, [unit * bias for bias in found.bias]
                    values = unit * found.values
                    yield slide, pyramid, on_slide(values, *head, pyramid, mpp, canvas, *mapper.places)

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
            write_table(chosen.drop(columns="network"), partial / "maps.tsv")


def add_report(verbs: Verbs) -> None:
    sub = verb(
        verbs, report, "Write the report of a run: recommendation, table, figures, maps, and how they were computed."
    )
    sub.add_argument("results", type=Path, help="the results folder of one run of the workflow")
    sub.add_argument("--config", type=Path, metavar="FILE", help="the config of that run, to be shown in the report")
    sub.add_argument(
        "--benchmarks",
        type=Path,
        help="folder with Snakemake's benchmarks of each job; by default in the results folder",
    )
    sub.add_argument(
        "--figures", type=Path, metavar="FOLDER", help="also write each figure to this folder, as PNG and SVG"
    )
    sub.add_argument("--output", type=Path, default=Path("report.html"), help="the page to write")
    attempts_argument(sub)


def report(args: argparse.Namespace) -> None:
    from gigapipe.evaluation.report import report

    benchmarks = args.benchmarks or args.results / "benchmarks"
    page = report(args.results, args.config, benchmarks, args.figures, args.output.parent)
    with atomic_file(args.output) as partial:
        partial.write_text(page, encoding="utf-8")


def add_crate(verbs: Verbs) -> None:
    sub = verb(
        verbs,
        crate,
        "Record what results were computed from and by which software, as a Workflow Run RO-Crate in their folder.",
    )
    sub.add_argument("results", type=Path, help="the results folder of one run of the workflow")
    attempts_argument(sub)


def crate(args: argparse.Namespace) -> None:
    from gigapipe.evaluation.provenance import write_crate
    from gigapipe.workflow_folder import FILES

    write_crate(args.results, FILES / "workflow")


def add_serve(verbs: Verbs) -> None:
    sub = verb(
        verbs,
        serve,
        "Show results in a web browser of this machine: the report, and slides with their maps in a viewer. Ends with "
        "Ctrl-C.",
    )
    sub.add_argument("results", type=Path, help="the results folder of one run of the workflow")
    sub.add_argument("--port", type=int, default=0, help="port on the loopback interface; 0: any that is free")


def serve(args: argparse.Namespace) -> None:
    from gigapipe.evaluation.viewer import page_folder

    page = page_folder()  # or what comes with it, tornado, would be missing first
    from gigapipe.evaluation.serving import serve

    def ready(address: str) -> None:
        print(f"open in a web browser: {address}", flush=True)

    with contextlib.suppress(KeyboardInterrupt):
        serve(args.results, page, args.port, ready)


def add_leftovers(verbs: Verbs) -> None:
    sub = verb(
        verbs, leftovers, "List files of networks that are no longer in a run's config, and remove them with --remove."
    )
    sub.add_argument("results", type=Path, help="the results folder of one run of the workflow")
    sub.add_argument("--config", type=Path, metavar="FILE", help="the run's config; by default config.yaml in there")
    sub.add_argument("--remove", action="store_true", help="remove what is listed")


def leftovers(args: argparse.Namespace) -> None:
    import yaml

    from gigapipe.evaluation.leftovers import leftovers

    path = args.config or args.results / "config.yaml"
    try:
        config = Configuration.of(yaml.safe_load(path.read_text(encoding="utf-8")) or {}, f"config {path}: ")
    except yaml.YAMLError as error:
        raise InputError(f"config {path}: is not valid YAML ({str(error).splitlines()[0]}); correct it") from None
    found = leftovers(args.results, config)
    for folder in found:
        files = [file for file in folder.glob("**/*") if file.is_file() and not file.is_symlink()]
        print(f"{folder}: {len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:,.1f} MB")
    if not found:
        print(f"{args.results}: all files belong to networks in {path}")
    elif not args.remove:
        print("nothing was removed; add --remove to remove these folders")
    for folder in found if args.remove else []:
        shutil.rmtree(folder)
        print(f"removed {folder}")
