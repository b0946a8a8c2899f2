"""The options. An option stands here once; what else names it is derived (see `__init__.py`).

Groups inherit what they share: a training of whichever task has all of `Learning`, a classifier's `Network`, too, and
what `Computing` says changes no weight.
"""

import functools
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from gigapipe import named
from gigapipe.configuration.folds import Folds
from gigapipe.configuration.messages import either
from gigapipe.configuration.options import Options
from gigapipe.configuration.pyramids import Pyramids
from gigapipe.configuration.resolutions import PHANTOMS_RESOLUTIONS, Resolution
from gigapipe.configuration.sources import Archive, Cohort, Phantom
from gigapipe.configuration.tasks import TASKS, Task, TaskName
from gigapipe.configuration.values import (
    AUTO,
    Auto,
    Bytes,
    CohortName,
    Count,
    Device,
    Distinct,
    File,
    Flag,
    Folder,
    Function,
    Keywords,
    MethodName,
    Number,
    Said,
    Seed,
    Share,
    Since,
    SourcePattern,
)
from gigapipe.published_weights import OFFICIAL

RESNETS = Literal["resnet10", "resnet18", "resnet34", "resnet50"]
NETWORKS = Literal[RESNETS, "efficientnet_lite0"]
LEARNED_POOLS = Literal["attention", "gated"]
POOLS = Literal["average", "max", LEARNED_POOLS]


class Places(Options):
    """Where things are written."""

    results: Folder = Field(default="results", description="all results of one run")
    resources: Folder = Field(default="resources", description="downloaded slides")


class OwnNetwork(Options):
    """A network of the user's own."""

    network: Annotated[Function | None, Since("0.2")] = Field(default=None, description="your own network")
    network_options: Annotated[Keywords, Since("0.2")] = Field(
        default={}, description="arguments of the function that makes your own network"
    )

    @property
    def own(self) -> bool:
        """Whether a function of the user's makes the network."""
        return ":" in (self.network or "")

    def code(self) -> str | None:
        """What changes if that function's code does; see `named.code_of`. InputError if there is no such function."""
        return named.code_of(self.network) if self.network and self.own else None


class Architecture(OwnNetwork):
    """The network, the weights that it begins with, and which of them are trained."""

    network: NETWORKS | Function = Field(
        default="resnet18",
        description="a ResNet (resnet10 has half the blocks of resnet18); EfficientNet-Lite0; or your own network, "
        "from a file beside the config or from an installed package",
    )
    patch: Annotated[Count | None, Since("0.2")] = Field(
        default=None,
        description="your own network is a patch encoder: it sees patches of so many pixels a side, one at a time, and "
        "needs no decomposed form; only with train: head or probe",
    )
    stages: Annotated[Literal["last", "all"], Since("0.2")] = Field(
        default="last",
        description="EfficientNet: the feature maps that are pooled: the last one, or those of all stages, finer ones "
        "averaged to its size (arXiv:1411.5752)",
    )
    width: Count = Field(
        default=64,
        description="ResNets: number of channels after the stem, 64 in the published networks; each stage doubles it",
    )
    norm: Literal["auto", "batch", "frozen", "group", "none"] = Field(
        default="auto",
        description="ResNets: normalisation: batch: BatchNorm synchronised over all ranks; frozen: BatchNorm with the "
        "statistics stored in weights; group: GroupNorm; none; auto: frozen if weights are given, otherwise batch. "
        "EfficientNet has batch or frozen",
    )
    pool: POOLS = Field(
        default="average",
        description="global pooling of the last feature map: average, maximum, or an average with learned weights: "
        "attention, or gated attention (arXiv:1802.04712); your own network may have its own",
    )
    weights: Literal["imagenet"] | File | None = Field(
        default=None,
        description="pretrained weights: imagenet: the official ones of the network; a checkpoint of torchvision's "
        "network of the same name; for your own network a file from which all weights with matching name and shape are "
        "loaded",
    )
    train: Annotated[Literal["all", "last", "head", "probe"], Since("0.2")] = Field(
        default="all",
        description="layers that are trained: all; last: the last stage, pooling and the last layer; head: only "
        "pooling and the last layer; probe: the last layer, as logistic regression (a number: ridge regression) on the "
        "pooled features. The others keep the weights that were given",
    )

    @model_validator(mode="after")
    def options_of_their_networks(self) -> Self:
        fields = type(self).model_fields
        if self.norm == "auto":  # an instance has the one that it stands for
            self.__dict__["norm"] = "frozen" if self.weights and not self.own else "batch"
        if not self.own and self.network_options:
            raise ValueError(
                f"network_options: {self.network} takes width, norm and pool; network_options are for your own network"
            )
        if self.own and self.norm != "batch":
            raise ValueError(f"norm: is an option of ResNets; give arguments of {self.network} in network_options")
        if self.network not in get_args(RESNETS) and self.width != fields["width"].default:
            instead = f"give arguments of {self.network} in network_options" if self.own else "remove it"
            raise ValueError(f"width: is an option of ResNets; {instead}")
        if self.network == "efficientnet_lite0" and self.norm not in ("batch", "frozen"):
            raise ValueError(f"norm: efficientnet_lite0 has batch or frozen; found {self.norm}")
        if self.network != "efficientnet_lite0" and self.stages != "last":
            instead = f"let {self.network} return them" if self.own else "remove it"
            raise ValueError(f"stages: is an option of efficientnet_lite0; {instead}")
        if self.weights == "imagenet" and self.network not in OFFICIAL:
            raise ValueError(
                f"weights: imagenet: {self.network} has no official weights; {', '.join(OFFICIAL)} have; or give the "
                "path of a file"
            )
        if self.train != "all" and not self.weights and not self.own:
            raise ValueError(f"train: {self.train}: the other layers would keep random weights; give weights")
        if self.patch and not self.own:
            raise ValueError(f"patch: {self.network} sees the whole canvas; patch is for your own network")
        if self.patch and self.train not in ("head", "probe"):
            raise ValueError(f"patch: a patch encoder is not trained; found train: {self.train}; use head or probe")
        if self.train == "probe" and self.pool in get_args(LEARNED_POOLS):
            raise ValueError(f"train: probe: pool {self.pool} is trained, too; use average or max, or train: head")
        return self


