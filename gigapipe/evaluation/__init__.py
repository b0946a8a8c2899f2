"""Evaluation: patient-disjoint folds, metrics with intervals, the comparison table and its figure."""
