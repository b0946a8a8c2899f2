"""Verbs about labelled slides of other cohorts: what trained networks say of them, and what it is worth."""

import argparse
from pathlib import Path

from gigapipe.allocator import return_freed_tensors
from gigapipe.atomic import atomic_file
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
from gigapipe.configuration.command_line import add_options
from gigapipe.configuration.configuration import Configuration
from gigapipe.errors import InputError


def add_verbs(verbs: Verbs) -> None:
    add_predict_external(verbs)
    add_evaluate_external(verbs)


def add_predict_external(verbs: Verbs) -> None:
    sub = verb(
        verbs,
        predict_external,
        "Predict the labelled slides of another cohort by the networks of all folds. Start it with mpiexec.",
    )
    sub.add_argument("sheet", type=Path, help="the sample sheet of these slides")
    sub.add_argument("--cohort", required=True, metavar="NAME", help="name of the cohort in tables")
    add_options(sub, Configuration, ["source", "confirmed_labels"])
    sub.add_argument(
        "--models", type=Path, nargs="+", required=True, help="models that `gigapipe train` wrote at one resolution"
    )
    applied_model_arguments(sub)
    ranks_arguments(sub, folds=False)
    sub.add_argument("--output", type=Path, required=True, help="the table to write, one line per network and slide")


def predict_external(args: argparse.Namespace) -> None:
    return_freed_tensors()
    import pandas as pd

    from gigapipe.evaluation.applying import temperature, tempered
    from gigapipe.evaluation.columns import FOLD, IDENTITY, METHOD_NAME, MPP, SEED, SLIDE
    from gigapipe.evaluation.external import COHORT
    from gigapipe.evaluation.identity import NETWORK, TRAINING, identity_beside
    from gigapipe.evaluation.targets import targets_of
    from gigapipe.pyramids import Pyramid
    from gigapipe.pyramids.folders import left_out
    from gigapipe.slides.sheet import read_sheet
    from gigapipe.slides.written_tables import write_table
    from gigapipe.training.classification import ClassifierSettings
    from gigapipe.training.ensemble import Ensemble
    from gigapipe.training.ranks import started

    sheet = read_sheet(args.sheet, args.source, confirmed=args.confirmed_labels)
    sheet = sheet.loc[[left_out(args.pyramids / slide) is None for slide in sheet[SLIDE]]]
    data, rows, columns = mesh_of(args)
    with started(1, data * rows, columns, **launching(args)) as mesh:
        ensemble = Ensemble(args.models, mesh, own_network(args), own_task(args, canvas=True))
        classes = ensemble.settings.outputs
        if not isinstance(ensemble.settings, ClassifierSettings):
            raise InputError("external slides need networks that predict classes; use `gigapipe apply` for others")
        for slide, label in zip(sheet[SLIDE], sheet["label"], strict=True):
            if label not in classes:
                raise InputError(
                    f"sample sheet {args.sheet}: slide {slide}: its label {label} is none of those that the networks "
                    f"know ({', '.join(classes)}); rename it, or remove the row"
                )
        files = {slide: Pyramid(args.pyramids / slide).source["md5"] for slide in sheet[SLIDE]}
        asked = [list(sheet[SLIDE])] * len(args.models)
        tables = []
        found = ensemble.asked(asked, args.pyramids, memory_of(args), stage_of(args), maps=False)
        for model, settings, (said, _) in zip(args.models, ensemble.of_networks, found, strict=True):
            identity = identity_beside(model) or {}
            learnt = set(identity.get(TRAINING, {}).values())
            if seen := [slide for slide, md5 in files.items() if md5 in learnt]:
                raise InputError(
                    f"sample sheet {args.sheet}: model {model} was trained on the file of slide {seen[0]}, so that it "
                    "is not external; remove the row"
                )
            by = temperature(model, classes)
            if by is None:
                raise InputError(
                    f"model {model}: cannot be calibrated, as the predictions.tsv beside it is missing or has too few "
                    "slides of a class; predict first, or use `gigapipe apply`"
                )
            table = sheet[["slide", "patient", "site", "label"]].assign(
                **{COHORT: args.cohort, SEED: settings.seed, FOLD: settings.fold, MPP: settings.mpp}
            )
            table = table.assign(**{METHOD_NAME: settings.method, IDENTITY: identity.get(NETWORK, "")})
            calibrated = tempered(said, by)
            for name, column in targets_of(classes).items():
                table[column] = calibrated[:, classes.index(name)]
            tables.append(table)
        if mesh.rank == 0:
            with atomic_file(args.output) as partial:
                write_table(pd.concat(tables), partial)


def add_evaluate_external(verbs: Verbs) -> None:
    sub = verb(
        verbs,
        evaluate_external,
        "Compare external cohorts with the test folds: AUC, calibration and the drop, with confidence intervals.",
    )
    sub.add_argument(
        "--external", type=Path, nargs="+", required=True, help="tables that `gigapipe predict-external` wrote"
    )
    sub.add_argument("--predictions", type=Path, nargs="+", required=True, help="tables that `gigapipe predict` wrote")
    sub.add_argument(
        "--trainings", type=Path, nargs="+", required=True, help="training.json of the same models, in the same order"
    )
    sub.add_argument("--output", type=Path, required=True, help="folder for external.tsv and external.md")
    attempts_argument(sub)


def evaluate_external(args: argparse.Namespace) -> None:
    from gigapipe.evaluation.external import FILE, as_markdown, compare_external, read_external
    from gigapipe.evaluation.networks import read_networks
    from gigapipe.slides.written_tables import write_table

    scores, _ = read_networks(args.predictions, args.trainings)
    table = compare_external(scores, read_external(args.external))
    with atomic_file(args.output / FILE) as partial:
        write_table(table, partial, float_format="%.6g")
    with atomic_file(args.output / "external.md") as partial:
        partial.write_text(as_markdown(table), encoding="utf-8")