class Network(Architecture):
    """The network that learns a slide's class, and what it sees."""

    class_weights: Literal["none", "balanced"] = Field(
        default="none",
        description="balanced: all classes have the same weight in the loss, however many slides each has",
    )
    shift: Annotated[Share, Auto(0.05, head=0)] = Field(
        default=AUTO,
        description="augmentation: maximum shift of the canvas along each axis, as a share of its side length",
    )
    background: Literal["keep", "white"] = Field(
        default="keep", description="white: glass is replaced by pure white, which is faster when slides are streamed"
    )


class Learning(Options):
    """How any network is trained."""

    epochs: Count = Field(default=6, description="passes over the training slides")
    least_steps: Annotated[int, Field(ge=0), Number, Auto(0, head=600), Since("0.2")] = Field(
        default=AUTO,
        description="where slides are few: steps that a training has at least, in more epochs than epochs if necessary",
    )
    batch: Count = Field(default=4, description="slides per step, over all data ranks")
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False), Number, Auto(0.0003, head=0.001)] = Field(
        default=AUTO, description="maximum learning rate of AdamW, reached after a linear warm-up"
    )
    first_layer_rate: Annotated[float, Field(gt=0, le=1), Number, Since("0.2")] = Field(
        default=1.0,
        description="learning rate of the first layer as a share of learning_rate, which is that of the last layer; it "
        "rises by the same factor from each layer to the next. 1: all layers have the same",
    )
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False), Number] = Field(
        default=0.01, description="weight decay of AdamW"
    )
    weight_average: Annotated[Share, Since("0.2")] = Field(
        default=0.0,
        description="exponential moving average of the weights, which is validated and saved instead of the weights "
        "themselves: its decay per step, as 0.99; 0: none",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="number format of activations; bfloat16 is faster where the hardware supports it; float16, with "
        "loss scaling, is for GPUs without bfloat16 (V100); weights stay float32",
    )
    schedule: Literal["cosine", "plateau"] = Field(
        default="cosine",
        description="schedule of the learning rate: cosine: decreases as a half cosine over all epochs; plateau: is "
        "multiplied by 0.3, up to three times, when validation has not improved for patience epochs, and training "
        "continues from the best weights",
    )
    patience: Count | None = Field(
        default=None,
        description="early stopping: epochs without an improvement in validation after which training ends. With "
        "cosine give more than a few: the best epochs are often the last",
    )
    accumulate: Count = Field(
        default=1,
        description="gradient accumulation: number of batches per step; BatchNorm uses the statistics of each batch",
    )
    symmetries: Literal["all", "none"] = Field(
        default="all", description="augmentation: slides are flipped and rotated by multiples of 90°"
    )
    stain: Share = Field(default=0.0, description="augmentation: maximum relative change of the strength of each stain")
    brightness: Share = Field(default=0.0, description="augmentation: maximum relative change of brightness")
    contrast: Share = Field(
        default=0.0, description="augmentation: maximum deviation from 1 of the exponent that changes contrast"
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
        description="device on which ranks compute; auto: cuda if there is a GPU for each rank, otherwise cpu. cuda "
        "also stands for AMD GPUs; cuda:0 is shared by all ranks of a host; xpu and mps are untested",
    )
    memory: Bytes | None = Field(
        default=None,
        description="memory limit of a rank: whatever does not fit is streamed tile by tile, with the same gradients; "
        "without it there is no limit",
    )
    host_memory: Annotated[Bytes | None, Since("0.2")] = Field(
        default=None,
        description="of the memory of a GPU's host, what a rank may take for images that do not fit into `memory`, if "
        "that is faster than computing them again; used where one rank computes an image",
    )
    disk: Annotated[File | None, Since("0.2")] = Field(
        default=None,
        description="folder on a node's local disk, as $TMPDIR, for images that fit into neither `memory` nor "
        "`host_memory`, if that is faster than computing them again; used where one rank computes an image",
    )
    stage: File | None = Field(
        default=None,
        description="folder on a node's local disk, as $TMPDIR/gigapipe, which caches what is read from pyramids, as "
        "long as there is space",
    )
    features: Annotated[File | None, Since("0.2")] = Field(
        default=None,
        description="folder in which features of layers that are not trained are kept (train: head or probe), so that "
        "other folds and the predictions of their slides need not compute them again; training times do not include "
        "what is read there; it may be deleted at any time",
    )
    deterministic: Annotated[bool, Since("0.2")] = Field(
        default=False,
        description="on GPUs, take the kernels that give the same bits each time, where torch has them, and warn of "
        "operations that have none; slower. CPUs give the same bits without it",
    )


