"""One resolution of a run, trained in several ways, with AUC and cost of each: whole, over ranks, by data, by tiles.

    python benchmarks/methods.py results/lung --mpp 4 --memory 400MB

Takes the slides, folds and settings of a run that is finished, of one seed and one kind of folds. Each way has two
cores: two ranks, or two threads.
"""

import argparse
import subprocess
import time
from pathlib import Path

import yaml

from gigapipe.configuration import Configuration
from gigapipe.configuration.command_line import arguments as arguments_of
from gigapipe.configuration.configuration import Learning, Network

METHODS = {  # mesh, ranks, threads, and whether memory is limited
    "whole": ("1 1 1", 1, 2, False),
    "spatial": ("1 2 1", 2, 1, False),
    "data-parallel": ("2 1 1", 2, 1, False),
    "streamed": ("1 1 1", 1, 2, True),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--mpp", type=float, required=True, help="one of the run's resolutions")
    arguments.add_argument("--memory", required=True, help="of the streamed one")
    arguments.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--output", type=Path, default=Path("results/methods"))
    args = arguments.parse_args()
    config = Configuration.of(yaml.safe_load((args.run / "config.yaml").read_text()))
    canvas = next(found.canvas for found in config.resolutions if found.mpp == args.mpp)
    settings = f"{arguments_of(config.training, Network)} {arguments_of(config.training, Learning)}"
    options = f"{settings} --seed {config.seeds[0]}"
    slides = f"--folds {args.run}/folds.tsv --pyramids {args.run}/pyramids"
    models = []
    for method, (mesh, ranks, threads, limited) in METHODS.items():
        began = time.perf_counter()
        for fold in args.folds:
            model = args.output / method / f"fold-{fold}" / "model.pt"
            model.parent.mkdir(parents=True, exist_ok=True)
            launched = f"mpiexec -n {ranks} gigapipe"
            where = f"--mesh {mesh} --threads {threads}" + (f" --memory {args.memory}" if limited else "")
            what = f"--mpp {args.mpp:g} --canvas {canvas} --fold {fold} {options}"
            with open(model.with_name("log"), "w", encoding="utf-8") as log:
                for command in (
                    f"{launched} train {slides} {what} {where} --output {model}",
                    f"{launched} predict {slides} --model {model} {where} --output {model.parent}/predictions.tsv",
                ):
                    subprocess.run(command.split(), check=True, stdout=log, stderr=subprocess.STDOUT)
            models.append(model.parent)
        print(f"{method}: {time.perf_counter() - began:.0f} s", flush=True)
    subprocess.run(
        ["gigapipe", "evaluate", "--predictions", *(m / "predictions.tsv" for m in models)]
        + ["--trainings", *(m / "training.json" for m in models), "--output", args.output],
        check=True,
    )
    print((args.output / "comparison.md").read_text())


if __name__ == "__main__":
    main()
