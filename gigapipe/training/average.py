"""An exponential moving average of the weights, which is validated and saved in place of the weights themselves."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class Average:
    """Of the trained weights of a model (Polyak and Juditsky 1992, SIAM J. Control Optim. 30:838).

    After step n its decay is the lower of `decay` and n / (n + 9), so that the first steps do not keep the random
    weights that training began with. Every rank has the same weights, and so the same average. The values are those of
    `held`, by the parameters' names, which go into checkpoints; an empty dictionary is filled with the present weights.
    """

    def __init__(self, model: nn.Module, decay: float, held: dict[str, torch.Tensor]):
        self.decay, self.held = decay, held
        self._weights: dict[str, torch.Tensor] = {
            name: value for name, value in model.named_parameters() if value.requires_grad
        }
        if held:
            held |= {name: held[name].to(value.device) for name, value in self._weights.items()}
        else:
            self.restart()

    def restart(self) -> None:
        """It is the present weights."""
        self.held |= {name: value.detach().clone() for name, value in self._weights.items()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """By the weights after so many steps of training."""
        new = 1 - min(self.decay, steps / (steps + 9))
        for name, value in self._weights.items():
            self.held[name].lerp_(value, new)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """In the model is the average, and afterwards what was there before."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self._weights.items():
            held = self.held[name].clone()
            self.held[name].copy_(value)
            value.copy_(held)
