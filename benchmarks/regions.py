"""Areas of regions that were found, against those that were drawn: is the known answer within its interval?

    python benchmarks/regions.py results/segmentation --mpp 4

Printed are, by class, the mean of patients (of their slides' mean) and its 95 % interval (Student's t), of the found
area over the drawn one and of Dice. The results are those of `task: segmentation`, at one resolution, all folds.
"""

import argparse
from pathlib import Path

import pandas as pd
from scipy import stats

from gigapipe.pyramids.masks import read_mask


def regions(results: Path, mpp: float) -> pd.DataFrame:
    """A row for each test slide and class that is drawn in it: patient, class, found area over drawn area, Dice."""
    rows = pd.concat(
        pd.read_csv(table, sep="\t", dtype={"slide": str}).assign(folder=table.parent)
        for table in sorted(results.glob(f"{mpp:g}um/fold-*/regions/dice.tsv"))
    )
    classes = list(rows["class"].unique())
    areas = {
        (slide, name): (found[:] == value).sum() / ((drawn[:] == value).sum() or float("nan"))
        for slide, folder in rows[["slide", "folder"]].drop_duplicates().itertuples(index=False)
        for found, drawn in [(read_mask(f / slide, classes) for f in (folder, results / f"masks/{mpp:g}um"))]
        for value, name in enumerate(classes, start=1)
    }
    rows["area"] = [areas[key] for key in zip(rows["slide"], rows["class"], strict=True)]
    return rows.dropna(subset=["area"])


def interval(values: pd.Series) -> str:
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{values.mean():.3f} ({values.mean() - half:.3f}–{values.mean() + half:.3f})"


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
