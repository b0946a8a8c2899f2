"""Figures of held-out predictions, against plain definitions, other implementations, and simulated truth."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, recall_score, roc_auc_score

from gigapipe.evaluation.auc import (
    auc_and_influence,
    bootstrap_interval,
    bootstrapped,
    by_patient,
    mean_auc,
    paired_test,
)
from gigapipe.evaluation.decisions import confusion, decided, decision_figures, threshold
from gigapipe.evaluation.intervals import separated_bound
from gigapipe.evaluation.metrics import average_precision, brier, calibration_error, reliability, summary
from gigapipe.evaluation.targets import targets_of

CLASSES = ["acinar", "solid"]
TARGETS = targets_of(CLASSES)


def simulated(rng, patients=60, signal=1.0, slides=2, folds=1, seeds=1, part="test") -> pd.DataFrame:
    """Binormal scores, half of whose variance is the patient's: the true AUC of slides is Φ(signal / 2)."""
    rows = []
    for patient in range(patients):
        positive = patient % 2
        common = rng.normal() + signal * positive
        for slide, seed in itertools.product(range(slides), range(seeds)):
            score = common + rng.normal()
            rows.append(
                (seed, patient // 2 % folds, part, f"{patient}-{slide}", f"{patient}", CLASSES[positive], score)
            )
    return pd.DataFrame(rows, columns=["seed", "fold", "part", "slide", "patient", "label", "score"])


def plain_delong(positive, scores, patient):
    """AUCs and their covariance from the definition: every pair of slides compared, placements summed by patient."""
    comparisons = []
    for score in scores:
        ones, zeros = score[positive], score[~positive]
        comparisons.append(np.array([[1.0 if a > b else 0.5 if a == b else 0.0 for b in zeros] for a in ones]))
    aucs = [c.mean() for c in comparisons]
    covariance = np.zeros((len(scores), len(scores)))
    for side, axis in ((positive, 1), (~positive, 0)):
        names = sorted(set(patient[side]))
        sums = [
            [(c.mean(axis=axis)[patient[side] == name] - auc).sum() for name in names]
            for c, auc in zip(comparisons, aucs, strict=True)
        ]
        covariance += len(names) / (len(names) - 1) * (np.array(sums) @ np.array(sums).T) / side.sum() ** 2
    return np.array(aucs), covariance


@pytest.mark.parametrize("slides", [1, 3])
@pytest.mark.parametrize("ties", [False, True])
def test_delong_is_that_of_the_definition(slides, ties):
    rng = np.random.default_rng(slides)
    patient = np.repeat(np.arange(50), slides)
    positive = np.repeat(rng.random(50) < 0.4, slides)
    scores = rng.normal(size=(3, 50 * slides)) + positive
    scores[1] += scores[0]
    scores = scores.round(1 if ties else 12)
    found = [auc_and_influence(positive, score, patient) for score in scores]
    influence = np.stack([np.bincount(patient, weights=each) for _, each in found])
    aucs, covariance = plain_delong(positive, scores, patient)
    np.testing.assert_allclose([auc for auc, _ in found], aucs, atol=1e-12)
    np.testing.assert_allclose([roc_auc_score(positive, score) for score in scores], aucs, atol=1e-12)
    np.testing.assert_allclose(influence @ influence.T, covariance, atol=1e-12, rtol=1e-9)


def test_delong_of_a_worked_example_by_hand():
    # Positives 3, 4; negatives 1, 3.5: placements of the positives 1/2 and 1, of the negatives 1 and 1/2, AUC 3/4.
    # Variance: (1/8) / 2 + (1/8) / 2 = 1/8.
    auc, influence = auc_and_influence(
        np.array([True, True, False, False]), np.array([3, 4, 1, 3.5]), np.array(["a", "b", "c", "d"])
    )
    assert auc == 0.75 and (influence**2).sum() == pytest.approx(1 / 8, abs=1e-15)


def test_the_paired_test_is_delongs():
    rng = np.random.default_rng(3)
    one = simulated(rng, slides=1)
    other = one.assign(score=one["score"] + rng.normal(size=len(one)))
    aucs, covariance = plain_delong(
        (one["label"] == "solid").to_numpy(),
        [one["score"].to_numpy(), other["score"].to_numpy()],
        one["patient"].to_numpy(),
    )
    z = (aucs[0] - aucs[1]) / np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    shuffled = other.sample(frac=1, random_state=0)  # patients are paired by name
    difference, low, high, p = paired_test(mean_auc(one, TARGETS), mean_auc(shuffled, TARGETS))
    assert difference == pytest.approx(aucs[0] - aucs[1], abs=1e-12)
    assert p == pytest.approx(2 * norm.sf(abs(z)), rel=1e-9)
    assert (low + high) / 2 == pytest.approx(difference) and (p < 0.05) == (not low <= 0 <= high)
    assert paired_test(mean_auc(one, TARGETS), mean_auc(one, TARGETS))[3] == 1


def test_scores_of_different_networks_are_never_ranked_together():
    table = simulated(np.random.default_rng(0), folds=3, seeds=2)
    expected = {k: roc_auc_score(t["label"] == "solid", t["score"]) for k, t in table.groupby(["seed", "fold"])}
    for moved in (table, table.assign(score=table["score"] + 100 * table["fold"] + 1000 * table["seed"])):
        found = mean_auc(moved, TARGETS)
        assert found.value == pytest.approx(np.mean(list(expected.values())), abs=1e-12)
        assert found.networks.to_dict() == pytest.approx(expected, abs=1e-12)
    # A fold of one class has no AUC, and does not make one of the others.
    lacking = table[(table["fold"] > 0) | (table["label"] == "solid")]
    found = mean_auc(lacking, TARGETS)
    assert found.networks.isna().sum() == 2
    assert found.value == pytest.approx(np.mean([v for (_, fold), v in expected.items() if fold]), abs=1e-12)
    assert np.isnan(mean_auc(lacking[lacking["fold"] == 0], TARGETS).value)


def test_a_patient_is_scored_by_the_mean_of_its_slides():
    table = simulated(np.random.default_rng(1), slides=3)
    means = table.groupby("patient")["score"].mean()
    labels = table.drop_duplicates("patient").set_index("patient")["label"]
    found = mean_auc(by_patient(table, TARGETS), TARGETS)
    assert found.value == pytest.approx(roc_auc_score(labels[means.index] == "solid", means), abs=1e-12)


def test_more_than_two_classes_are_averaged_one_against_the_rest():
    rng = np.random.default_rng(2)
    classes = ["a", "b", "c"]
    truth = rng.integers(0, 3, 90)
    probabilities = rng.dirichlet(np.ones(3), 90) + 0.3 * np.eye(3)[truth]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    table = pd.DataFrame({f"score_{name}": probabilities[:, i] for i, name in enumerate(classes)})
    slides = [f"{i}" for i in range(90)]
    table = table.assign(seed=0, fold=0, part="test", slide=slides, patient=slides, label=np.array(classes)[truth])
    targets = targets_of(classes)
    expected = roc_auc_score(truth, probabilities, multi_class="ovr", average="macro")
    assert mean_auc(table, targets).value == pytest.approx(expected, abs=1e-12)
    assert np.std(bootstrapped(table, targets)) == pytest.approx(mean_auc(table, targets).deviation, rel=0.15)
    assert brier(table, targets) == pytest.approx(brier_score_loss(truth, probabilities, scale_by_half=False))
    found = summary(table, classes)
    assert found["auc"] == mean_auc(table, targets).value and np.isnan(found["sensitivity"])
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, probabilities.argmax(axis=1)))
    counts = confusion(decided(table, classes), classes)
    assert counts.to_numpy().sum() == 90 and counts.to_numpy().trace() == (truth == probabilities.argmax(1)).sum()


