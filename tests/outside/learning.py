"""How the task is learnt."""

import torch
import torch.nn.functional as F

from gigapipe.training.regression import Regression


class Robust(Regression):
    def loss(self, outputs: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return F.huber_loss(outputs[:, 0], self.standard(truth).float())

    def figures(self, said: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
        loss = F.huber_loss(self.standard(said[:, 0]), self.standard(truth))
        return super().figures(said, truth) | {"loss": loss.item()}
