"""The schedule of a training: the learning rate of each step, and when it falls or the training ends."""

import math

from gigapipe.training.settings import Settings
from gigapipe.training.state import State

FALLS = 3
"""How often schedule `plateau` lowers the learning rate, and to what share of it."""
FALLS_TO = 0.3


class Schedule:
    """What `settings` say of it, for so many `steps` an epoch."""

    def __init__(self, settings: Settings, steps: int):
        self.settings, self.steps, self.epochs = settings, steps, settings.epochs_of(steps)

    def learning_rate(self, state: State) -> float:
        """That of the next step."""
        progress = (state.epoch * self.steps + state.step) / (self.epochs * self.steps)
        highest = self.settings.learning_rate * FALLS_TO**state.falls
        return highest * _share(self.settings.schedule, progress)

    def goes_on(self, state: State) -> bool:
        """Whether there is another epoch."""
        return state.epoch < self.epochs and not state.ended

    def falls(self, state: State) -> bool:
        """Whether the learning rate is to fall after this epoch."""
        return self._patience_is_over(state) and self._can_fall(state)

    def ends(self, state: State) -> bool:
        """Whether the training is to end after this epoch, although there may be more."""
        return self._patience_is_over(state) and not self._can_fall(state)

    def _patience_is_over(self, state: State) -> bool:
        if not self.settings.patience:
            return False
        return state.epoch - state.since >= self.settings.patience

    def _can_fall(self, state: State) -> bool:
        return self.settings.schedule == "plateau" and state.falls < FALLS


def _share(schedule: str, progress: float, warmup: float = 0.1) -> float:
    """Share of the full learning rate at `progress` (0 to 1) through training.

    Linear warm-up, then a half cosine; `plateau`: all of it, which falls as validation says.
    """
    if progress < warmup:
        return (progress + 0.01) / (warmup + 0.01)
    if schedule == "plateau":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
