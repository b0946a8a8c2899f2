"""The verb that checks that a model is decomposed exactly."""

import argparse
import functools
import os
import sys

from gigapipe.cli.arguments import Verbs, positive, sizes, verb
from gigapipe.configuration.command_line import add_options
from gigapipe.configuration.configuration import OwnNetwork
from gigapipe.errors import InputError


def add_verbs(verbs: Verbs) -> None:
    sub = verb(
        verbs, check, "Check that a model is decomposed exactly: compare one rank with several ranks, in float64."
    )
    sub.add_argument("model", help="a function that returns a model, as gigapipe.models:resnet18 or mine.py:unet")
    add_options(sub, OwnNetwork, ["network_options"])
    sub.add_argument("size", type=sizes, help="rows and columns of the image, as 237x191")
    sub.add_argument("mesh", type=sizes, help="rows and columns of ranks, as 2x2; or data, rows and columns, as 2x2x1")
    sub.add_argument("--batch", type=positive, default=2, help="number of images per data rank")
    sub.add_argument("--tile", type=positive, help="stream the images, in tiles of this side length, in pixels")
    sub.add_argument(
        "--stream",
        action="store_true",
        help="compare both without and with streaming; without --tile in tiles of a quarter of the image",
    )


def check(args: argparse.Namespace) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the ranks are processes of this machine's CPU
    from gigapipe import named
    from gigapipe.spatial.check import TOLERANCE
    from gigapipe.spatial.check import check as compare

    shape = args.mesh if len(args.mesh) == 3 else (1, *args.mesh)
    ranks = shape[0] * shape[1] * shape[2]
    tile = args.tile or (max(1, max(args.size) // 4) if args.stream else None)
    place = f"{args.size[0]} × {args.size[1]} px on a mesh of {' × '.join(map(str, shape))}"
    if tile:
        place += f", {'held and ' * args.stream}in tiles of {tile} px"
    print(f"{args.model}: one rank against {ranks}, {place}, in float64 …", file=sys.stderr, flush=True)
    named.load(args.model)  # said here, if there is none
    make = functools.partial(named.call, args.model, args.network_options)
    try:
        differences = compare(make, args.model, args.size, shape, args.batch, tile, held=args.stream)
    except (ValueError, RuntimeError) as error:
        raise InputError(str(error)) from None
    for kind in dict.fromkeys(d.kind for d in differences):
        alike = [d for d in differences if d.kind == kind]
        worst = f", worst in {alike[0].name}" if len(alike) > 1 else ""
        print(f"{kind + ':':26} {alike[0].error:.1e} relative{worst}")
    wrong = [d for d in differences if not d.error <= TOLERANCE]
    if wrong:
        raise InputError(f"{args.model} is NOT exact: {len(wrong)} of {len(differences)} differ by over {TOLERANCE:g}")
    print(f"exact: all {len(differences)} outputs, gradients and statistics agree within {TOLERANCE:g}")
