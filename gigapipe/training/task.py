"""What the training loop asks of whatever is learnt."""

from collections.abc import Iterator
from typing import Any, Protocol

from torch import nn

from gigapipe.configuration.tasks import TASKS, learning_of
from gigapipe.pyramids import Pyramid
from gigapipe.spatial import Mesh
from gigapipe.training.settings import Settings
from gigapipe.training.streaming import Streaming


class Slides(Protocol):
    """What is trained or validated on."""

    @property
    def slides(self) -> list[str]: ...

    @property
    def pyramids(self) -> list[Pyramid]: ...


def files_of(slides: Slides) -> dict[str, str]:
    """The MD5 of each slide's file."""
    return {slide: pyramid.source["md5"] for slide, pyramid in zip(slides.slides, slides.pyramids, strict=True)}


def kinds_of_settings(canvas: bool) -> tuple[type[Settings], ...]:
    """Of the tasks that gigapipe brings and whose networks see canvases, or slides as they are."""
    return tuple(learning_of(task).kind for task in TASKS.values() if task.canvas is canvas)


class Task(Protocol):
    """What is learnt, and from which slides. All ranks of the mesh call its methods together.

    Its class has the `kind` of its settings, and is made of settings, the slides to train on, those to validate on, the
    mesh, and the bytes that a rank may take.
    """

    mesh: Mesh
    model: nn.Module
    """Decomposed over the mesh."""
    streaming: Streaming
    slides: int
    """To train on."""
    following: list[int] | None
    """What the loop will ask `backward` for after what it asks for now, if that is in the same epoch: these slides may
    be read meanwhile."""

    @property
    def training(self) -> Slides: ...

    @property
    def validation(self) -> Slides: ...

    @property
    def settings(self) -> Settings:
        """Of its own kind."""

    @property
    def started_from(self) -> dict[str, Any] | None:
        """The `mpp` and `fold` of the coarser model that it began with."""

    def identity(self) -> list[Any]:
        """What says, in JSON, which slides there are to train on and to validate on."""

    def backward(self, indices: list[int], epoch: int, scale: float = 1.0) -> float:
        """Add the gradient, times `scale`, of the mean loss over this data rank's slides, augmented as in this epoch;
        the loss."""

    def validate(self, batches: Iterator[list[int]]) -> dict[str, float]:
        """`loss` on the slides to validate on, and other figures; `batches` are those of the epoch that has ended."""
