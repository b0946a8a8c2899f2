"""Learning a number of a slide from the whole of its canvas."""

from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from gigapipe.errors import InputError
from gigapipe.slides.numbers import numbers_of
from gigapipe.training.classification import CanvasSettings, OfCanvases
from gigapipe.training.linear import Layer, ridge


def standard(numbers: pd.Series, fold: int) -> dict[str, float]:
    """The `mean` and `deviation` of training slides' numbers. InputError if they are all the same."""
    if numbers.nunique() == 1:
        raise InputError(
            f"fold {fold}: {numbers.name} is {numbers.iloc[0]:g} for all training slides: give other folds"
        )
    return {"mean": float(numbers.mean()), "deviation": float(numbers.std(ddof=0))}


class RegressorSettings(CanvasSettings):
    """The one output is the number `target`, in `deviation`s above `mean`, which are those of the training slides."""

    task = "regression"

    target: str
    mean: float
    deviation: float

    @classmethod
    def of_slides(cls, table: pd.DataFrame, training: pd.DataFrame, target: str | None, fold: int) -> dict[str, Any]:
        if target is None:
            raise InputError(f"target: task {cls.task} needs the column of the numbers to predict; give --target")
        return {"target": target, **standard(numbers_of(training, target, "folds"), fold)}

    @property
    def outputs(self) -> list[str]:
        return [self.target]

    def truth(self, table: pd.DataFrame) -> torch.Tensor:
        return torch.tensor(numbers_of(table, self.target, "folds").tolist(), dtype=torch.float64)

    def said(self, outputs: torch.Tensor) -> torch.Tensor:
        return self.mean + self.deviation * outputs


class Regression(OfCanvases):
    kind = RegressorSettings
    settings: RegressorSettings

    def loss(self, outputs: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(outputs[:, 0], self.standard(truth).float())

    def solved(self, features: np.ndarray, strength: float) -> Layer:
        return ridge(features, self.standard(self.training.truth).numpy(), strength)

    def figures(self, said: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
        error = said[:, 0] - truth
        loss = F.mse_loss(self.standard(said[:, 0]), self.standard(truth))
        return {"loss": loss.item(), "mean_absolute_error": error.abs().mean().item()}

    def standard(self, numbers: torch.Tensor) -> torch.Tensor:
        """Numbers of slides as the network is to say them: in deviations above the mean."""
        return (numbers - self.settings.mean) / self.settings.deviation