class Training(Computing, Network, Learning):
    """How networks are trained."""

    keep_checkpoints: Count = Field(
        default=2, description="number of latest checkpoints that are kept on disk until a training is finished"
    )
    tensorboard: Annotated[bool, Since("0.2")] = Field(
        default=False,
        description="also write losses, scores, learning rate, seconds and memory of each epoch for TensorBoard, into "
        "the folder tensorboard beside the model",
    )
    coarse_to_fine: bool = Field(
        default=False,
        description="training starts from the model of the next coarser resolution of the same fold",
    )

    @model_validator(mode="after")
    def one_beginning(self) -> Self:
        if self.coarse_to_fine and self.weights:
            raise ValueError("coarse_to_fine: it and weights both set the initial weights; remove one")
        return self


class Method(Training):
    """A way to train that is compared with others: its name, and the options in which it differs from `training`."""

    name: MethodName = Field(description="name of the method in tables and figures, and of its folders")

    @property
    def folder(self) -> str:
        """Of its networks, behind that of each resolution."""
        return f"/{self.name}"

    @staticmethod
    def completed(method: Any, training: Any) -> Any:
        """What a config says of a method, with what it leaves to `training`; what is no mapping is left as it is.

        A method that names its network takes nothing that `training` says of another one.
        """
        if not isinstance(method, dict) or not isinstance(training, dict):
            return method
        of_another = Architecture.model_fields if "network" in method else ()
        return {name: value for name, value in training.items() if name not in of_another} | method


class Comparison(Options):
    """How resolutions are compared."""

    margin: Annotated[Share, Since("0.2")] = Field(
        default=0.05,
        description="margin of non-inferiority: by how much the AUC, R² or Dice of a recommended resolution may be "
        "below the best",
    )


