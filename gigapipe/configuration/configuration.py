"""The options. An option stands here once; what else names it is derived (see `__init__.py`).

Groups inherit what they share: a training of whichever task has all of `Learning`, a classifier's `Network`, too, and
what `Computing` says changes no weight.
"""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gigapipe import named
from gigapipe.configuration.messages import either
from gigapipe.configuration.options import Options
from gigapipe.configuration.pyramids import Pyramids
from gigapipe.configuration.sources import Archive, Cohort, Phantom
from gigapipe.configuration.tasks import TASKS, Task, TaskName
from gigapipe.configuration.values import (
    Bytes,
    Count,
    Device,
    Distinct,
    File,
    Flag,
    Folder,
    Function,
    Keywords,
    Micrometres,
    Number,
    Pixels,
    Seed,
    Share,
    Since,
    SourcePattern,
)

Split = Literal["site", "patient"]
RESNETS = Literal["resnet10", "resnet18", "resnet34", "resnet50"]
POOLS = Literal["average", "max", "attention"]


class Places(Options):
    """Where things are written."""

    results: Folder = Field(default="results", description="everything of one run")
    resources: Folder = Field(default="resources", description="slides that are fetched")


class Resolution(Options):
    """A network is trained at each resolution."""

    mpp: Micrometres = Field(description="the resolution")
    canvas: Pixels | Literal["auto"] = Field(
        default="auto",
        description="pixels a side that the network sees, centred on the tissue; auto: what holds the tissue of nearly "
        "all slides, known when their pyramids are made. Tasks tissue and segmentation take whole slides",
    )
    mesh: tuple[Count, Count, Count] | Literal["auto"] = Field(
        default="auto",
        description="ranks: data, rows, columns; auto: as many for an image as hold a step in the memory that they "
        "have, or one that streams it",
    )

    def __str__(self) -> str:
        return f"{self.mpp:g} µm/px"


class Folds(Options):
    """How patients are divided."""

    number: Annotated[int, Field(ge=3), Number, Flag("--folds")] = Field(
        default=4, description="number of folds: one tests, the next chooses the epoch, the others train"
    )
    by: Split | Annotated[list[Split], Field(min_length=1), Distinct] = Field(
        default="site",
        description="what no two folds share: the hospital, where the sheet knows it, or only the patient; or both, "
        "one after the other, as [site, patient]",
    )
    given: File | None = Field(
        default=None, description="published folds to take instead: a table with fold, and slide or patient"
    )

    @property
    def splits(self) -> list[str]:
        """The kinds of folds that are made."""
        if self.given:
            return ["given"]
        return [self.by] if isinstance(self.by, str) else list(self.by)


class OwnNetwork(Options):
    """A network of the user's own."""

    network: Annotated[Function | None, Since("0.2")] = Field(default=None, description="a network of your own")
    network_options: Annotated[Keywords, Since("0.2")] = Field(
        default={}, description="what the function of a network of your own is given"
    )

    @property
    def own(self) -> bool:
        """Whether a function of the user's makes the network."""
        return ":" in (self.network or "")

    def code(self) -> str | None:
        """What changes if that function's code does; see `named.code_of`. InputError if there is no such function."""
        return named.code_of(self.network) if self.network and self.own else None


class Network(OwnNetwork):
    """The network that learns a slide's class, and what it sees."""

    network: RESNETS | Function = Field(
        default="resnet18",
        description="which ResNet, of which resnet10 has half the blocks of resnet18; or a network of your own, in a "
        "file beside the config or a package that is installed",
    )
    width: Count = Field(
        default=64, description="a ResNet's channels after the stem, 64 in the published ones; doubled by each stage"
    )
    norm: Literal["batch", "frozen", "group", "none"] = Field(
        default="batch",
        description="a ResNet's normalisation: BatchNorm over all ranks, the same with the statistics of weights, "
        "GroupNorm, none",
    )
    pool: POOLS = Field(
        default="average",
        description="pooling over all positions: their mean, largest value, or a mean by learnt weights "
        "(arXiv:1802.04712); a network of your own may have its own",
    )
    weights: File | None = Field(
        default=None,
        description="weights to begin with: a checkpoint of torchvision's network of that name; or, for a network of "
        "your own, whatever has the name and shape of one of its weights",
    )
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="balanced: the classes weigh the same in the loss, however many slides each has"
    )
    shift: Share = Field(
        default=0.05,
        description="augmentation: share of its side by which the canvas is shifted at most, along each axis",
    )
    background: Literal["keep", "white"] = Field(
        default="keep", description="white: glass becomes white, and costs less where it is streamed"
    )

    @model_validator(mode="after")
    def options_of_their_networks(self) -> Self:
        fields = type(self).model_fields
        if not self.own and self.network_options:
            raise ValueError(
                f"network_options: {self.network} takes width, norm and pool; these are for a network of your own"
            )
        for name in ("width", "norm") if self.own else ():
            if getattr(self, name) != fields[name].default:
                raise ValueError(f"{name}: is of ResNets; give what {self.network} takes in network_options")
        return self


