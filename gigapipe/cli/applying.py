"""The verb that asks trained networks about new slides."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gigapipe.allocator import return_freed_tensors
from gigapipe.atomic import atomic_file, atomic_folder
from gigapipe.cli.arguments import Verbs, micrometres, verb
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
from gigapipe.errors import InputError
from gigapipe.plural import counted

if TYPE_CHECKING:
    from gigapipe.pyramids import Pyramid
    from gigapipe.pyramids.maps import ActivationMap


def add_verbs(verbs: Verbs) -> None:
    sub = verb(
        verbs,
        apply,
        "Apply trained networks to new slides: probabilities with their range over networks, maps and a page.",
    )
    sub.add_argument("slides", type=Path, nargs="+", metavar="SLIDE", help="slide files")
    sub.add_argument(
        "--models",
        type=Path,
        nargs="+",
        required=True,
        help="models that `gigapipe train` wrote at one resolution, as those of all folds",
    )
    applied_model_arguments(sub)
    ranks_arguments(sub, folds=False, pyramids=False)
    sub.add_argument(
        "--pyramids",
        type=Path,
        metavar="FOLDER",
        help="folder with the pyramids of the slides; missing ones are made; by default the folder pyramids of the "
        "output",
    )
    sub.add_argument(
        "--slide-mpp",
        type=micrometres,
        metavar="MPP",
        help="µm per pixel of the slides, instead of the values in their files",
    )
    sub.add_argument("--no-maps", action="store_true", help="do not compute maps")
    sub.add_argument(
        "--output", type=Path, required=True, help="folder to write: applied.tsv, index.html, and the folder maps"
    )


def apply(args: argparse.Namespace) -> None:
    return_freed_tensors()
    from gigapipe.evaluation.applying import (
        CALIBRATED,
        UNCALIBRATED,
        UNKNOWN_APPEARANCE,
        Answer,
        page,
        table_of,
        temperature,
        tempered,
    )
    from gigapipe.evaluation.identity import TRAINING, identity_beside, record_beside, without_identity
    from gigapipe.pyramids.appearance import KEY
    from gigapipe.slides.written_tables import write_table
    from gigapipe.training.classification import ClassifierSettings
    from gigapipe.training.ensemble import Ensemble
    from gigapipe.training.ranks import started

    task = own_task(args, canvas=True)
    data, rows, columns = mesh_of(args)
    folder = args.pyramids or args.output / "pyramids"
    with started(1, data * rows, columns, **launching(args)) as mesh:
        ensemble = Ensemble(args.models, mesh, own_network(args), task)
        settings = ensemble.settings
        reasons = _made(args.slides, folder, settings.mpp, args.slide_mpp, alone=mesh.size == 1)
        pyramids = _whole(folder, settings.mpp, reasons)
        # Of a slide that a network was trained on, it knows the answer.
        identities = [identity_beside(model) for model in args.models]
        if mesh.rank == 0:
            without_identity(identities.count(None), len(identities), "models")
        learnt = [set(identity[TRAINING].values()) if identity else set() for identity in identities]
        asked = [[name for name, one in pyramids.items() if one.source["md5"] not in known] for known in learnt]
        temperatures: list[float | None] = [None] * len(args.models)
        if isinstance(settings, ClassifierSettings):
            temperatures = [temperature(model, settings.classes) for model in args.models]
        said: dict[str, list] = {name: [] for name in pyramids}
        maps: dict[str, list[ActivationMap]] = {name: [] for name in pyramids}
        found = ensemble.asked(asked, folder, memory_of(args), stage_of(args), not args.no_maps)
        for names, by, (values, of_slides) in zip(asked, temperatures, found, strict=True):
            for name, value in zip(names, tempered(values, by) if by else values, strict=True):
                said[name].append(value)
            for name, activations in zip(names, of_slides, strict=False):
                maps[name].append(activations)
        if mesh.rank:
            return
        usual = [found for model in args.models if (found := record_beside(model).get(KEY))]
        answers = [
            Answer.of(name, said.get(name, []), pyramids.get(name), usual, reason) for name, reason in reasons.items()
        ]
        table = table_of(answers, settings.outputs)
        pictures = _draw(args.output / "maps", maps, pyramids, table) if not args.no_maps else {}
        notes = [
            f"{counted(len(args.models), 'network')} at {settings.mpp:g} µm per pixel; lowest and highest are of "
            "single networks."
        ]
        if isinstance(settings, ClassifierSettings):
            notes.append(CALIBRATED if all(temperatures) else UNCALIBRATED)
        if len(usual) < len(args.models):
            notes.append(UNKNOWN_APPEARANCE)
        with atomic_file(args.output / "index.html") as partial:
            partial.write_text(page(table, notes, pictures), encoding="utf-8")
        with atomic_file(args.output / "applied.tsv") as partial:
            write_table(table, partial, float_format="%.6g")
    for answer in answers:
        if answer.unlike:
            print(f"slide {answer.slide}: is unlike the training slides: {answer.unlike}", file=sys.stderr)
        if answer.reason:
            print(f"slide {answer.slide}: {answer.reason}", file=sys.stderr)
    print(f"{args.output}/applied.tsv and index.html: {counted(len(answers), 'slide')}. {' '.join(notes)}")
    if not any(said.values()):
        raise InputError("no slide has an answer; the reasons are above")


def _made(slides: list[Path], folder: Path, mpp: float, slide_mpp: float | None, alone: bool) -> dict[str, str]:
    """Make what pyramids are missing; of each slide, by its name, why it has none, or an empty text.

    On several ranks they must be there: the others would wait for the one that makes them.
    """
    from gigapipe.pyramids.build import build_pyramid
    from gigapipe.pyramids.made_of import attributes_of
    from gigapipe.pyramids.settings import Settings
    from gigapipe.slides.checksum import md5_of_file

    reasons: dict[str, str] = {}
    for slide in slides:
        if slide.stem in reasons:
            raise InputError(f"slide {slide}: another one has the same name, {slide.stem}; rename one")
        reasons[slide.stem] = ""
        if (made := folder / slide.stem).exists():
            if slide.is_file() and md5_of_file(slide) != (attributes_of(made) or {}).get("source", {}).get("md5"):
                reasons[slide.stem] = f"slide {slide}: {made} is the pyramid of another file; remove it, or rename one"
            continue
        if not alone:
            raise InputError(
                f"slide {slide}: has no pyramid in {folder}, and only one rank alone makes one; start `gigapipe apply` "
                "without mpiexec, or make it with `gigapipe pyramid`"
            )
        try:
            build_pyramid(slide, made, [mpp], Settings.of({"mpp": slide_mpp}))
        except InputError as error:
            reasons[slide.stem] = str(error)
    return reasons


def _whole(folder: Path, mpp: float, reasons: dict[str, str]) -> "dict[str, Pyramid]":
    """The pyramids of slides without a reason against it; of one that lacks the resolution it is noted."""
    from gigapipe.pyramids import Pyramid

    found = {}
    for name in [name for name, reason in reasons.items() if not reason]:
        try:
            found[name] = Pyramid(folder / name)
            found[name].array(mpp)
        except InputError as error:
            found.pop(name, None)
            reasons[name] = str(error)
    return found


def _draw(
    folder: Path, maps: "dict[str, list[ActivationMap]]", pyramids: "dict[str, Pyramid]", table
) -> dict[str, str]:
    """Write the mean of each slide's maps, as a store and a picture; the pictures' places, seen from above `folder`."""
    from gigapipe.evaluation.applying import DECIDED
    from gigapipe.evaluation.maps import draw_map
    from gigapipe.pyramids.maps import mean_of, write_map

    decided = dict(zip(table["slide"], table[DECIDED], strict=True)) if DECIDED in table else {}
    pictures = {}
    with atomic_folder(folder) as partial:
        partial.mkdir(parents=True)
        for name, of_networks in maps.items():
            if of_networks:
                found = mean_of(of_networks)
                write_map(partial / name, found, name, tuple(pyramids[name].source["mpp"]))
                draw_map(partial / f"{name}.png", found, pyramids[name], decided.get(name, ""))
                pictures[name] = f"{folder.name}/{name}.png"
    return pictures
