"""What is in each fold, and how much a slide's site alone says of its label."""

import pandas as pd

from gigapipe.evaluation.folds import UNKNOWN

TELLING = 0.7  # an AUC from which on sites are worth a warning


def site_reader(table: pd.DataFrame, held_out: str) -> float | None:
    """AUC of knowing a slide's site and nothing else, with two labels; None where no site is known.

    A slide's score is the share of the second label among the slides of its site that differ from it in the column
    `held_out` (`patient` or `fold`); where there are none, that of all slides.
    """
    labels = sorted(table["label"].unique())
    known = table[table["site"] != UNKNOWN]
    if len(labels) != 2 or known["label"].nunique() < 2:
        return None
    from sklearn.metrics import roc_auc_score  # slow to import

    second = (known["label"] == labels[1]).astype(float)
    at_site = second.groupby(known["site"])
    together = second.groupby([known["site"], known[held_out]])
    others = at_site.transform("size") - together.transform("size")
    score = (at_site.transform("sum") - together.transform("sum")) / others.where(others > 0)
    return float(roc_auc_score(second, score.fillna(second.mean())))


def fold_report(table: pd.DataFrame) -> str:
    """A page in Markdown: slides of each label by fold and by site, and a warning if sites tell labels."""
    whole = table["label"].value_counts(normalize=True).sort_index()
    by_fold = pd.crosstab(table["fold"], table["label"])
    shares = by_fold.div(by_fold.sum(axis=1), axis=0)
    of_fold = table.groupby("fold")
    folds = by_fold.assign(
        slides=of_fold.size(), patients=of_fold["patient"].nunique(), sites=of_fold["site"].nunique()
    ).join(shares.map("{:.1%}".format).add_prefix("share of "))
    sites = pd.crosstab(table["site"], table["label"])
    single = ((sites > 0).sum(axis=1) == 1).sum()
    sites["folds"] = table.groupby("site")["fold"].agg(lambda held: ", ".join(map(str, sorted(set(held)))))
    text = [
        f"{len(table)} slides of {table['patient'].nunique()} patients, "
        + ", ".join(f"{share:.1%} {label}" for label, share in whole.items())
        + f"; a fold's share differs from that by {(shares - whole).abs().max().max():.1%} at most.",
        as_table(folds),
    ]
    alone, across = site_reader(table, "patient"), site_reader(table, "fold")
    if alone is not None and across is not None:  # they are known both, or neither
        text.append(
            f"{single} of {len(sites)} sites have slides of one label only. Who knew nothing but the site would reach "
            f"an AUC of {alone:.2f} where a site's other patients are trained on, and of {across:.2f} with these folds."
        )
        if across >= TELLING:
            text.append(
                "**Warning: these folds share sites, and the site tells the label.** A network that learns to tell "
                "hospitals apart scores as well as one that learns the disease: divide by site."
            )
        elif alone >= TELLING:
            text.append(
                "**Warning: the site tells the label.** These folds share no site, so that it does not help here; "
                "figures of folds that do would be worth little."
            )
    return "\n\n".join([*text, as_table(sites)]) + "\n"


def as_table(frame: pd.DataFrame) -> str:
    """A frame with its index as a table in Markdown."""
    rows = [[frame.index.name, *frame.columns], ["---"] * (frame.shape[1] + 1)]
    rows += [[index, *row] for index, row in zip(frame.index, frame.itertuples(index=False), strict=True)]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)
