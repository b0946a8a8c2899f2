"""AUC against the number of slides: each method of a config, trained on parts of cohorts.

    python benchmarks/learning_curves.py lung-0.yaml lung-1.yaml --methods config/few-slides.yaml --mpp 4

Each config is one cohort, whose pyramids lie in the folder of its results; the methods are those of another. For each
size so many slides of each of two classes are drawn and divided into folds. Each network is tested on all slides of
its cohort whose patients it was neither trained on nor validated with; the AUC is the mean over networks. A network
that is finished is not trained again by the same command, and one that was interrupted goes on (its seconds are then
those of its last part). The table has all networks in the folder of the output.
"""

import argparse
import itertools
import json
import logging
import shutil
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import matplotlib
import pandas as pd
import torch
import yaml

from gigapipe.atomic import atomic_file
from gigapipe.configuration import Configuration
from gigapipe.configuration.configuration import Method
from gigapipe.evaluation.auc import mean_auc, paired_test
from gigapipe.evaluation.columns import FOLD, LABEL, PATIENT, SEED, SLIDE
from gigapipe.evaluation.folds import make_folds, roles
from gigapipe.slides.sheet import read_sheet
from gigapipe.spatial import Mesh
from gigapipe.training.classification import Classification, ClassifierSettings, predict
from gigapipe.training.loop import train
from gigapipe.training.model_files import read_model
from gigapipe.training.probe import solve

SCORE = "score"


class Network(NamedTuple):
    """One that is trained: by a method, on one fold of a part of a cohort."""

    cohort: int
    size: int
    mpp: float
    method: str
    fold: int

    @property
    def name(self) -> str:
        return f"{self.method}-cohort{self.cohort}-{self.size}-{self.mpp:g}um-fold{self.fold}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("cohorts", type=Path, nargs="+", help="configs with slides, pyramids and resolutions")
    arguments.add_argument("--methods", type=Path, required=True, help="the config with the methods")
    arguments.add_argument("--mpp", type=float, nargs="+", required=True, help="some of the resolutions")
    arguments.add_argument("--sizes", type=int, nargs="+", default=[12, 20, 40, 60], help="slides of each class")
    arguments.add_argument("--only", nargs="+", help="names of methods; by default all")
    arguments.add_argument("--processes", type=int, default=2, help="networks that are trained side by side")
    arguments.add_argument("--output", type=Path, default=Path("results/learning-curves"))
    args = arguments.parse_args()
    configs = [
        Configuration.of(yaml.safe_load(path.read_text(encoding="utf-8")) | _methods(args.methods))
        for path in args.cohorts
    ]
    names = [one.name for one in configs[0].methods if one.name in (args.only or [one.name])]
    if unknown := set(args.only or []) - set(names):
        arguments.error(f"--only: {args.methods} has no method {', '.join(sorted(unknown))}")
    refuse_other_settings(args.output, configs[0])
    folds = range(configs[0].folds.number)
    networks = [
        Network(cohort, size, mpp, method, fold)
        for mpp, size, method, cohort, fold in itertools.product(
            args.mpp, args.sizes, names, range(len(configs)), folds
        )
    ]
    left = [one for one in networks if not _scores(args.output, one).exists()]
    begun = time.perf_counter()
    with ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
        running = {pool.submit(trained, configs[one.cohort], one, args.output): one for one in left}
        for count, future in enumerate(as_completed(running), 1):
            future.result()
            minutes = (time.perf_counter() - begun) / 60
            print(f"{running[future].name}: {count} of {len(left)}, {minutes:.0f} min", flush=True)
    table = compared(args.output)
    table.to_csv(args.output / "learning-curves.tsv", sep="\t", index=False, float_format="%.4g")
    print(table.to_string(index=False, float_format="{:.3f}".format))
    draw(table, args.output / "learning-curves.png")


def refuse_other_settings(output: Path, config: Configuration) -> None:
    """End if networks in `output` were trained by a method of the same name with other settings."""
    noted = output / "methods.json"
    before = json.loads(noted.read_text(encoding="utf-8")) if noted.exists() else {}
    now = {one.name: one.model_dump(mode="json") for one in config.methods}
    if changed := [name for name in now if before.get(name, now[name]) != now[name]]:
        raise SystemExit(f"{output}: has networks of {', '.join(changed)} with other settings; give another --output")
    with atomic_file(noted) as partial:
        partial.write_text(json.dumps(before | now, indent=1) + "\n", encoding="utf-8")


def _methods(path: Path) -> dict:
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {key: given[key] for key in ("training", "methods", "folds") if key in given}


def _scores(output: Path, network: Network) -> Path:
    return output / "networks" / f"{network.name}.tsv"


def drawn(sheet: pd.DataFrame, size: int, seed: int) -> pd.DataFrame:
    """So many slides of each class, of which a larger number has all of a smaller."""
    of_classes = [slides.sample(frac=1, random_state=seed).iloc[:size] for _, slides in sheet.groupby(LABEL)]
    if (fewest := min(map(len, of_classes))) < size:
        raise SystemExit(f"{size} slides of each class are asked for, and a class has {fewest}")
    return pd.concat(of_classes)


