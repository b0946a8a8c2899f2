"""The comparison: one row a resolution, and a way to compute it, with what it was worth and what it cost."""

import numpy as np
import pandas as pd

from gigapipe.evaluation.auc import mean_auc, paired_test
from gigapipe.evaluation.metrics import summary
from gigapipe.evaluation.networks import ALIKE, COSTS
from gigapipe.evaluation.targets import targets_of

SPLITS = ["site", "given", "patient"]
"""What folds do not share. The first that was run is what a row is about, the others stand beside it."""


def compare(scores: pd.DataFrame, costs: pd.DataFrame) -> pd.DataFrame:
    """One row a resolution and way to compute it, coarsest first, from the tables of `read_networks`.

    Columns: `ALIKE` (`memory` is the limit of a rank in bytes, 0 without), `pixels` and `ranks`; `split`; the figures
    of `summary`; `coarser`, `delta`, `delta_low`, `delta_high` and `p`: the next coarser resolution, in µm per pixel,
    and the AUC above that of it, by DeLong's paired test on the same slides and folds; where folds of another split
    were run too, all these figures of it, as `patient_split_auc`; and `COSTS`: means over networks, of memory the most.
    NaN is what is not known.
    """
    classes = sorted(scores["label"].unique())
    rows = []
    for alike, of_row in scores.groupby(ALIKE):
        cost = costs[(costs[ALIKE] == list(alike)).all(axis=1)]
        row = dict(zip(ALIKE, alike, strict=True))
        row |= {"pixels": row["canvas"] ** 2, "ranks": cost["ranks"].iloc[0]}
        for split in [split for split in SPLITS if (of_row["split"] == split).any()]:
            networks = of_row[of_row["split"] == split]
            figures = summary(networks, classes) | gain(networks, scores[scores["split"] == split], classes)
            prefix = f"{split}_split_" if "split" in row else ""
            row.setdefault("split", split)
            row |= {prefix + name: value for name, value in figures.items()}
        row |= {name: cost[name].astype(float).mean() for name in COSTS}
        row["peak_memory_per_rank_mb"] = cost["peak_memory_per_rank_mb"].max()
        rows.append(row)
    table = pd.DataFrame(rows).sort_values(["mpp", "ranks"], ascending=[False, True], ignore_index=True)
    return table[[name for name in table if name not in COSTS] + COSTS]


def gain(networks: pd.DataFrame, scores: pd.DataFrame, classes: list[str]) -> dict[str, float]:
    """What these networks' AUC has above that of the next coarser resolution among `scores`, and DeLong's p.

    Of several rows of that resolution, the one most alike. Networks are paired by seed and fold; NaN where they were
    not tested on the same slides.
    """
    unknown = dict.fromkeys(["coarser", "delta", "delta_low", "delta_high", "p"], np.nan)
    coarser = scores[scores["mpp"] > networks["mpp"].iloc[0]]
    if coarser.empty:
        return unknown
    unknown["coarser"] = coarser["mpp"].min()
    nearest = coarser[coarser["mpp"] == unknown["coarser"]]
    own = networks[ALIKE].iloc[0]
    other = max((rows for _, rows in nearest.groupby(ALIKE)), key=lambda rows: (rows[ALIKE].iloc[0] == own).sum())
    pair = [table[table["part"] == "test"] for table in (networks, other)]
    common = set.intersection(*(set(zip(table["seed"], table["fold"], strict=True)) for table in pair))
    pair = [table[[key in common for key in zip(table["seed"], table["fold"], strict=True)]] for table in pair]
    tested = [set(zip(table["seed"], table["fold"], table["slide"], strict=True)) for table in pair]
    if tested[0] != tested[1] or not common:
        return unknown
    delta, low, high, p = paired_test(*(mean_auc(table, targets_of(classes)) for table in pair))
    return unknown | {"delta": delta, "delta_low": low, "delta_high": high, "p": p}
