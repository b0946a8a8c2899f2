"""What can be learned from slides: for each task what it needs in the sample sheet, and what the workflow computes.

A task of gigapipe is an entry in `TASKS`; a task of the user is a function that returns such an entry, given by its
name instead. Needs no torch: the workflow reads this before anything runs.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, WithJsonSchema

from gigapipe import named
from gigapipe.configuration.messages import either
from gigapipe.configuration.values import Function, Said
from gigapipe.errors import InputError


@dataclass(frozen=True)
class Task:
    """What differs between tasks; all else, from slides to folds, is the same."""

    learns: str
    """In words."""
    needs: Literal["label", "target", "mask", "nothing"]
    """Of each slide in the sheet: its class, or a number in the column that the option `target` names, by which folds
    are balanced; a drawing of its regions; or nothing."""
    learning: str
    """Where the class is by which networks learn it, as `package.module:Class`: a `Task` of training/task.py."""
    rules: tuple[str, ...]
    """What makes its results: files of `workflow/rules`. Their rules `trained` and `evaluated` are its stages."""
    train: str
    """The verb that trains a network."""
    masks: str = ""
    """What masks that networks find are called, and their folder; empty where networks see canvases, and find none."""
    own: str = ""
    """The name of the function that made it; empty for those that gigapipe brings."""

    @property
    def canvas(self) -> bool:
        """Whether networks see a canvas of one size; else they see slides as they are."""
        return not self.masks

    @property
    def drawings(self) -> tuple[str, ...]:
        """The columns of the sheet whose drawings are read."""
        return ("tissue", "mask") if self.masks else ("tissue",)

    @property
    def divisions(self) -> bool:
        """Whether there may be several seeds and kinds of folds."""
        return self.canvas

    @property
    def page(self) -> bool:
        """Whether its rules make report.html."""
        return "report.smk" in self.rules


_OF_CANVASES, _OF_MASKS = ("train.smk", "evaluate.smk", "report.smk"), ("segmentation.smk",)
TASKS = {
    "classes": Task(
        "the class of the slide",
        needs="label",
        learning="gigapipe.training.classification:Classification",
        rules=_OF_CANVASES,
        train="train",
    ),
    "regression": Task(
        "a number for the slide",
        needs="target",
        learning="gigapipe.training.regression:Regression",
        rules=_OF_CANVASES,
        train="train",
    ),
    "tissue": Task(
        "a mask of the tissue",
        needs="nothing",
        learning="gigapipe.training.segmentation:Segmentation",
        rules=_OF_MASKS,
        train="train-tissue",
        masks="tissue",
    ),
    "segmentation": Task(
        "a mask of regions of several classes",
        needs="mask",
        learning="gigapipe.training.segmentation:SegmentationOfRegions",
        rules=_OF_MASKS,
        train="train-segmentation",
        masks="regions",
    ),
}


def task_named(name: str) -> Task:
    """One of `TASKS`, or what the user's function of that name makes, whose code is run. InputError if that is none."""
    if name in TASKS:
        return TASKS[name]
    made = named.call(name, {})
    if not isinstance(made, Task):
        raise InputError(
            f"task {name}: makes a {type(made).__name__}, not a gigapipe.configuration.tasks.Task; correct it"
        )
    beside = [named.find(name).folder]
    return replace(made, learning=named.beside(made.learning, beside), own=name)


def learning_of(task: Task) -> Any:
    """The class by which networks learn a task: it is imported, and torch with it."""
    return named.load(task.learning)


def code_of(task: Task) -> str | None:
    """What changes if the code of a task of the user's does; None of one that gigapipe brings."""
    if not task.own:
        return None
    return "; ".join(named.code_of(name) for name in (task.own, task.learning) if not name.startswith("gigapipe."))


def _known(name: str) -> str:
    if name not in TASKS:
        raise ValueError
    return name


_Brought = Annotated[
    str,
    AfterValidator(_known),
    Said(either(list(TASKS))),
    WithJsonSchema({"type": "string", "enum": list(TASKS)}),
]
TaskName = _Brought | Function