@pytest.mark.slow
@pytest.mark.parametrize("signal, cohort", [(1.0, {}), (1.0, {"folds": 3}), (3.0, {"patients": 40, "slides": 1})])
def test_intervals_cover_the_truth_as_often_as_they_say(signal, cohort):
    truth, cohorts = norm.cdf(signal / 2), 250
    covered = pd.Series(0.0, ["DeLong", "bootstrap", "slides for patients"])
    for seed in range(cohorts):
        table = simulated(np.random.default_rng(seed), signal=signal, **cohort)
        intervals = [
            mean_auc(table, TARGETS).interval(),
            bootstrap_interval(table, TARGETS, resamples=200),
            # As if several slides of a patient told as much as those of several patients: too narrow.
            mean_auc(table.assign(patient=table["slide"]), TARGETS).interval(),
        ]
        covered += [low <= truth <= high for low, high in intervals]
    covered /= cohorts
    print(f"AUC {truth:.3f}, {cohort}: " + ", ".join(f"{name} {share:.1%}" for name, share in covered.items()))
    # The standard deviation of a share of 95 % of 250 is 1.4 %.
    assert 0.91 <= covered["DeLong"] <= 0.99 and 0.9 <= covered["bootstrap"] <= 0.99
    assert covered["slides for patients"] < covered["DeLong"] - 0.03 or cohort.get("slides") == 1


