"""Linear layers that are solved for, by scikit-learn, with an L2 penalty: of classes, and of a number."""

from typing import NamedTuple

import numpy as np
import torch

from gigapipe.errors import InputError


class Layer(NamedTuple):
    """A linear layer (outputs, channels), (outputs,), float64, of features as they are."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, features: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(features @ self.weight.T + self.bias)


def logistic(features: np.ndarray, truth: np.ndarray, classes: list[str], strength: float, balanced: bool) -> Layer:
    """Logits of classes, which are numbered in `truth` (slides,). InputError if a class has no slide."""
    from sklearn.linear_model import LogisticRegression  # slow to import

    if lacking := set(range(len(classes))) - set(truth):
        raise InputError(f"train: probe: no training slide is of class {classes[min(lacking)]}; give fewer folds")
    found = LogisticRegression(C=strength, max_iter=2000, class_weight="balanced" if balanced else None)
    found.fit(features, truth)
    weight, bias = found.coef_, found.intercept_
    if len(classes) == 2:  # one score, of the second
        weight, bias = (np.concatenate([-part, part]) / 2 for part in (weight, bias))
    return Layer(weight, bias)


def ridge(features: np.ndarray, truth: np.ndarray, strength: float) -> Layer:
    """A number of each slide (slides,)."""
    from sklearn.linear_model import Ridge  # slow to import

    found = Ridge(alpha=1 / strength).fit(features, truth)
    return Layer(found.coef_[None], np.array([found.intercept_]))