class Learning(Options):
    """How any network is trained."""

    epochs: Count = Field(default=6, description="passes over the training slides")
    batch: Count = Field(default=4, description="slides a step, over all data ranks")
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False), Number] = Field(
        default=0.0003, description="AdamW's at its highest, after a linear warm-up"
    )
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False), Number] = Field(
        default=0.01, description="AdamW's"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of activations, bfloat16 where the CPU computes in it; weights stay float32"
    )
    schedule: Literal["cosine", "plateau"] = Field(
        default="cosine",
        description="of the learning rate: a half cosine over all epochs; or 0.3 of it, from the best weights, three "
        "times, where validation gets no better for patience epochs",
    )
    patience: Count | None = Field(
        default=None,
        description="epochs without a better validation that end a training. With cosine give more than a few: its "
        "best epochs are often the last",
    )
    accumulate: Count = Field(
        default=1,
        description="batches whose gradients are added up before a step; BatchNorm knows only those of a batch",
    )
    symmetries: Literal["all", "none"] = Field(
        default="all", description="augmentation: slides are flipped and turned by quarters"
    )
    stain: Share = Field(
        default=0.0, description="augmentation: share by which each stain is stronger or weaker at most"
    )
    brightness: Share = Field(
        default=0.0, description="augmentation: share by which a slide is darker or lighter at most"
    )
    contrast: Share = Field(
        default=0.0, description="augmentation: what the exponent of the contrast differs from 1 at most"
    )

    @model_validator(mode="after")
    def plateau_needs_patience(self) -> Self:
        if self.schedule == "plateau" and not self.patience:
            raise ValueError("schedule: plateau needs patience, the epochs after which the learning rate falls")
        return self


class Computing(Options):
    """Where and in what ranks compute: nothing of it changes what is learnt."""

    device: Device = Field(
        default="auto",
        description="where ranks compute; auto: cuda where there is a GPU for each rank, or else cpu. cuda is for "
        "AMD's GPUs, too; cuda:0 is shared by a host's ranks; xpu and mps are untried",
    )
    memory: Bytes | None = Field(
        default=None,
        description="what a rank may take: what does not fit is computed tile by tile, with the same gradients; "
        "without it, what it needs",
    )
    stage: File | None = Field(
        default=None,
        description="folder on a node's own disk, as $TMPDIR/gigapipe, where what is read of pyramids is kept, as far "
        "as it has room",
    )


class Training(Computing, Network, Learning):
    """How networks are trained."""

    keep_checkpoints: Count = Field(
        default=2, description="how many of a training's last states stay on disk until it is whole"
    )
    tensorboard: Annotated[bool, Since("0.2")] = Field(
        default=False,
        description="each epoch's losses, scores, learning rate, seconds and memory are written for TensorBoard, too, "
        "into a folder of that name beside the model",
    )
    coarse_to_fine: bool = Field(
        default=False,
        description="a training begins with the model of the next coarser resolution of its fold",
    )

    @model_validator(mode="after")
    def one_beginning(self) -> Self:
        if self.coarse_to_fine and self.weights:
            raise ValueError("coarse_to_fine: it and weights are two beginnings of one network; remove one")
        return self


class Comparison(Options):
    """How resolutions are compared."""

    margin: Annotated[Share, Since("0.2")] = Field(
        default=0.02,
        description="what a resolution's AUC, R² or Dice may be below the best and still be recommended, where that is "
        "shown to be all",
    )


PHANTOMS_RESOLUTIONS = [
    Resolution(mpp=2, canvas=208, mesh=(1, 2, 1)),
    Resolution(mpp=8, canvas=52, mesh=(1, 1, 1)),
    Resolution(mpp=48, canvas=9, mesh=(1, 1, 1)),
]


