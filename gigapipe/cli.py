"""The command line: one verb for each rule of the workflow, each usable without it."""

import argparse
import sys
from pathlib import Path

import gigapipe
from gigapipe.allocator import return_freed_tensors
from gigapipe.aside import written_aside
from gigapipe.errors import InputError

# Each verb imports what it needs when it runs: `gigapipe --help` should not wait for torch.


def phantom(args: argparse.Namespace) -> None:
    from gigapipe.progress import Progress
    from gigapipe.slides.phantom import cohort, render, sheet_row, write_slide

    slides = cohort(args.seed, args.patients, args.sites, args.confounder, folder=str(args.folder))
    if args.only in (None, "slides.tsv"):
        import pandas as pd

        with written_aside(args.folder / "slides.tsv") as partial:
            pd.DataFrame(map(sheet_row, slides)).to_csv(partial, sep="\t", index=False)
    if args.only:
        chosen = [slide for slide in slides if Path(slide.source).name == args.only]
        if not chosen and args.only != "slides.tsv":
            raise InputError(f"{args.only}: no slide of this cohort; they are listed in slides.tsv")
        slides = chosen
    for slide in Progress(slides, what="phantom", unit="slides"):
        write_slide(Path(slide.source), render(slide))


def download(args: argparse.Namespace) -> None:
    from gigapipe.slides.download import download

    download(args.url, args.output, args.md5)


def pyramid(args: argparse.Namespace) -> None:
    from dataclasses import fields

    from gigapipe.pyramids.build import Settings, build_pyramid
    from gigapipe.pyramids.store import leave_out

    settings = Settings(**{f.name: getattr(args, "slide_mpp" if f.name == "mpp" else f.name) for f in fields(Settings)})
    try:
        build_pyramid(args.slide, args.folder, args.mpp, settings, args.threads, args.scheduler)
    except InputError as error:
        if not args.leave_out:
            raise
        print(f"gigapipe: {error}\nleft out", file=sys.stderr)
        leave_out(args.folder, str(error))


def verify(args: argparse.Namespace) -> None:
    from gigapipe.pyramids import Pyramid
    from gigapipe.pyramids.verify import verify_chunks, verify_pixels
    from gigapipe.slides.reader import Slide

    pyramid = Pyramid(args.pyramid)
    print(f"{args.pyramid}: {verify_chunks(pyramid) / 1e6:.0f} MB of pixels, every chunk there and whole")
    if args.slide:
        with Slide(args.slide, pyramid.settings["mpp"], pyramid.settings["assume_mpp"]) as slide:
            print(f"{args.slide}: {verify_pixels(pyramid, slide)} rectangles made again, every pixel the same")


def canvas(args: argparse.Namespace) -> None:
    from PIL import Image

    from gigapipe.pyramids import Pyramid
    from gigapipe.pyramids.canvas import corner, lost_tissue, read_canvas

    pyramid = Pyramid(args.pyramid)
    row, column = corner(pyramid, args.mpp, args.canvas)
    picture = Image.fromarray(read_canvas(pyramid, args.mpp, args.canvas).transpose(1, 2, 0))
    picture.thumbnail((2048, 2048))
    with written_aside(args.output) as partial:
        picture.save(partial, "PNG")
    print(
        f"canvas of {args.canvas} px at {args.mpp:g} µm/px, from row {row}, column {column} of the slide; "
        f"{lost_tissue(pyramid, args.mpp, args.canvas):.0%} of the tissue's box lies outside; see {args.output}"
    )


def survey(args: argparse.Namespace) -> None:
    from gigapipe.pyramids.survey import contact_sheet, table

    slides = [folder.name for folder in args.pyramids]
    folder = args.pyramids[0].parent
    with written_aside(args.output / "slides.tsv") as partial:
        table(slides, folder).to_csv(partial, sep="\t", index=False)
    with written_aside(args.output / "slides.png") as partial:
        contact_sheet(slides, folder).save(partial, "PNG")


def folds(args: argparse.Namespace) -> None:
    from gigapipe.evaluation.folds import make_folds
    from gigapipe.slides.sheet import read_sheet

    table = make_folds(read_sheet(args.sheet, args.source, args.labelled), args.folds, args.seed)
    with written_aside(args.output) as partial:
        table.to_csv(partial, sep="\t", index=False)


