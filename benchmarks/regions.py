"""Areas of regions that were found, against those that were drawn: is the known answer within its interval?

    python benchmarks/regions.py results/segmentation --mpp 4

Printed are, by class, the mean of patients (of their slides' mean) and its 95 % interval (Student's t), of the found
area over the drawn one and of Dice. The results are those of `task: segmentation`, at one resolution, all folds.
"""

import argparse
from pathlib import Path

import pandas as pd
from scipy import stats

from gigapipe.evaluation.overlap import overlaps
from gigapipe.pyramids.masks import read_mask


def regions(results: Path, mpp: float) -> pd.DataFrame:
    """The rows of `overlaps`, one a test slide and class that is drawn in it, with `area`: found over drawn area."""
    rows = overlaps(sorted(results.glob(f"{mpp:g}um/fold-*/regions/dice.tsv")))
    classes = list(rows["class"].unique())

    def area(row) -> float:
        folders = results / f"{mpp:g}um/fold-{row.fold}/regions", results / f"masks/{mpp:g}um"
        found, drawn = (
            (read_mask(folder / row.slide, classes)[:] == 1 + classes.index(row["class"])).sum() for folder in folders
        )
        return found / drawn if drawn else float("nan")

    return rows.assign(area=rows.apply(area, axis=1)).dropna(subset=["area"])


def interval(values: pd.Series) -> str:
    """The mean and its 95 % interval, as text."""
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return f"{values.mean():.3f} ({low:.3f}–{high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--mpp", type=float, required=True)
    args = parser.parse_args()
    found = regions(args.results, args.mpp)
    print("| class | slides (patients) | found area / drawn area | Dice |\n|---|---:|:---:|:---:|")
    for name, of_class in found.groupby("class", sort=False):
        patients = of_class.groupby("patient")[["area", "dice"]].mean()
        figures = " | ".join(interval(patients[column]) for column in ("area", "dice"))
        print(f"| {name} | {len(of_class)} ({len(patients)}) | {figures} |")


if __name__ == "__main__":
    main()
