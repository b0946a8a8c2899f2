"""How often the rule behind the report's recommendation is wrong, and how often it says something, by simulation.

    python benchmarks/recommendation.py

Scores are binormal (gigapipe/evaluation/simulation.py); those of a patient at two resolutions have the correlation of
the column. Each cohort has six resolutions and is tested in four folds, each by networks of its own. A recommendation
is wrong if its true AUC is more than the margin below the best, or at chance. Limits, folds and rule are the product's
own.

The last table compares, for cohorts of 60, how many patients are said to be needed, in the median, with how often so
many patients do get a recommendation.
"""

import argparse
import itertools

import numpy as np

from gigapipe.configuration.configuration import Comparison
from gigapipe.evaluation.best import patients_needed, shown
from gigapipe.evaluation.simulation import Cohorts, drawn


def truths(margin: float) -> dict[str, tuple[float, ...]]:
    """True AUCs of six resolutions, coarse to fine; some are just too far below the best to be recommended."""
    below = margin + 0.001
    return {
        "all at chance": (0.5, 0.5, 0.5, 0.5, 0.5, 0.5),
        "the finest is just better than chance": (0.5, 0.5, 0.5, 0.5, 0.5, 0.515),
        "five just too far below, 0.85": (*5 * [0.85 - below], 0.85),
        "five just too far below, 0.99": (*5 * [0.99 - below], 0.99),
        "the coarsest just too far below, 0.85": (0.85 - below, *5 * [0.85]),
        "five at chance": (0.5, 0.5, 0.5, 0.5, 0.5, 0.75),
        "finer is better": (0.55, 0.62, 0.70, 0.78, 0.86, 0.93),
        "finer is better up to a plateau": (0.60, 0.80, 0.93, 0.985, 0.99, 0.99),
        "the middle is best": (0.60, 0.75, 0.90, 0.80, 0.75, 0.70),
        "no difference, 0.85": (0.85, 0.85, 0.85, 0.85, 0.85, 0.85),
    }


FOLDS = 4
AT_ONCE = 250  # cohorts


def held_out(patients: int) -> list[tuple[int, int]]:
    """Patients of each fold, with and without the class, as even as can be; of 16, 7 are with it."""
    ones = 7 if patients == 16 else patients // 2
    sides = [[len(part) for part in np.array_split(np.arange(n), FOLDS)] for n in (ones, patients - ones)]
    return list(zip(sides[0], sides[1][::-1], strict=True))


def recommended(cohorts: Cohorts, margin: float) -> np.ndarray:
    """The coarsest that is shown, by its number; −1 where there is none."""
    taken = shown(cohorts.auc, cohorts.deviation, cohorts.correlation, cohorts.separated, margin)
    return np.where(taken.any(axis=-1), taken.argmax(axis=-1), -1)


def shares(truth, correlation: float, patients: int, cohorts: int, margin: float, seed: int) -> tuple[float, float]:
    """The share of cohorts with a wrong recommendation, and with any."""
    rng = np.random.default_rng(seed)
    wrong = np.array([a < max(truth) - margin or a <= 0.5 for a in truth])
    chosen = np.concatenate(
        [
            recommended(drawn(truth, held_out(patients), min(AT_ONCE, cohorts - done), rng, correlation), margin)
            for done in range(0, cohorts, AT_ONCE)
        ]
    )
    return float((wrong[chosen] & (chosen >= 0)).mean()), float((chosen >= 0).mean())


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cohorts", type=int, default=2000)
    arguments.add_argument("--margin", type=float, default=Comparison().margin)
    arguments.add_argument("--patients", type=int, nargs="+", default=[16, 60, 200, 1000])
    arguments.add_argument("--correlations", type=float, nargs="+", default=[0.5, 0.8, 0.95])
    args = arguments.parse_args()
    print(f"margin {args.margin:g}; of {args.cohorts} cohorts each, wrong | any recommendation, in %")
    print(f"{'true AUCs, coarse to fine':40} {'corr.':>5}" + "".join(f"{n:>17,}" for n in args.patients))
    worst: dict[int, float] = {}
    for (name, truth), correlation in itertools.product(truths(args.margin).items(), args.correlations):
        line = f"{name:40} {correlation:5.2f}"
        for n in args.patients:
            wrong, any_ = shares(truth, correlation, n, args.cohorts, args.margin, seed=n)
            worst[n] = max(wrong, worst.get(n, 0))
            line += f"{wrong:10.1%} |{any_:5.0%}"
        print(line, flush=True)
    print(f"{'the most wrong of all':46}" + "".join(f"{worst[n]:10.1%}       " for n in args.patients))
    print("\npatients said to be needed, in the median of cohorts of 60, and recommendations in cohorts of so many")
    for (name, truth), correlation in itertools.product(truths(args.margin).items(), args.correlations):
        found = drawn(truth, held_out(60), 40, np.random.default_rng(1), correlation)
        needed = [
            patients_needed(*each, found.separated, args.margin, 60)
            for each in zip(found.auc, found.deviation, found.correlation, strict=True)
        ]
        median = int(np.median([np.inf if n is None else n for n in needed])) if None not in needed else None
        if median and max(truth) > 0.5:
            _, any_ = shares(truth, correlation, median, 500, args.margin, seed=2)
            print(f"{name:40} {correlation:5.2f} {median:8,} {any_:8.0%}", flush=True)


if __name__ == "__main__":
    main()