class Configuration(Options):
    """A run of the workflow. The defaults are a phantom cohort, to try everything without a slide."""

    task: TaskName = Field(
        default="classes",
        description=f"what is learnt: {either([task.learns for task in TASKS.values()])}; or a task of your own",
    )
    pathvars: Places = Field(default=Places(), description="where things are written")
    slides: File | None = Field(
        default=None, description="path of the sample sheet; without it the cohort is made of phantoms"
    )
    source: SourcePattern | None = Field(default=None, description="stands in for a sheet's missing source column")
    confirmed_labels: Annotated[list[str], Flag("--confirmed-label")] = Field(
        default=[],
        description="labels of the sheet that are meant, though they differ from another only in capitals or spaces, "
        "or are called NA or the like",
    )
    cohort: Cohort | None = Field(
        default=None, description="slides of the Genomic Data Commons that the sheet `slides` is made of"
    )
    phantom: Phantom = Field(default=Phantom(), description="the generated cohort")
    resolutions: Annotated[list[Resolution], Field(min_length=1)] = Field(
        default=PHANTOMS_RESOLUTIONS, description="one network is trained for each"
    )
    gdc: Archive = Field(default=Archive(), description="where slides with the source gdc:UUID come from")
    keep_slides: bool = Field(
        default=True, description="false: a fetched slide is removed when its pyramid is made and was compared with it"
    )
    pyramids: Pyramids = Field(default=Pyramids(), description="how slides are converted")
    mask_classes: Annotated[list[str], Distinct] = Field(
        default=[],
        description="task tissue: of annotations in the sheet's column mask, only the areas of these classes; none: of "
        "all. Task segmentation: the classes, in the order of their values 1, 2, …; where areas overlap, the last of "
        "them counts",
    )
    target: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="task regression: the column of the sheet whose numbers are learnt; of phantoms, tumour_share",
    )
    seeds: Annotated[list[Seed], Field(min_length=1), Distinct] = Field(
        default=[0],
        description="each divides the patients otherwise, and begins with other weights; with several the table has "
        "mean and spread",
    )
    folds: Folds = Field(default=Folds(), description="how patients are divided")
    training: Training = Field(default=Training(), description="how networks are trained")
    comparison: Comparison = Field(default=Comparison(), description="how resolutions are compared")
    maps: Annotated[int, Field(ge=0), Number, Flag("--number")] = Field(
        default=2,
        description="maps of what networks saw, at each resolution: of so many slides each of highest, lowest and most "
        "wrong score; 0: none",
    )

    @model_validator(mode="after")
    def consistent(self) -> Self:
        for found in self._contradictions():
            raise ValueError(found)
        return self

    def _contradictions(self) -> Iterator[str]:
        if self.cohort and not self.slides:
            yield "cohort: needs `slides`, the sample sheet to make of it"
        if len({r.mpp for r in self.resolutions}) < len(self.resolutions):
            yield "resolutions: an mpp is given twice; remove one"
        if self.task in TASKS:
            yield from self.contradictions(TASKS[self.task])
        for number, resolution in enumerate(self.resolutions):
            if resolution.mesh == "auto":
                continue
            key, (data, rows, columns) = f"resolutions[{number}]", resolution.mesh
            if self.training.batch % data:
                yield (
                    f"training.batch: {self.training.batch} slides do not divide over the {data} data ranks at "
                    f"{resolution}; give a multiple"
                )
            if resolution.canvas != "auto" and max(rows, columns) > resolution.canvas:
                yield (
                    f"{key}.mesh: {rows} × {columns} ranks are more than a canvas of {resolution.canvas} px has rows "
                    "or columns; give a smaller mesh"
                )

    def contradictions(self, task: Task) -> Iterator[str]:
        """What does not suit the task; of one of the user's it is to be asked when its code is run."""
        if not task.divisions and len(self.folds.splits) * len(self.seeds) > 1:
            yield f"task: {self.task} takes one seed and one kind of folds; give one of each"
        if task.needs == "mask" and not self.mask_classes:
            yield f"mask_classes: task {self.task} needs the names of the classes, in the order of their values"
        if task.needs == "target" and not self.target:
            yield f"target: task {self.task} needs the column of the sample sheet whose numbers are to be learnt"
        if task.needs in ("mask", "target") and not self.slides and not self.phantom.regions:
            yield f"phantom.regions: task {self.task} of phantoms needs it; give true"