def test_the_bootstrap_draws_patients_of_each_label_and_all_their_slides():
    table = simulated(np.random.default_rng(5), patients=200, slides=2, seeds=2, folds=2)
    assert bootstrapped(table, TARGETS).std() == pytest.approx(mean_auc(table, TARGETS).deviation, rel=0.1)
    twice = pd.concat([table, table.assign(slide=table["slide"] + "-again")])  # nothing new is known
    assert bootstrapped(twice, TARGETS).std() == pytest.approx(bootstrapped(table, TARGETS).std(), rel=1e-6)
    np.testing.assert_array_equal(bootstrapped(table, TARGETS, 50, seed=1), bootstrapped(table, TARGETS, 50, seed=1))
    few = simulated(np.random.default_rng(6), patients=4, slides=1)
    assert not np.isnan(bootstrapped(few, TARGETS)).any()  # no cohort without one of the labels


def matched(rng, patients=60) -> pd.DataFrame:
    """The same, but every patient has a slide of either class, as of tumour and of normal tissue."""
    both = simulated(rng, patients, signal=0.0)
    positive = np.arange(len(both)) % 2
    return both.assign(score=both["score"] + positive, label=[CLASSES[p] for p in positive])


def test_patients_with_slides_of_both_classes_make_an_auc_more_certain_not_less():
    """Deviation and bootstrap are as large as the spread over cohorts, in which what is the patient's own falls out."""
    rng = np.random.default_rng(0)
    found = [mean_auc(matched(rng), TARGETS) for _ in range(300)]
    spread = np.std([one.value for one in found])
    assert np.mean([one.deviation for one in found]) == pytest.approx(spread, rel=0.1)
    assert found[0].held_out == [(60, 60)]
    drawn = [bootstrapped(matched(rng), TARGETS, resamples=200).std() for _ in range(20)]
    assert np.mean(drawn) == pytest.approx(spread, rel=0.15)
    apart = [mean_auc(simulated(rng, 120, slides=1), TARGETS).deviation for _ in range(20)]
    assert spread < 0.8 * np.mean(apart)


def test_figures_of_patients_are_left_out_where_they_have_no_one_label():
    rng = np.random.default_rng(1)
    one_label, mixed = simulated(rng, 40), simulated(rng, 40)
    mixed.loc[[0, 4], "label"] = CLASSES[1]
    for scores, number in ((one_label, 0), (mixed, 2)):
        figures = summary(scores, CLASSES)
        of_patients = [figures[name] for name in figures if name.startswith("patient_auc")]
        assert figures["patients_of_several_labels"] == number and len(of_patients) == 5
        assert np.isnan(of_patients).all() == bool(number) and not np.isnan(figures["auc_low"])


def test_an_auc_of_one_still_has_an_interval():
    table = simulated(np.random.default_rng(7), patients=40, signal=60.0)
    low, high = mean_auc(table, TARGETS).interval()
    # Newcombe: the lower bound is the AUC for which 1 is 1.96 standard deviations away.
    spread = 1 + 19 * ((1 - low) / (2 - low) + low / (1 + low))
    assert high == 1 and 1 - low == pytest.approx(1.96 * np.sqrt(low * (1 - low) * spread / 400), rel=1e-3)
    assert 0.8 < low < 0.95 and separated_bound([(200, 200)], 1, 1.96) > low
    assert mean_auc(table.assign(score=-table["score"]), TARGETS).interval() == (0, pytest.approx(1 - low))


