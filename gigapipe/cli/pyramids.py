"""Verbs that make a slide's pyramid, check it and show it."""

import argparse
import sys
from pathlib import Path

from gigapipe.atomic import atomic_file
from gigapipe.cli.arguments import Verbs, micrometres, positive, verb
from gigapipe.configuration.command_line import add_options, values
from gigapipe.configuration.configuration import PyramidPixels, Pyramids
from gigapipe.errors import InputError


def add_verbs(verbs: Verbs) -> None:
    add_pyramid(verbs)
    add_verify(verbs)
    add_canvas(verbs)
    add_canvases(verbs)
    add_survey(verbs)


def add_pyramid(verbs: Verbs) -> None:
    sub = verb(verbs, pyramid, "Downsample a slide to the chosen resolutions.")
    sub.add_argument("slide", type=Path, help="any slide that OpenSlide reads")
    sub.add_argument("folder", type=Path, help="the folder to write; the store is image.zarr in it")
    sub.add_argument("--mpp", type=micrometres, nargs="+", required=True, help="resolutions, in µm per pixel")
    sub.add_argument("--threads", type=positive, default=2, help="Dask threads, or processes")
    sub.add_argument(
        "--slide-mpp", type=micrometres, metavar="MPP", help="µm per pixel of the slide, against what it says"
    )
    add_options(sub, PyramidPixels)
    add_options(sub, Pyramids, ["scheduler"])
    sub.add_argument(
        "--leave-out", action="store_true", help="write why a slide cannot be used in place of its store, and succeed"
    )
    sub.add_argument("--verify", action="store_true", help="then check it, as `gigapipe verify --slide` does")


def pyramid(args: argparse.Namespace) -> None:
    from gigapipe.pyramids.build import Settings, build_pyramid
    from gigapipe.pyramids.store import leave_out

    settings = Settings.of(values(PyramidPixels, args) | {"mpp": args.slide_mpp})
    try:
        build_pyramid(args.slide, args.folder, args.mpp, settings, args.threads, args.scheduler)
    except InputError as error:
        if not args.leave_out:
            raise
        print(f"gigapipe: {error}\nleft out", file=sys.stderr)
        leave_out(args.folder, str(error))
    else:
        if args.verify:
            verify(argparse.Namespace(pyramid=args.folder, slide=args.slide))


def add_verify(verbs: Verbs) -> None:
    sub = verb(verbs, verify, "Check a pyramid against its checksums, and against its slide.")
    sub.add_argument("pyramid", type=Path, help="the folder that `gigapipe pyramid` wrote")
    sub.add_argument("--slide", type=Path, help="the slide that it was made from: some rectangles are made again")


def verify(args: argparse.Namespace) -> None:
    from gigapipe.pyramids import Pyramid
    from gigapipe.pyramids.verify import verify_chunks, verify_pixels
    from gigapipe.slides.reader import Slide

    pyramid = Pyramid(args.pyramid)
    print(f"{args.pyramid}: {verify_chunks(pyramid) / 1e6:.0f} MB of pixels, every chunk there and whole")
    if args.slide:
        with Slide(args.slide, pyramid.settings["mpp"], pyramid.settings["assume_mpp"]) as slide:
            print(f"{args.slide}: {verify_pixels(pyramid, slide)} rectangles made again, every pixel the same")


def add_canvas(verbs: Verbs) -> None:
    sub = verb(verbs, canvas, "Show the canvas of a slide: what a network sees.")
    sub.add_argument("pyramid", type=Path, help="the folder that `gigapipe pyramid` wrote")
    sub.add_argument("--mpp", type=float, required=True, help="resolution, in µm per pixel")
    sub.add_argument("--canvas", type=positive, required=True, help="pixels a side")
    sub.add_argument("--output", type=Path, default=Path("canvas.png"), help="the picture to write")


def canvas(args: argparse.Namespace) -> None:
    from PIL import Image

    from gigapipe.pyramids import Pyramid
    from gigapipe.pyramids.canvas import corner, lost_tissue, read_canvas

    pyramid = Pyramid(args.pyramid)
    row, column = corner(pyramid, args.mpp, args.canvas)
    picture = Image.fromarray(read_canvas(pyramid, args.mpp, args.canvas).transpose(1, 2, 0))
    picture.thumbnail((2048, 2048))
    with atomic_file(args.output) as partial:
        picture.save(partial, "PNG")
    print(
        f"canvas of {args.canvas} px at {args.mpp:g} µm/px, from row {row}, column {column} of the slide; "
        f"{lost_tissue(pyramid, args.mpp, args.canvas):.0%} of the tissue's box lies outside; see {args.output}"
    )


def add_canvases(verbs: Verbs) -> None:
    sub = verb(verbs, canvases, "Choose the canvas of each resolution: what holds the tissue of nearly all slides.")
    sub.add_argument("pyramids", type=Path, nargs="+", help="the pyramids' folders")
    sub.add_argument("--mpp", type=micrometres, nargs="+", required=True, help="resolutions, in µm per pixel")
    sub.add_argument("--output", type=Path, required=True, help="the table to write: mpp, canvas, whole, slides")


def canvases(args: argparse.Namespace) -> None:
    from gigapipe.pyramids import Pyramid
    from gigapipe.pyramids.canvas import suitable_canvases
    from gigapipe.pyramids.store import left_out

    table = suitable_canvases([Pyramid(folder) for folder in args.pyramids if not left_out(folder)], args.mpp)
    with atomic_file(args.output) as partial:
        table.to_csv(partial, sep="\t", index=False)
    for row in table.itertuples():
        print(
            f"canvas of {row.canvas} px at {row.mpp:g} µm/px: it holds the whole tissue of {row.whole} of {row.slides} "
            "slides"
        )


def add_survey(verbs: Verbs) -> None:
    sub = verb(verbs, survey, "What became of every slide, as a table and a contact sheet.")
    sub.add_argument("pyramids", type=Path, nargs="+", help="the pyramids' folders, all in one folder")
    sub.add_argument("--output", type=Path, required=True, help="folder for slides.tsv and slides.png")


def survey(args: argparse.Namespace) -> None:
    from gigapipe.pyramids.survey import contact_sheet, table

    slides = [folder.name for folder in args.pyramids]
    folder = args.pyramids[0].parent
    with atomic_file(args.output / "slides.tsv") as partial:
        table(slides, folder).to_csv(partial, sep="\t", index=False)
    with atomic_file(args.output / "slides.png") as partial:
        contact_sheet(slides, folder).save(partial, "PNG")