class Configuration(Options):
    """A run of the workflow. The defaults are a phantom cohort, to try everything without a slide."""

    task: TaskName = Field(
        default="classes",
        description=f"what is learned: {either([task.learns for task in TASKS.values()])}; or your own task",
    )
    pathvars: Places = Field(default=Places(), description="where files are written")
    slides: File | None = Field(
        default=None,
        description="path of the sample sheet; without it the cohort consists of phantoms (generated slides)",
    )
    source: SourcePattern | None = Field(
        default=None, description="pattern of the slides' paths, if the sheet has no column source"
    )
    confirmed_labels: Annotated[list[str], Flag("--confirmed-label")] = Field(
        default=[],
        description="labels of the sheet that are intended, although they differ from another label only in upper case "
        "or spaces, or look like a missing value, as NA",
    )
    cohort: Cohort | None = Field(
        default=None, description="slides of the Genomic Data Commons, from which the sheet `slides` is written"
    )
    phantom: Phantom = Field(default=Phantom(), description="the generated cohort")
    resolutions: Annotated[list[Resolution], Field(min_length=1)] = Field(
        default=PHANTOMS_RESOLUTIONS, description="one network is trained for each resolution and fold"
    )
    gdc: Archive = Field(default=Archive(), description="where slides with the source gdc:UUID come from")
    keep_slides: bool = Field(
        default=True,
        description="false: a downloaded slide is deleted after its pyramid is written and verified against it",
    )
    pyramids: Pyramids = Field(default=Pyramids(), description="how slides are converted to pyramids")
    mask_classes: Annotated[list[str], Distinct] = Field(
        default=[],
        description="task tissue: which classes of the annotations in the sheet's column mask are tissue; empty: all. "
        "Task segmentation: the classes, in the order of their label values 1, 2, …; where annotations overlap, the "
        "later class is used",
    )
    target: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="task regression: the column of the sheet with the numbers to predict; for phantoms, tumour_share",
    )
    seeds: Annotated[list[Seed], Field(min_length=1), Distinct] = Field(
        default=[0],
        description="random seeds of the folds and of the initial weights; with several the table shows mean and "
        "standard deviation over seeds",
    )
    folds: Folds = Field(default=Folds(), description="how patients are divided")
    training: Training = Field(default=Training(), description="how networks are trained")
    methods: Annotated[list[Method], Said("a list, each with a name, and keys of training")] = Field(
        default=[],
        description="methods to compare on the same slides and folds, as they differ from training; empty: it alone",
    )
    external: Annotated[dict[CohortName, File], Since("0.2")] = Field(
        default={},
        description="sample sheets of other cohorts, as {hospital-b: b.tsv}: the networks of all folds predict their "
        "slides together, and the report shows how far AUC and calibration are from those of the test folds",
    )
    comparison: Comparison = Field(default=Comparison(), description="how resolutions are compared")
    maps: Annotated[int, Field(ge=0), Number, Flag("--number")] = Field(
        default=2,
        description="class activation maps at each resolution: for so many slides with the highest score, the lowest "
        "score and the largest error; 0: none",
    )

    @model_validator(mode="before")
    @classmethod
    def methods_differ_from_training(cls, values: Any) -> Any:
        """With what methods leave to `training`."""
        methods = values.get("methods") if isinstance(values, dict) else None
        if not isinstance(methods, list):
            return values
        return values | {"methods": [Method.completed(one, values.get("training")) for one in methods]}

    @property
    def trainings(self) -> dict[str, Training]:
        """By its key in the config how each method trains, and `training` where there are none."""
        return {f"methods[{i}]": one for i, one in enumerate(self.methods)} or {"training": self.training}

    @model_validator(mode="after")
    def consistent(self) -> Self:
        """Itself; ValueError, with the first contradiction, if options contradict each other."""
        if found := next(self._contradictions(), None):
            raise ValueError(found)
        return self

    def _contradictions(self) -> Iterator[str]:
        if self.cohort and not self.slides:
            yield "cohort: needs `slides`, the path of the sample sheet to write"
        if len({r.mpp for r in self.resolutions}) < len(self.resolutions):
            yield "resolutions: an mpp is given twice; remove one"
        if len({method.name for method in self.methods}) < len(self.methods):
            yield "methods: a name is given twice; rename one"
        if self.task in TASKS:
            yield from self.contradictions(TASKS[self.task])
        for number, resolution in enumerate(self.resolutions):
            if resolution.mesh == "auto":
                continue
            key, (data, rows, columns) = f"resolutions[{number}]", resolution.mesh
            for where, training in self.trainings.items():
                if training.batch % data:
                    yield (
                        f"{where}.batch: {training.batch} slides cannot be divided evenly among the {data} data ranks "
                        f"at {resolution}; give a multiple"
                    )
            if resolution.canvas != "auto" and max(rows, columns) > resolution.canvas:
                yield (
                    f"{key}.mesh: {rows} × {columns} ranks: a canvas of {resolution.canvas} px has fewer rows "
                    "or columns; give a smaller mesh"
                )

    def contradictions(self, task: Task) -> Iterator[str]:
        """What does not suit the task; of one of the user's it is to be asked when its code is run."""
        if not task.divisions and len(self.folds.splits) * len(self.seeds) > 1:
            yield f"task: {self.task} allows one seed and one kind of folds only; give one of each"
        if self.external and task.needs != "label":
            yield f"external: other cohorts are compared for task classes only, not {self.task}; use `gigapipe apply`"
        if self.methods and not task.canvas:
            yield f"methods: task {self.task} has one method only; set its options in training"
        if not task.canvas and (name := self._unused_by_masks()):
            yield f"training.{name}: is not used by task {self.task}; remove it"
        if task.needs == "mask" and not self.mask_classes:
            yield f"mask_classes: task {self.task} needs the names of the classes, in the order of their label values"
        if task.needs == "target" and not self.target:
            yield f"target: task {self.task} needs the column of the sample sheet with the numbers to predict"
        if task.needs in ("mask", "target") and not self.slides and not self.phantom.regions:
            yield f"phantom.regions: must be true for task {self.task} with phantoms"

    def _unused_by_masks(self) -> str | None:
        """An option of networks of canvases that differs from its default; the user's own network is used."""
        usual, own = Training(), ("network", "network_options") if self.training.own else ()
        # Backward, for weights come after the norm that follows from them.
        names = (name for name in reversed(Network.model_fields) if name not in own)
        found, usual_of = functools.partial(getattr, self.training), functools.partial(getattr, usual)
        return next((name for name in names if found(name) not in (usual_of(name), self.training.default(name))), None)