def trained(config: Configuration, network: Network, output: Path) -> None:
    """Train one network, and write what it says of all slides that it has not seen."""
    torch.set_num_threads(1)
    logging.getLogger("gigapipe").setLevel(logging.WARNING)
    method: Method = next(one for one in config.methods if one.name == network.method)
    sheet = read_sheet(config.slides, config.source, True, config.confirmed_labels)
    table = make_folds(drawn(sheet, network.size, network.cohort), config.folds.number, 0, "patient")
    parts = roles(table.reset_index(drop=True), network.fold)
    unseen = sheet[~sheet[PATIENT].isin([*parts["training"][PATIENT], *parts["validation"][PATIENT]])]
    canvas = next(found.canvas for found in config.resolutions if found.mpp == network.mpp)
    classes = sorted(sheet[LABEL].unique())
    own = {key: getattr(method, key) for key in ClassifierSettings.model_fields if hasattr(method, key)}
    settings = ClassifierSettings(
        **own, canvas=canvas, mpp=network.mpp, fold=network.fold, seed=0, classes=classes, method=method.name
    )
    mesh, pyramids = Mesh(), Path(config.pathvars.results) / "pyramids"
    training, validation, test = (
        settings.canvases(slides, pyramids, mesh) for slides in (parts["training"], parts["validation"], unseen)
    )
    begun = time.perf_counter()
    task = Classification(settings, training, validation, mesh, None)
    model = output / "networks" / network.name / "model.pt"
    model.parent.mkdir(parents=True, exist_ok=True)
    (solve if settings.train == "probe" else train)(task, model)
    seconds = time.perf_counter() - begun
    task.model.load_state_dict(read_model(model, ClassifierSettings)[0])
    said = predict(task.model, settings, test, task.streaming, task.features)
    columns = {**network._asdict(), SEED: network.cohort, SCORE: said[:, 1].numpy(), "seconds": seconds}
    found = unseen[[SLIDE, PATIENT, LABEL]].assign(**columns)
    with atomic_file(_scores(output, network)) as partial:
        found.to_csv(partial, sep="\t", index=False)
    shutil.rmtree(model.parent)


def compared(output: Path) -> pd.DataFrame:
    """A row for each resolution, size and method: AUC with its interval, and how far it is from the best method's.

    The difference is that of networks of the same cohorts and folds. The best method is chosen by the same slides.
    """
    scores = pd.concat(pd.read_csv(path, sep="\t") for path in sorted((output / "networks").glob("*.tsv")))
    scores[PATIENT] = scores["cohort"].astype(str) + " " + scores[PATIENT]  # of each cohort its own
    targets = {max(scores[LABEL]): SCORE}
    rows = []
    for (mpp, size), group in scores.groupby(["mpp", "size"]):
        of_methods = dict(list(group.groupby("method")))
        found = {method: mean_auc(own, targets) for method, own in of_methods.items()}
        best = max(found, key=lambda method: found[method].value)
        for method, one in found.items():
            own, low_high = of_methods[method], one.interval()
            row = {"mpp": mpp, "slides of each class": size, "method": method, "networks": len(one.networks)}
            row |= {
                "auc": one.value,
                "low": low_high[0],
                "high": low_high[1],
                "lowest of a network": one.networks.min(),
            }
            row |= {"seconds": own.groupby([SEED, FOLD])["seconds"].first().mean()}
            if method != best:
                both = own.merge(of_methods[best][[SEED, FOLD]].drop_duplicates())
                others = of_methods[best].merge(own[[SEED, FOLD]].drop_duplicates())
                difference = paired_test(mean_auc(both, targets), mean_auc(others, targets))
                row |= dict(zip(("to best", "to best, low", "to best, high", "p"), difference, strict=True))
            rows.append(row)
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, path: Path) -> None:
    """AUC against the number of slides, a panel for each resolution with several numbers."""
    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    several = table.groupby("mpp")["slides of each class"].nunique() > 1
    mpps, methods = sorted(several.index[several], reverse=True), sorted(table["method"].unique())
    if not mpps:
        return
    shape = {"figsize": (1 + 4 * len(mpps), 3.6), "squeeze": False}
    figure, panels = plt.subplots(1, len(mpps), sharex=True, sharey=True, **shape)
    for axes, mpp in zip(panels[0], mpps, strict=True):
        for number, method in enumerate(methods):
            rows = table[(table["mpp"] == mpp) & (table["method"] == method)]
            places = rows["slides of each class"] + 0.4 * number  # intervals beside each other
            around = [rows["auc"] - rows["low"], rows["high"] - rows["auc"]]
            axes.errorbar(places, rows["auc"], around, marker="o", capsize=3, label=method, color=f"C{number}")
        axes.set(title=f"{mpp:g} µm per pixel", xlabel="slides of each class; a third is trained on", ylim=(0.4, 1.01))
    panels[0][0].set_ylabel("AUC (95 % interval)")
    panels[0][-1].legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
