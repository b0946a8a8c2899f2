"""What is in each fold, how much a slide's site alone says of its label, and what figures will not show."""

import pandas as pd

from gigapipe.evaluation.weaknesses import by_fold, site_reader, told_from_chance, weaknesses
from gigapipe.plural import counted


def fold_report(table: pd.DataFrame, classes: bool = True) -> str:
    """A page in Markdown: slides and patients of each label by fold, slides by site, and of `classes` warnings."""
    whole = table["label"].value_counts(normalize=True).sort_index()
    slides = pd.crosstab(table["fold"], table["label"])
    shares = slides.div(slides.sum(axis=1), axis=0)
    of_fold = table.groupby("fold")
    folds = (
        slides.assign(slides=of_fold.size(), patients=of_fold["patient"].nunique(), sites=of_fold["site"].nunique())
        .join(by_fold(table).add_prefix("patients of "))
        .join(shares.map("{:.1%}".format).add_prefix("share of "))
    )
    sites = pd.crosstab(table["site"], table["label"])
    single = ((sites > 0).sum(axis=1) == 1).sum()
    sites["folds"] = table.groupby("site")["fold"].agg(lambda held: ", ".join(map(str, sorted(set(held)))))
    text = [
        f"{counted(len(table), 'slide')} of {counted(table['patient'].nunique(), 'patient')}, "
        + ", ".join(f"{share:.1%} {label}" for label, share in whole.items())
        + f"; the share in each fold differs from this by at most {(shares - whole).abs().max().max():.1%}.",
        as_table(folds),
    ]
    labels = table.groupby("patient")["label"].nunique()
    if mixed := int((labels > 1).sum()):
        text.append(
            f"{mixed} of {counted(len(labels), 'patient')} have slides with several labels: all slides of a patient "
            "are in one fold; results per patient, which need one label for each, are not computed."
        )
    if classes and len(whole) > 1:
        lowest = told_from_chance(table)
        text.append(
            f"With these patients an AUC of {lowest:.2f} or more can probably be distinguished from chance."
            if lowest < 1
            else "With these patients no AUC below 1 can probably be distinguished from chance."
        )
    alone, across = site_reader(table, "patient"), site_reader(table, "fold")
    if alone is not None and across is not None:  # they are known both, or neither
        text.append(
            f"{single} of {counted(len(sites), 'site')} have slides of one label only. Knowing only the site would "
            f"give an AUC of {alone:.2f} with folds that share sites, and of {across:.2f} with these folds."
        )
    text += [f"**Warning:** {line}." for line in weaknesses(table)] if classes else []
    return "\n\n".join([*text, as_table(sites)]) + "\n"


def as_table(frame: pd.DataFrame) -> str:
    """A frame with its index as a table in Markdown."""
    rows = [[frame.index.name, *frame.columns], ["---"] * (frame.shape[1] + 1)]
    rows += [[index, *row] for index, row in zip(frame.index, frame.itertuples(index=False), strict=True)]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)
