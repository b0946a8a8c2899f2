"""Whole-slide classification from Python: slides, pyramids, folds, training, AUC; without Snakemake, without patches.

    python docs/examples/whole_slides.py example          # writes into the folder `example`

The slides are phantoms, generated here: their two classes differ only in the arrangement of nuclei, which is visible at
2 µm per pixel and not at 48. With slides of your own, replace step 1 by your files and a table of them with the columns
slide, patient, site and label.
"""

import argparse
from pathlib import Path

import pandas as pd

from gigapipe.evaluation.auc import MeanAuc, mean_auc
from gigapipe.evaluation.folds import make_folds, roles
from gigapipe.evaluation.targets import targets_of
from gigapipe.pyramids.build import build_pyramid
from gigapipe.slides.phantom import cohort, render, sheet_row, write_slide
from gigapipe.spatial import Mesh
from gigapipe.training.classification import Classification, ClassifierSettings, predict
from gigapipe.training.loop import train
from gigapipe.training.model_files import trained_model
from gigapipe.training.streaming import Streaming


def classify(folder: Path, patients: int = 40, mpp: float = 2, canvas: int = 208, epochs: int = 6) -> MeanAuc:
    """The mean AUC of three networks, each on slides of patients that it has never seen."""
    # 1. Slides, and a table of them.
    slides = cohort(patients=patients, folder=str(folder / "slides"))
    for slide in slides:
        write_slide(Path(slide.source), render(slide))
    table = pd.DataFrame(map(sheet_row, slides))

    # 2. Each slide at the chosen resolution, as OME-Zarr.
    for slide in slides:
        build_pyramid(slide.source, folder / "pyramids" / slide.slide, [mpp])

    # 3. Three folds that share no patient; `by="site"`: and no hospital.
    table = make_folds(table, folds=3, seed=0, by="patient")
    classes = sorted(table["label"].unique())

    # 4. For each fold a network: trained on one third, its best epoch chosen on another, tested on the last.
    mesh = Mesh()  # this process alone; on ranks: see monai_unet.py
    tested = []
    for fold in range(3):
        settings = ClassifierSettings.of(
            {
                "mpp": mpp, "canvas": canvas, "fold": fold, "seed": 0, "classes": classes,
                "network": "resnet18", "width": 32, "epochs": epochs, "batch": 2, "learning_rate": 0.001,
            }
        )  # fmt: skip
        parts = {role: settings.canvases(part, folder / "pyramids", mesh) for role, part in roles(table, fold).items()}
        output = folder / f"fold-{fold}" / "model.pt"
        train(Classification(settings, parts["training"], parts["validation"], mesh, memory=None), output)
        model, settings = trained_model(output, ClassifierSettings, mesh)
        scores = predict(model, settings, parts["test"], Streaming(None, mesh))  # (slides, classes)
        tested.append(roles(table, fold)["test"].assign(seed=0, score=scores[:, 1].tolist()))

    # 5. The AUC, with an interval over patients.
    scores = pd.concat(tested)
    scores.to_csv(folder / "predictions.tsv", sep="\t", index=False)
    return mean_auc(scores, targets_of(classes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to write")
    parser.add_argument("--patients", type=int, default=40, help="number of patients, of one or two slides each")
    parser.add_argument("--mpp", type=float, default=2, help="resolution, in µm per pixel")
    parser.add_argument("--canvas", type=int, default=208, help="pixels a side that the network sees")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the training slides")
    args = parser.parse_args()
    found = classify(args.folder, args.patients, args.mpp, args.canvas, args.epochs)
    low, high = found.interval()
    print(f"AUC {found.value:.3f} (95 % interval {low:.3f}–{high:.3f}) at {args.mpp:g} µm per pixel")


if __name__ == "__main__":
    main()