def train(args: argparse.Namespace) -> None:
    return_freed_tensors(streams=args.memory is not None)
    from gigapipe.evaluation.folds import roles
    from gigapipe.pyramids.canvas import lost_tissue
    from gigapipe.training.classification import Classification, ClassifierSettings
    from gigapipe.training.loop import train
    from gigapipe.training.ranks import started

    with started(*args.mesh, **launching(args)) as mesh:
        table = slides_of(args)
        parts = roles(table, args.fold)
        settings = ClassifierSettings(
            **training_settings(args),
            canvas=args.canvas,
            classes=sorted(table["label"].unique()),
            network=args.network,
            norm=args.norm,
            background=args.background,
            weights=args.weights,
        )
        training, validation = (
            settings.canvases(parts[role], args.pyramids, mesh) for role in ("training", "validation")
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
        train(Classification(settings, training, validation, mesh, args.memory), args.output)


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
    return {"threads": args.threads, "transport": args.transport, "silence": silence}


def training_settings(args: argparse.Namespace) -> dict:
    """What all kinds of training are told."""
    names = ("mpp", "fold", "epochs", "batch", "learning_rate", "weight_decay", "seed", "precision")
    return {name: getattr(args, name) for name in names}


def predict(args: argparse.Namespace) -> None:
    return_freed_tensors(streams=args.memory is not None)
    from gigapipe.evaluation.folds import roles
    from gigapipe.training.classification import ClassifierSettings, predict
    from gigapipe.training.loop import trained_model
    from gigapipe.training.ranks import started
    from gigapipe.training.streaming import Streaming

    with started(*args.mesh, **launching(args)) as mesh:
        model, settings = trained_model(args.model, ClassifierSettings, mesh)
        table = roles(slides_of(args), settings.fold)["test"]
        canvases = settings.canvases(table, args.pyramids, mesh)
        probabilities = predict(model, settings, canvases, Streaming(args.memory, mesh))
        if mesh.rank == 0:
            table = table[["slide", "patient", "site", "label", "fold"]].assign(
                mpp=settings.mpp, score=probabilities[:, 1].tolist()
            )
            with written_aside(args.output) as partial:
                table.to_csv(partial, sep="\t", index=False)


def mask(args: argparse.Namespace) -> None:
    from gigapipe.pyramids import Pyramid
    from gigapipe.pyramids.masks import make_mask
    from gigapipe.pyramids.store import leave_out, left_out

    if reason := left_out(args.pyramid):
        leave_out(args.folder, reason)
    else:
        make_mask(Pyramid(args.pyramid), args.mpp, args.folder, args.drawn)


def train_tissue(args: argparse.Namespace) -> None:
    return_freed_tensors(streams=args.memory is not None)
    from gigapipe.evaluation.folds import roles
    from gigapipe.training.loop import train
    from gigapipe.training.ranks import started
    from gigapipe.training.segmentation import Pairs, Segmentation, SegmenterSettings

    with started(*args.mesh, **launching(args)) as mesh:
        parts = roles(slides_of(args), args.fold)
        settings = SegmenterSettings(**training_settings(args))
        training, validation = (
            Pairs(parts[role], args.pyramids, args.masks, args.mpp, mesh) for role in ("training", "validation")
        )
        train(Segmentation(settings, training, validation, mesh, args.memory), args.output)


def segment(args: argparse.Namespace) -> None:
    return_freed_tensors(streams=args.memory is not None)
    from gigapipe.aside import folder_aside
    from gigapipe.evaluation.folds import roles
    from gigapipe.evaluation.overlap import dice, draw_overlay
    from gigapipe.pyramids.masks import write_mask
    from gigapipe.training.loop import trained_model
    from gigapipe.training.ranks import started
    from gigapipe.training.segmentation import Pairs, SegmenterSettings, segment
    from gigapipe.training.streaming import Streaming

    data, rows, columns = args.mesh
    with started(1, data * rows, columns, **launching(args)) as mesh:
        model, settings = trained_model(args.model, SegmenterSettings, mesh)
        table = roles(slides_of(args), settings.fold)["test"]
        pairs = Pairs(table, args.pyramids, args.masks, settings.mpp, mesh)
        found = segment(model, settings, pairs, Streaming(args.memory, mesh))
        if mesh.rank:
            for _ in found:
                pass
            return
        scores = []
        with folder_aside(args.output) as partial:
            partial.mkdir(parents=True)
            for i, tissue in enumerate(found):
                write_mask(partial / pairs.slides[i], tissue, settings.mpp, tuple(pairs.pyramids[i].source["mpp"]))
                mask = pairs.masks[i][:]
                draw_overlay(partial / f"{pairs.slides[i]}.png", pairs.images[i], tissue, mask)
                scores.append(dice(tissue, mask))
                print(f"slide {pairs.slides[i]}: Dice {scores[-1]:.4f}", file=sys.stderr, flush=True)
            table = table[["slide", "patient", "site", "fold"]].assign(mpp=settings.mpp, dice=scores)
            table.to_csv(partial / "dice.tsv", sep="\t", index=False)


def dice(args: argparse.Namespace) -> None:
    from gigapipe.evaluation.overlap import as_markdown, overlaps

    table = overlaps(args.tables)
    with written_aside(args.output / "dice.tsv") as partial:
        table.to_csv(partial, sep="\t", index=False, float_format="%.6g")
    with written_aside(args.output / "dice.md") as partial:
        partial.write_text(as_markdown(table, args.trainings))


def evaluate(args: argparse.Namespace) -> None:
    from gigapipe.evaluation.comparison import as_markdown, compare, draw

    table = compare(args.predictions, args.trainings)
    with written_aside(args.output / "comparison.tsv") as partial:
        table.to_csv(partial, sep="\t", index=False, float_format="%.6g")
    with written_aside(args.output / "comparison.md") as partial:
        partial.write_text(as_markdown(table))
    with written_aside(args.output / "comparison.png") as partial:
        draw(table, partial)


def check(args: argparse.Namespace) -> None:
    import os

    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the ranks are processes of this machine's CPU
    from gigapipe.spatial.check import TOLERANCE
    from gigapipe.spatial.check import check as compare

    shape = args.mesh if len(args.mesh) == 3 else (1, *args.mesh)
    ranks = shape[0] * shape[1] * shape[2]
    place = f"{args.size[0]} × {args.size[1]} px on a mesh of {' × '.join(map(str, shape))}"
    if args.tile:
        place += f", by tiles of {args.tile} px"
    print(f"{args.model}: one rank against {ranks}, {place}, in float64 …", file=sys.stderr, flush=True)
    try:
        differences = compare(args.model, args.size, shape, args.batch, args.tile)
    except (ValueError, RuntimeError) as error:
        raise InputError(str(error)) from None
    for kind in dict.fromkeys(d.kind for d in differences):
        alike = [d for d in differences if d.kind == kind]
        worst = f", worst in {alike[0].name}" if len(alike) > 1 else ""
        print(f"{kind + ':':16} {alike[0].error:.1e} relative{worst}")
    wrong = [d for d in differences if not d.error <= TOLERANCE]
    if wrong:
        raise InputError(f"{args.model} is NOT exact: {len(wrong)} of {len(differences)} differ by over {TOLERANCE:g}")
    print(f"exact: all {len(differences)} outputs, gradients and statistics agree within {TOLERANCE:g}")


def sizes(text: str) -> tuple[int, ...]:
    """An argument of positive numbers joined by ×, as 1237x991."""
    return tuple(positive(number) for number in text.replace("×", "x").split("x"))


def size_in_bytes(text: str) -> int:
    """An argument as 6GiB or 500MB."""
    from dask.utils import parse_bytes

    return parse_bytes(text)


def micrometres(text: str) -> float:
    """An argument that is µm per pixel."""
    if not 0 < float(text) < float("inf"):
        raise ValueError
    return float(text)


def positive(text: str) -> int:
    """An argument that counts something."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="gigapipe", description=gigapipe.__doc__)
    top.add_argument("--version", action="version", version=gigapipe.__version__)
    verbs = top.add_subparsers(required=True, metavar="VERB")

    def verb(function, help: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            function.__name__.replace("_", "-"),
            help=help,
            description=help,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        sub.set_defaults(run=function)
        return sub

    def ranks(sub: argparse.ArgumentParser) -> None:
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
        sub.add_argument("--threads", type=positive, default=2, help="CPU threads, shared out among the ranks")
        sub.add_argument(
            "--transport", choices=["mpi", "torch"], default="mpi", help="what carries halos and sums between ranks"
        )
        sub.add_argument(
            "--memory",
            type=size_in_bytes,
            metavar="SIZE",
            help="what a rank may take, as 6GiB: what does not fit is computed tile by tile, with the same gradients",
        )

    def learning(sub: argparse.ArgumentParser, batch: int) -> None:
        sub.add_argument("--fold", type=int, required=True, help="held out; the next fold chooses the epoch")
        sub.add_argument("--mpp", type=float, required=True, help="resolution, in µm per pixel")
        sub.add_argument("--epochs", type=positive, default=10, help="passes over the training slides")
        sub.add_argument("--batch", type=positive, default=batch, help="slides a step, over all data ranks")
        sub.add_argument(
            "--learning-rate", type=float, default=3e-4, help="AdamW's, after warm-up; it falls as a cosine"
        )
        sub.add_argument("--weight-decay", type=float, default=1e-2, help="AdamW's")
        sub.add_argument(
            "--seed", type=int, default=0, help="of the first weights, the order of slides and their symmetries"
        )
        sub.add_argument(
            "--precision",
            choices=["float32", "bfloat16"],
            default="float32",
            help="of activations; weights stay float32",
        )
        sub.add_argument("--output", type=Path, required=True, help="the model to write; training.json comes beside it")

    sub = verb(phantom, "Generate slides whose right answer is known.")
    sub.add_argument("folder", type=Path, help="where to write the slides and their sample sheet, slides.tsv")
    sub.add_argument("--seed", type=int, default=0, help="another seed, another cohort")
    sub.add_argument("--patients", type=positive, default=40, help="number of patients, of one or two slides each")
    sub.add_argument("--sites", type=positive, default=4, help="number of sites that patients come from")
    sub.add_argument(
        "--confounder", type=float, default=0.0, help="0: sites are balanced; 1: a site has one class only"
    )
    sub.add_argument("--only", metavar="FILE", help="write only this file of the folder: slides.tsv, or one slide")

    sub = verb(download, "Fetch a slide from an http(s) address.")
    sub.add_argument("url", help="where it is")
    sub.add_argument("output", type=Path, help="the file to write")
    sub.add_argument("--md5", help="what its checksum must be")

    sub = verb(pyramid, "Downsample a slide to the chosen resolutions.")
    sub.add_argument("slide", type=Path, help="any slide that OpenSlide reads")
    sub.add_argument("folder", type=Path, help="the folder to write; the store is image.zarr in it")
    sub.add_argument("--mpp", type=micrometres, nargs="+", required=True, help="resolutions, in µm per pixel")
    sub.add_argument("--threads", type=positive, default=2, help="Dask threads, or processes")
    sub.add_argument(
        "--source-level",
        choices=["exact", "fast"],
        default="exact",
        help="exact: from level 0; fast: from the nearest finer level of the file, which was compressed once more",
    )
    sub.add_argument(
        "--slide-mpp", type=micrometres, metavar="MPP", help="µm per pixel of the slide, against what it says"
    )
    sub.add_argument(
        "--assume-mpp", action="store_true", help="if the slide says no µm per pixel, take it from the objective"
    )
    sub.add_argument(
        "--damaged", choices=["refuse", "white"], default="refuse", help="what becomes of a tile that cannot be decoded"
    )
    sub.add_argument("--clean-background", action="store_true", help="make what lies outside the tissue exactly white")
    sub.add_argument(
        "--colours", choices=["scanner", "srgb"], default="scanner", help="srgb: by the scanner's ICC profile"
    )
    sub.add_argument("--chunk", type=positive, default=512, help="pixels a side that are read at a time")
    sub.add_argument("--shard", type=positive, help="pixels a side of a file of chunks; by default a chunk is a file")
    sub.add_argument("--ome-zarr", choices=["0.5", "0.4"], default="0.5", help="0.4 for QuPath and other old readers")
    sub.add_argument(
        "--scheduler", default="threads", help="Dask's: threads, processes, or the address of a distributed one"
    )
    sub.add_argument(
        "--leave-out", action="store_true", help="write why a slide cannot be used in place of its store, and succeed"
    )

    sub = verb(verify, "Check a pyramid against its checksums, and against its slide.")
    sub.add_argument("pyramid", type=Path, help="the folder that `gigapipe pyramid` wrote")
    sub.add_argument("--slide", type=Path, help="the slide that it was made from: some rectangles are made again")

    sub = verb(canvas, "Show the canvas of a slide: what a network sees.")
    sub.add_argument("pyramid", type=Path, help="the folder that `gigapipe pyramid` wrote")
    sub.add_argument("--mpp", type=float, required=True, help="resolution, in µm per pixel")
    sub.add_argument("--canvas", type=positive, required=True, help="pixels a side")
    sub.add_argument("--output", type=Path, default=Path("canvas.png"), help="the picture to write")

    sub = verb(survey, "What became of every slide, as a table and a contact sheet.")
    sub.add_argument("pyramids", type=Path, nargs="+", help="the pyramids' folders, all in one folder")
    sub.add_argument("--output", type=Path, required=True, help="folder for slides.tsv and slides.png")

    sub = verb(folds, "Divide a sample sheet into folds that share no patient.")
    sub.add_argument("sheet", type=Path, help="the sample sheet")
    sub.add_argument("output", type=Path, help="the table to write: the sheet with a column `fold`")
    sub.add_argument("--source", help="stands in for a sheet's missing source column, as slides/{slide}.svs")
    sub.add_argument("--folds", type=positive, default=4, help="number of folds")
    sub.add_argument("--seed", type=int, default=0, help="another seed, another division")
    sub.add_argument(
        "--unlabelled", dest="labelled", action="store_false", help="the slides need no label; any number may do"
    )

    sub = verb(train, "Train a network on whole canvases, decomposed over ranks. Start it with mpiexec.")
    ranks(sub)
    learning(sub, batch=4)
    sub.add_argument("--canvas", type=positive, required=True, help="pixels a side that the network sees")
    sub.add_argument("--network", choices=["resnet18", "resnet34", "resnet50"], default="resnet18")
    sub.add_argument(
        "--norm",
        choices=["batch", "frozen", "group", "none"],
        default="batch",
        help="what normalises: BatchNorm over all ranks, the same with the statistics of --weights, GroupNorm, nothing",
    )
    sub.add_argument("--weights", metavar="FILE", help="checkpoint of torchvision's network to begin with")
    sub.add_argument(
        "--background", choices=["keep", "white"], default="keep", help="white: glass becomes white, and costs less"
    )

    sub = verb(predict, "Score the held-out slides of a trained model. Start it with mpiexec.")
    ranks(sub)
    sub.add_argument("--model", type=Path, required=True, help="the model that `gigapipe train` wrote")
    sub.add_argument("--output", type=Path, required=True, help="the table to write: a score for each held-out slide")

    sub = verb(mask, "Find where a slide has tissue, or take it from a picture, as a label image.")
    sub.add_argument("pyramid", type=Path, help="the folder that `gigapipe pyramid` wrote")
    sub.add_argument("folder", type=Path, help="the folder to write; the store is image.zarr in it")
    sub.add_argument("--mpp", type=float, required=True, help="resolution, in µm per pixel")
    sub.add_argument(
        "--drawn", type=Path, metavar="FILE", help="picture or .npy of the whole slide, not zero where there is tissue"
    )

    def with_masks(sub: argparse.ArgumentParser) -> None:
        ranks(sub)
        sub.add_argument(
            "--masks", type=Path, required=True, help="folder with one mask a slide, as `gigapipe mask` makes"
        )

    sub = verb(train_tissue, "Train the gigapixel U-Net to find tissue on whole slides. Start it with mpiexec.")
    with_masks(sub)
    learning(sub, batch=1)

    sub = verb(segment, "Find the tissue of held-out slides: masks, pictures and Dice. Start it with mpiexec.")
    with_masks(sub)
    sub.add_argument("--model", type=Path, required=True, help="the model that `gigapipe train-tissue` wrote")
    sub.add_argument(
        "--output", type=Path, required=True, help="folder to write: a mask and a PNG a slide, and dice.tsv"
    )

    sub = verb(dice, "Dice of all held-out slides, and its mean and standard deviation.")
    sub.add_argument("--tables", type=Path, nargs="+", required=True, help="the dice.tsv that `gigapipe segment` wrote")
    sub.add_argument("--trainings", type=Path, nargs="+", required=True, help="the training.json of the same models")
    sub.add_argument("--output", type=Path, required=True, help="folder for dice.tsv and dice.md")

    sub = verb(evaluate, "Compare resolutions: AUC with intervals, and cost, as table and figure.")
    sub.add_argument("--predictions", type=Path, nargs="+", required=True, help="tables that `gigapipe predict` wrote")
    sub.add_argument("--trainings", type=Path, nargs="+", required=True, help="the training.json of the same models")
    sub.add_argument("--output", type=Path, required=True, help="folder for comparison.tsv, .md and .png")

    sub = verb(check, "Compare a model on one rank with the same model on many, in float64.")
    sub.add_argument("model", help="a function that makes a model, as gigapipe.models:resnet18 or mine:unet")
    sub.add_argument("size", type=sizes, help="rows and columns of the image, as 237x191")
    sub.add_argument("mesh", type=sizes, help="rows and columns of ranks, as 2x2; or data, rows and columns, as 2x2x1")
    sub.add_argument("--batch", type=positive, default=2, help="images a data rank")
    sub.add_argument("--tile", type=positive, help="stream the images, by tiles of so many pixels a side")
    return top


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        args.run(args)
    except InputError as error:
        print(f"gigapipe: {error}", file=sys.stderr)
        return 1
    return 0