def test_the_threshold_is_the_best_on_validation_and_no_other():
    assert threshold(np.array([0, 0, 1, 1], bool), np.array([1.0, 2, 3, 4])) == 2.5
    assert np.isnan(threshold(np.array([True, True]), np.array([1.0, 2])))
    rng = np.random.default_rng(8)
    test, validation = (simulated(rng, folds=2, part=part) for part in ("test", "validation"))
    validation["score"] += 100 * validation["fold"]
    test["score"] += 100 * test["fold"]
    decisions = decided(pd.concat([test, validation]), CLASSES)
    pd.testing.assert_frame_equal(decisions[test.columns].sort_index(), test)
    for fold, found in decisions.groupby("fold"):
        known = validation[validation["fold"] == fold]
        limits = np.sort(known["score"])

        def accuracy(limit, known=known):
            return balanced_accuracy_score(known["label"] == "solid", known["score"] >= limit)

        chosen = threshold((known["label"] == "solid").to_numpy(), known["score"].to_numpy())
        assert accuracy(chosen) == max(map(accuracy, limits))
        assert ((found["decided"] == "solid") == (found["score"] >= chosen)).all()
    figures = decision_figures(decisions, CLASSES)
    assert figures["sensitivity"] == recall_score(decisions["label"], decisions["decided"], pos_label="solid")
    assert figures["specificity"] == recall_score(decisions["label"], decisions["decided"], pos_label="acinar")
    assert figures["balanced_accuracy"] == balanced_accuracy_score(decisions["label"], decisions["decided"])
    assert confusion(decisions, CLASSES).to_numpy().sum() == len(test)
    assert decided(test, CLASSES).empty  # none without validation
    assert np.isnan(decision_figures(decided(test, CLASSES), CLASSES)["sensitivity"])


def test_calibration_of_a_known_forecaster():
    rng = np.random.default_rng(9)
    said = rng.random(20_000)
    came = rng.random(20_000) < said
    table = pd.DataFrame({"score": said, "label": np.where(came, "solid", "acinar")})
    assert brier(table, TARGETS) == pytest.approx(brier_score_loss(came, said), abs=1e-12)
    bins = reliability(table, TARGETS)
    assert len(bins) == 10 and bins["slides"].sum() == 20_000
    assert ((bins["low"] <= bins["predicted"]) & (bins["predicted"] <= bins["high"])).all()
    assert calibration_error(bins) < 0.02
    bold = table.assign(score=np.where(said > 0.5, 1.0, 0.0))  # right three times of four, and always sure
    assert calibration_error(reliability(bold, TARGETS)) == pytest.approx(0.25, abs=0.02)
    assert list(reliability(bold, TARGETS)["high"]) == [0.1, 1.0]


def test_a_summary_of_several_seeds_and_folds():
    rng = np.random.default_rng(10)
    test, validation = (simulated(rng, folds=3, seeds=3, part=part) for part in ("test", "validation"))
    table = pd.concat([test, validation])
    table["score"] = 1 / (1 + np.exp(-table["score"]))
    found = summary(table, CLASSES)
    test = table[table["part"] == "test"]
    aucs = mean_auc(test, TARGETS).networks
    assert (found["slides"], found["patients"], found["seeds"], found["folds"]) == (120, 60, 3, 3)
    assert found["auc"] == pytest.approx(aucs.mean())
    assert found["auc_sd_folds"] == pytest.approx(np.std(aucs, ddof=1))
    assert found["auc_sd_seeds"] == pytest.approx(np.std([aucs[seed].mean() for seed in range(3)], ddof=1))
    for name in ("auc", "patient_auc"):
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
        assert found[f"{name}_bootstrap_low"] < found[name] < found[f"{name}_bootstrap_high"]
        # Three seeds on the same patients do not make three times the patients.
        assert found[f"{name}_high"] - found[f"{name}_low"] > 0.15
    assert found["average_precision"] == average_precision(test, TARGETS)
    assert found.pop("auc_interval_method") == "DeLong"
    assert not any(np.isnan(value) for value in found.values())
