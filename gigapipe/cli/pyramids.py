"""Verbs that make a slide's pyramid, check it and show it."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gigapipe import named
from gigapipe.atomic import atomic_file
from gigapipe.cli.arguments import Verbs, attempts_argument, micrometres, positive, verb
from gigapipe.configuration.command_line import add_options, converter, values
from gigapipe.configuration.pyramids import PyramidPixels, Pyramids
from gigapipe.configuration.values import Function
from gigapipe.errors import InputError, Unavailable
from gigapipe.given_text import option
from gigapipe.slides.crashes import crash_of

if TYPE_CHECKING:
    from gigapipe.pyramids import Pyramid


def add_verbs(verbs: Verbs) -> None:
    add_pyramid(verbs)
    add_add(verbs)
    add_sizes(verbs)
    add_verify(verbs)
    add_canvas(verbs)
    add_canvases(verbs)
    add_survey(verbs)


def add_pyramid(verbs: Verbs) -> None:
    sub = verb(verbs, pyramid, "Convert a slide to a pyramid: an OME-Zarr image at the chosen resolutions.")
    sub.add_argument("slide", type=Path, help="any slide that OpenSlide or --reader can read")
    sub.add_argument("folder", type=Path, help="the folder to write; the store is image.zarr in it")
    sub.add_argument("--mpp", type=micrometres, nargs="+", required=True, help="resolutions, in µm per pixel")
    sub.add_argument("--threads", type=positive, default=2, help="Dask threads, or processes")
    sub.add_argument(
        "--slide-mpp",
        type=micrometres,
        metavar="MPP",
        help="µm per pixel of the slide, instead of the value in its file",
    )
    sub.add_argument(
        "--tissue",
        type=Path,
        metavar="FILE",
        help="your own tissue mask, used instead of the detected tissue: an image or .npy file of the whole "
        "slide, or annotations from QuPath (GeoJSON) or ASAP (XML)",
    )
    reader_argument(sub)
    add_options(sub, PyramidPixels)
    add_options(sub, Pyramids, ["scheduler"])
    sub.add_argument(
        "--leave-out",
        action="store_true",
        help="if the slide cannot be used, write the reason instead of the store, and succeed",
    )
    sub.add_argument("--verify", action="store_true", help="then check it, as `gigapipe verify --slide` does")
    attempts_argument(sub)
    sub.set_defaults(crashed=lambda args, what: give_up(args, crash_of(args.slide, what)))


def reader_argument(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--reader",
        type=converter(Function),
        metavar="READER",
        help="your own slide reader, used instead of OpenSlide; its code is executed: a function that opens a slide, "
        "as mine.py:opened or package.module:opened",
    )


def reader_named(pyramid: "Pyramid", reader: str | None) -> str | None:
    """`reader`; or InputError if there is none, and the pyramid's slide was read by code of the user's."""
    noted = pyramid.settings.get("reader")
    if noted and not reader:
        raise InputError(
            f"pyramid {pyramid.folder}: its slide was read by your own code, which is executed only if you name it; if "
            f"you trust it, add {shlex.join(option('--reader', noted))}"
        )
    return reader and named.absolute(reader)


def pyramid(args: argparse.Namespace) -> None:
    from gigapipe.pyramids import Pyramid
    from gigapipe.pyramids.build import build_pyramid
    from gigapipe.pyramids.settings import Settings

    drawn, reader = args.tissue and str(args.tissue.absolute()), args.reader and named.absolute(args.reader)
    if reader:
        named.load(reader)  # here, for code that cannot be called up is no fault of a slide, which would be left out
    settings = Settings.of(values(PyramidPixels, args) | {"mpp": args.slide_mpp, "tissue": drawn, "reader": reader})
    try:
        build_pyramid(args.slide, args.folder, args.mpp, settings, args.threads, args.scheduler)
    except InputError as error:
        if isinstance(error, Unavailable):  # of which the slide may be innocent
            raise
        give_up(args, error)
    else:
        tissue = Pyramid(args.folder).tissue
        why = f" ({tissue['why']})" if tissue["why"] else ""
        print(f"{args.slide}: tissue {tissue['verdict']}, {tissue['fraction']:.1%} of the slide{why}")
        if args.verify:
            verify(argparse.Namespace(pyramid=args.folder, slide=args.slide, adopt=False, reader=args.reader))


def add_add(verbs: Verbs) -> None:
    sub = verb(verbs, add, "Add resolutions to a pyramid; existing ones stay unchanged.")
    sub.add_argument("pyramid", type=Path, help="the folder that `gigapipe pyramid` wrote")
    sub.add_argument("--mpp", type=micrometres, nargs="+", required=True, help="resolutions, in µm per pixel")
    sub.add_argument(
        "--slide",
        type=Path,
        help="the slide that it was made from; without it each is computed from the next finer resolution of the "
        "pyramid, with an error that is reported",
    )
    reader_argument(sub)
    sub.add_argument("--threads", type=positive, default=2, help="Dask threads, or processes")
    add_options(sub, Pyramids, ["scheduler"])
    sub.add_argument("--verify", action="store_true", help="then check it, as `gigapipe verify --slide` does")
    sub.add_argument(
        "--output", type=Path, metavar="FILE", help="also write the list of its resolutions to this file, as JSON"
    )
    attempts_argument(sub)
    sub.set_defaults(crashed=crashed)


def add(args: argparse.Namespace) -> None:
    import json

    from gigapipe.pyramids import Pyramid
    from gigapipe.pyramids.adding import add_resolutions
    from gigapipe.pyramids.folders import left_out

    resolutions = []
    if reason := left_out(args.pyramid):
        print(f"{args.pyramid}: the slide was left out: {reason}")
    else:
        pyramid = Pyramid(args.pyramid)
        reader = reader_named(pyramid, args.reader) if args.slide else None
        added = add_resolutions(pyramid.folder, args.mpp, args.slide, args.threads, args.scheduler, reader)
        said = ", ".join(f"{mpp:g}" for mpp in added)
        print(f"{args.pyramid}: {f'{said} µm/px added' if added else 'has all of them already'}")
        resolutions = Pyramid(args.pyramid).resolutions
        if args.verify and args.slide:
            verify(argparse.Namespace(pyramid=args.pyramid, slide=args.slide, adopt=False, reader=args.reader))
    if args.output:
        with atomic_file(args.output) as partial:
            partial.write_text(json.dumps({"resolutions": resolutions}) + "\n", encoding="utf-8")


def give_up(args: argparse.Namespace, error: InputError) -> None:
    """Leave out the slide that `error` tells of, if it is to; or raise it."""
    from gigapipe.pyramids.folders import leave_out

    if not args.leave_out:
        raise error
    print(f"gigapipe: {error}\nexcluded", file=sys.stderr)
    leave_out(args.folder, str(error))


def add_sizes(verbs: Verbs) -> None:
    sub = verb(verbs, sizes, "Estimate how large pyramids become, from a sample of each slide.")
    sub.add_argument("slides", type=Path, nargs="+", help="the slides")
    sub.add_argument("--mpp", type=micrometres, nargs="+", required=True, help="resolutions, in µm per pixel")
    reader_argument(sub)
    add_options(sub, PyramidPixels)


def sizes(args: argparse.Namespace) -> None:
    from gigapipe.pyramids.settings import Settings
    from gigapipe.pyramids.sizes import estimate
    from gigapipe.slides.crashes import ask

    settings = Settings.of(values(PyramidPixels, args) | {"reader": args.reader})
    print("slide", "µm per pixel", "bytes", *(f"bytes at {mpp:g} µm" for mpp in args.mpp), sep="\t")
    faults = []
    for slide, found in zip(
        args.slides, ask(estimate, [(slide, args.mpp, settings) for slide in args.slides]), strict=True
    ):
        if found.error:
            faults.append(str(found.error))
        else:
            own, pyramid = found.value.mpp, zip(args.mpp, found.value.pyramid, strict=True)
            sizes = (bytes if mpp >= own else "finer than the slide" for mpp, bytes in pyramid)
            print(slide, f"{own:g}", found.value.slide, *sizes, sep="\t")
    if faults:
        raise InputError("\ngigapipe: ".join(faults))


def add_verify(verbs: Verbs) -> None:
    sub = verb(verbs, verify, "Verify a pyramid by its checksums, and against its slide.")
    sub.add_argument("pyramid", type=Path, help="the folder that `gigapipe pyramid` wrote")
    sub.add_argument(
        "--slide", type=Path, help="the slide that it was made from: some rectangles are computed again and compared"
    )
    reader_argument(sub)
    sub.add_argument(
        "--adopt", action="store_true", help="add checksums to a store of release 0.1, if everything else is correct"
    )
    sub.set_defaults(crashed=crashed)


def crashed(args: argparse.Namespace, what: str) -> None:
    """What a native crash came of: the slide, or of a verb that reads none the pyramid."""
    raise crash_of(args.slide or args.pyramid, what)


def verify(args: argparse.Namespace) -> None:
    from gigapipe.pyramids import Pyramid
    from gigapipe.pyramids.settings import Settings, open_slide
    from gigapipe.pyramids.verify import adopt, verify_chunks, verify_pixels

    pyramid = Pyramid(args.pyramid)
    print(f"{args.pyramid}: {verify_chunks(pyramid) / 1e6:.0f} MB of pixels, all chunks are present and intact")
    if args.slide:
        reader = reader_named(pyramid, args.reader)
        with open_slide(args.slide, Settings(**pyramid.settings | {"reader": reader})) as slide:
            lossy = "" if pyramid.codec["name"] == "zstd" else f", except for the loss of codec {pyramid.codec['name']}"
            print(
                f"{args.slide}: {verify_pixels(pyramid, slide)} rectangles computed again, all pixels identical{lossy}"
            )
    if args.adopt and (number := adopt(pyramid)):
        print(f"{args.pyramid}: {number} arrays have checksums now")


def add_canvas(verbs: Verbs) -> None:
    sub = verb(verbs, canvas, "Draw the canvas of a slide: the image that a network sees.")
    sub.add_argument("pyramid", type=Path, help="the folder that `gigapipe pyramid` wrote")
    sub.add_argument("--mpp", type=float, required=True, help="resolution, in µm per pixel")
    sub.add_argument("--canvas", type=positive, required=True, help="side length of the canvas, in pixels")
    sub.add_argument("--output", type=Path, default=Path("canvas.png"), help="the image file to write")


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
        f"{lost_tissue(pyramid, args.mpp, args.canvas):.0%} of the tissue's bounding box is outside; see {args.output}"
    )


def add_canvases(verbs: Verbs) -> None:
    sub = verb(
        verbs, canvases, "Choose the canvas of each resolution: large enough for the tissue of nearly all slides."
    )
    sub.add_argument("pyramids", type=Path, nargs="+", help="the pyramids' folders")
    sub.add_argument("--mpp", type=micrometres, nargs="+", required=True, help="resolutions, in µm per pixel")
    sub.add_argument("--output", type=Path, required=True, help="the table to write: mpp, canvas, whole, slides")
    attempts_argument(sub)


def canvases(args: argparse.Namespace) -> None:
    from gigapipe.pyramids import Pyramid
    from gigapipe.pyramids.canvas import suitable_canvases
    from gigapipe.pyramids.folders import left_out
    from gigapipe.slides.written_tables import write_table

    table = suitable_canvases([Pyramid(folder) for folder in args.pyramids if not left_out(folder)], args.mpp)
    with atomic_file(args.output) as partial:
        write_table(table, partial)
    for row in table.itertuples():
        print(
            f"canvas of {row.canvas} px at {row.mpp:g} µm/px: the tissue of {row.whole} of {row.slides} slides fits "
            "completely"
        )


def add_survey(verbs: Verbs) -> None:
    sub = verb(verbs, survey, "List the status of every slide, as a table and a contact sheet.")
    sub.add_argument("pyramids", type=Path, nargs="+", help="the pyramids' folders, all in one folder")
    sub.add_argument("--output", type=Path, required=True, help="folder for slides.tsv and slides.png")
    attempts_argument(sub)


def survey(args: argparse.Namespace) -> None:
    from gigapipe.pyramids.survey import contact_sheet, same_files, summary, table
    from gigapipe.slides.written_tables import write_table

    slides = [folder.name for folder in args.pyramids]
    folder = args.pyramids[0].parent
    rows = table(slides, folder)
    with atomic_file(args.output / "slides.tsv") as partial:
        write_table(rows, partial)
    if same := same_files(rows):
        print(same, file=sys.stderr)
    with atomic_file(args.output / "slides.png") as partial:
        contact_sheet(slides, folder).save(partial, "PNG")
    print(summary(rows))
