"""Which resolution finds tissue well enough, by the rules of best.py; differences are of patients, paired."""

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

from gigapipe.evaluation.best import LEVEL, POWER
from gigapipe.evaluation.recommendation import Recommendation, cannot_be_told

CLASS, DICE = "class", "dice"
OF_ALL = "dice_of_all"
"""The column with the Dice of who calls the whole slide tissue, or of one class: what has to be beaten."""


def recommend_by_dice(table: pd.DataFrame, margin: float) -> Recommendation:
    """The coarsest resolution whose mean Dice is shown to be above that of calling whole slides tissue, and below no
    other by more than `margin`.

    Columns: `mpp`, `slide`, `patient`, `dice`, and `dice_of_all`; of several classes, a slide has their mean. Limits
    are Student's, one-sided, of the mean over patients, with Bonferroni's level; Dice is measured on each resolution's
    own pixels.
    """
    if OF_ALL not in table:
        return cannot_be_told(f"dice.tsv has no column {OF_ALL}: make it again with `gigapipe segment`")
    there = table[table[OF_ALL] > 0]  # where the mask has none, a Dice says little of how well it would be found
    of_slides = there.pivot_table(index=["patient", "slide"], columns="mpp", values=[DICE, OF_ALL])
    found = of_slides.groupby("patient").mean()
    resolutions = sorted(found[DICE].columns, reverse=True)
    if of_slides.isna().any(axis=None):
        return cannot_be_told("resolutions were not tested on the same slides")
    patients, count = len(found), len(resolutions)
    if patients < 2:
        return cannot_be_told("there is only one patient")
    dices, of_all = found[DICE], found[OF_ALL]
    means, above = {mpp: float(dices[mpp].mean()) for mpp in resolutions}, dices - of_all
    telling = [mpp for mpp in resolutions if _low(above[mpp], min(LEVEL / 2, LEVEL / count)) > 0]
    best = max(resolutions, key=lambda mpp: means[mpp])
    highest = f"{means[best]:.4f}, at {best:g} µm per pixel"
    if not telling:
        return cannot_be_told(
            f"no network is shown to be better than a mask that covers the whole slide ({of_all[best].mean():.4f}); "
            f"the highest mean Dice is {highest}"
        )
    if count == 1:
        return Recommendation(
            best,
            f"{best:g} µm per pixel is better than chance; no other resolution was tested.",
            f"Its mean Dice of {means[best]:.4f} is above that of a mask that covers the whole slide.",
        )
    level = LEVEL / (count - 1)
    low = {
        mpp: min((_low(dices[mpp] - dices[other], level), other) for other in resolutions if other != mpp)
        for mpp in telling
    }
    whom = (
        f"one-sided 95 % limits of paired differences on {patients} patients, corrected for {count - 1} "
        f"comparison{'s' * (count > 2)}"
    )
    for mpp in telling:
        if low[mpp][0] > -margin:
            return Recommendation(
                mpp,
                f"Use {mpp:g} µm per pixel.",
                f"Its mean Dice of {means[mpp]:.4f} is above that of a mask that covers the whole slide, and it is "
                f"shown to be at most {max(0.0, -low[mpp][0]):.4f} below every other resolution, where {margin:g} is "
                f"allowed ({whom}). The highest is {highest}.",
            )
    nearest = max(telling, key=lambda mpp: low[mpp][0])
    below, rival = low[nearest]
    spread = dices[nearest] - dices[rival]
    reach = (ndtri(1 - level) + ndtri(POWER)) * spread.std() / (margin + spread.mean())
    needed = (
        f". About {max(reach**2, patients + 1):,.0f} patients would be needed, if the true values are as estimated here"
    )
    return cannot_be_told(
        f"no resolution is shown to be within {margin:g} of the best. {nearest:g} µm per pixel comes closest, with a "
        f"mean Dice of {means[nearest]:.4f}, but may be {-below:.4f} below {rival:g} µm per pixel ({whom})"
        + needed
        * bool(margin + spread.mean() > 0)
    )


def _low(values: pd.Series, level: float) -> float:
    """The one-sided lower limit of a mean; −1, the lowest there is, where all values are one: no spread is no proof."""
    spread = values.std()
    if not spread > 0:
        return -1.0
    return float(values.mean() - stdtrit(len(values) - 1, 1 - level) * spread / np.sqrt(len(values)))
