"""What the training loop asks of whatever is learnt."""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import nn

from gigapipe.spatial import Mesh
from gigapipe.training.settings import Settings
from gigapipe.training.streaming import Streaming


class Task(Protocol):
    """What is learnt, and from which slides. All ranks of the mesh call its methods together."""

    mesh: Mesh
    model: nn.Module
    """Decomposed over the mesh."""
    streaming: Streaming
    slides: int
    """To train on."""

    @property
    def settings(self) -> Settings:
        """Of its own kind."""

    @property
    def started_from(self) -> dict[str, Any] | None:
        """The `mpp` and `fold` of the coarser model that it began with."""

    def identity(self) -> list[Any]:
        """What says, in JSON, which slides there are to train on and to validate on."""

    def backward(self, indices: list[int], epoch: int) -> float:
        """Add the gradient of the mean loss over this data rank's slides, augmented as in this epoch; its value."""

    def validate(self, batches: Iterator[list[int]]) -> dict[str, float]:
        """`loss` on the slides to validate on, and other figures; `batches` are those of the epoch that has ended."""
