"""Learning the class of a slide from the whole of its canvas, and what that shares with learning a number of it."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from gigapipe.configuration.configuration import LEARNED_POOLS, Network
from gigapipe.disks import tell_once
from gigapipe.errors import InputError
from gigapipe.models import pretrained
from gigapipe.models.layout import in_channels_last
from gigapipe.models.networks import Headed, classifier, take_by_name
from gigapipe.models.resnet import ResNet
from gigapipe.models.trained_layers import freeze, training_mode
from gigapipe.spatial import Mesh, average_gradients, decompose, late_gradients
from gigapipe.spatial.torch_internals import AnyBatchNorm
from gigapipe.spatial.wide import has_float64
from gigapipe.training.ahead import with_following
from gigapipe.training.augmentation import Augmentation
from gigapipe.training.canvases import Canvases
from gigapipe.training.frozen_features import FrozenFeatures
from gigapipe.training.linear import Layer, logistic
from gigapipe.training.model_files import read_model, take_weights
from gigapipe.training.settings import Settings
from gigapipe.training.streaming import Memory, Streaming
from gigapipe.training.weight_files import load_foreign

logger = logging.getLogger(__name__)


class CanvasSettings(Network, Settings, ABC):
    """A network on canvases of `canvas` px a side."""

    canvas: int
    start: str | None = None  # the model of a coarser resolution to begin with

    @property
    @abstractmethod
    def outputs(self) -> list[str]:
        """What each number stands for that the network makes of a canvas."""

    @classmethod
    @abstractmethod
    def of_slides(cls, table: pd.DataFrame, training: pd.DataFrame, target: str | None, fold: int) -> dict[str, Any]:
        """Those settings that follow from all slides of a table, and those to train on; `target` is a column of it."""

    @abstractmethod
    def truth(self, table: pd.DataFrame) -> torch.Tensor:
        """What is to be learnt of each slide of a table (slides,)."""

    @abstractmethod
    def said(self, outputs: torch.Tensor) -> torch.Tensor:
        """What a network says by its outputs (slides, outputs), float64, in the same shape."""

    @property
    def weights_file(self) -> Path | None:
        """The file of pretrained weights. InputError if the official ones are not on this machine."""
        if self.weights == "imagenet":
            return pretrained.kept(self.network)
        return Path(self.weights) if self.weights else None

    def model(self) -> nn.Module:
        form = self.norm, self.pool, self.width, self.patch, self.stages
        return in_channels_last(classifier(self.network, self.network_options, len(self.outputs), self.canvas, *form))

    def canvases(
        self, table, pyramids: Path, mesh: Mesh, stage: Path | None = None, features: Path | None = None
    ) -> Canvases:
        truth, seen = self.truth(table), (self.mpp, self.canvas, mesh, self.background)
        return Canvases(table, truth, pyramids, *seen, stage, features)


class ClassifierSettings(CanvasSettings):
    """Outputs are the logits of `classes`."""

    task = "classes"

    classes: list[str]

    @classmethod
    def of_slides(cls, table: pd.DataFrame, training: pd.DataFrame, target: str | None, fold: int) -> dict[str, Any]:
        return {"classes": sorted(table["label"].unique())}

    @property
    def outputs(self) -> list[str]:
        return self.classes

    def truth(self, table: pd.DataFrame) -> torch.Tensor:
        return torch.tensor([self.classes.index(label) for label in table["label"]])

    def said(self, outputs: torch.Tensor) -> torch.Tensor:
        return F.softmax(outputs, dim=1)


class OfCanvases(ABC):
    """A `Task` (see task.py) whose network sees the whole canvas of a slide."""

    kind: ClassVar[type[CanvasSettings]]
    settings: CanvasSettings

    def __init__(
        self, settings: CanvasSettings, training: Canvases, validation: Canvases, mesh: Mesh, memory: Memory | None
    ):
        if settings.batch == 1 and settings.canvas <= 32 and settings.norm == "batch" and not settings.own:
            raise InputError(
                f"canvas: {settings.canvas} px become one pixel in the last layer, and BatchNorm cannot normalise a "
                "batch of one pixel; give a batch of 2 or more"
            )
        if settings.weights and settings.start:
            raise InputError("weights and start both set the initial weights; give one of them")
        self.settings, self.training, self.validation, self.mesh = settings, training, validation, mesh
        self.slides = len(training)
        self.following: list[int] | None = None
        torch.manual_seed(settings.seed)
        self.model = settings.model()
        self.started_from = None
        if path := settings.weights_file:
            weights, where = load_foreign(path), f"weights {path}"
            if not settings.own:
                pretrained.take_imagenet(self.model, settings.network, weights, where)
            elif (taken := take_by_name(self.model, weights, where)) and mesh.rank == 0:
                logger.info(taken)
        if settings.start:
            self.started_from = load_coarser(self.model, Path(settings.start), settings)
        freeze(self.model, settings.train, settings.network)
        decompose(self.model.to(mesh.device), mesh)
        self.streaming = Streaming(memory, mesh, self.model)
        self.features = frozen_features(self.model, settings, self.streaming)
        if training.features and self.features is None:
            why = "a memory limit" if settings.train == "head" else f"train: {settings.train}"
            tell_once(f"features: {training.features} is not used with {why}")

    def identity(self) -> list:
        files = [path for path in (self.settings.weights_file, self.settings.start) if path]
        begun_with = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files]
        return [self.training.identity(), self.validation.identity(), begun_with]

    def backward(self, indices: list[int], epoch: int, scale: float = 1.0) -> float:
        augmentations = self._augmentations(indices, epoch)
        if self.features:
            outputs = self.features.outputs(self.training, indices, augmentations)
        else:
            self._prepare(len(indices))
            next_ones = (self.following, self._augmentations(self.following, epoch)) if self.following else None
            images, _ = self.training.batch(indices, augmentations, self.streaming, next_ones)
            with self.settings.autocast(self.mesh.device):
                outputs = self.model(images)
        truth = self.training.truth[indices]
        if truth.is_floating_point() and not has_float64(outputs.device):
            truth = truth.float()
        loss = self.loss(outputs.float(), truth.to(outputs.device))
        with late_gradients(self.mesh):
            (loss if scale == 1 else loss * scale).backward()
        self.streaming.done()
        if self.features and not self.features.maps:
            average_gradients(self.model.parameters(), self.mesh)  # no image led to them
        return loss.item()

    def _augmentations(self, indices: list[int], epoch: int) -> list[Augmentation]:
        return [self.settings.augmentation(epoch, self.training.slides[i]) for i in indices]

    def validate(self, batches: Iterator[list[int]]) -> dict[str, float]:
        self._measure_statistics(batches)
        # As many as in a step fit the memory, for nothing is kept for gradients.
        together = max(1, self.settings.batch // self.mesh.data) if not self.streaming.memory else 1
        said = predict(self.model, self.settings, self.validation, self.streaming, self.features, together)
        return self.figures(said, self.validation.truth)

    def solved(self, features: np.ndarray, strength: float) -> Layer:
        """The last layer, solved for: see probe.py. InputError if the task does not say how."""
        raise InputError(f"train: probe: task {self.settings.own_task} does not say how; use train: head")

    def measured(self, outputs: torch.Tensor, canvases: Canvases) -> dict[str, float]:
        """Figures of a network's outputs (slides, outputs), float64, for slides."""
        return self.figures(self.settings.said(outputs), canvases.truth)

    @abstractmethod
    def loss(self, outputs: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """The mean loss of slides, of a network's outputs (slides, outputs), float32, and what they should be."""

    @abstractmethod
    def figures(self, said: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
        """`loss` of what is said of slides (slides, outputs), float64, and other figures."""

    @torch.no_grad()
    def _measure_statistics(self, batches: Iterator[list[int]]) -> None:
        """Set every BatchNorm's running statistics to their plain mean over `batches` at the present weights.

        The usual moving average lags behind the weights by some ten steps, and with few steps an epoch the network
        that is validated is not the one that was trained ("precise BN", Wu and Johnson 2021, arXiv:2105.07576,
        section 3).
        """
        training_mode(self.model)
        norms = [
            module
            for module in self.model.modules()
            if isinstance(module, AnyBatchNorm) and module.training and module.track_running_stats
        ]
        if not norms:
            return
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
        torch.manual_seed(self.settings.seed)
        unchanged = ((indices, None) for indices in batches)
        for count, ((indices, _), following) in enumerate(with_following(unchanged), start=1):
            for norm in norms:
                norm.momentum = 1 / count  # as torch does it with None, but that asks the device how many there were
            self._prepare(len(indices))
            with self.settings.autocast(self.mesh.device):
                self.model(self.training.batch(indices, None, self.streaming, following)[0])
            self.streaming.done()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def _prepare(self, slides: int) -> None:
        with self.settings.autocast(self.mesh.device):
            self.streaming.prepare(self.model, (slides, 3, self.settings.canvas, self.settings.canvas))


class Classification(OfCanvases):
    kind = ClassifierSettings
    settings: ClassifierSettings

    def __init__(
        self, settings: ClassifierSettings, training: Canvases, validation: Canvases, mesh: Mesh, memory: Memory | None
    ):
        super().__init__(settings, training, validation, mesh, memory)
        balanced = settings.class_weights == "balanced"
        self.class_weights = balance(training.truth, len(settings.classes)).to(mesh.device) if balanced else None

    def loss(self, outputs: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        # Not divided by the weights of the batch, of which ranks have parts: a batch of one would be weighed by 1.
        losses = F.cross_entropy(outputs, truth, self.class_weights, reduction="none")
        return losses.mean() if len(losses) > 1 else losses.view(())  # two operations fewer on a GPU

    def solved(self, features: np.ndarray, strength: float) -> Layer:
        classes, balanced = self.settings.classes, self.settings.class_weights == "balanced"
        return logistic(features, self.training.truth.numpy(), classes, strength, balanced)

    def figures(self, said: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
        weights = self.class_weights.cpu().double() if self.class_weights is not None else None
        loss = F.nll_loss(said.clamp_min(1e-12).log(), truth, weights).item()
        return {"loss": loss, "accuracy": (said.argmax(1) == truth).double().mean().item()}


@torch.no_grad()
def predict(
    model: nn.Module,
    settings: CanvasSettings,
    canvases: Canvases,
    streaming: Streaming,
    features: FrozenFeatures | None = None,
    together: int = 1,
) -> torch.Tensor:
    """Predictions for each slide (slides, outputs), float64, the same on every rank; data ranks divide the slides.

    `features` are used where they are given, which are the model's. So many slides are computed `together`: of small
    canvases calling the operations takes longer than computing them.
    """
    mesh = canvases.mesh
    model.eval()
    with settings.autocast(mesh.device):
        streaming.prepare(model, (together, 3, settings.canvas, settings.canvas))
    found = torch.zeros(len(canvases), len(settings.outputs), dtype=torch.float64)
    own = range(mesh.data_index, len(canvases), mesh.data)
    unchanged = ((list(own[start : start + together]), None) for start in range(0, len(own), together))
    for (indices, _), following in with_following(unchanged):
        if features:
            outputs = features.outputs(canvases, indices)
        else:
            images, _ = canvases.batch(indices, None, streaming, following)
            with settings.autocast(mesh.device):
                outputs = model(images)
            streaming.done()
        # The ranks of one image have found the same: their sum must count it once.
        found[indices] = settings.said(outputs.cpu().double()) / mesh.image_ranks
    return mesh.everyone.sum_(found)


def frozen_features(model: nn.Module, settings: CanvasSettings, streaming: Streaming) -> FrozenFeatures | None:
    """What the head of a network goes on with, where it alone is trained, and feature maps are not streamed."""
    pool_is_trained = settings.pool in get_args(LEARNED_POOLS)
    if settings.train not in ("head", "probe") or (pool_is_trained and streaming.memory):
        return None
    assert isinstance(model, Headed | ResNet)  # `freeze` has refused others
    return FrozenFeatures(model, settings, streaming, maps=pool_is_trained)


def balance(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Weights (classes,), float32, by which all classes of `labels` together weigh the same; their mean slide 1."""
    counts = torch.bincount(labels, minlength=classes)
    return len(labels) / (classes * counts.clamp_min(1)).float()


def load_coarser(model: nn.Module, path: Path, settings: CanvasSettings) -> dict:
    """Take all weights of the model that `gigapipe train` wrote for a coarser resolution; its mpp and fold.

    Raises InputError if it is no model, of another network or other classes, or has seen slides that are held out now:
    those of another fold, or of folds divided by another seed.
    """
    weights, theirs = read_model(path, type(settings), own=type(settings) if settings.own_task else None)
    of_network = ("network", "network_options", "network_code", "patch", "stages", "norm", "pool", "width", "outputs")
    for name in (*of_network, "own_task", "task_code", "seed", "fold"):
        if getattr(theirs, name) != getattr(settings, name):
            raise InputError(
                f"start {path}: its {name} is {getattr(theirs, name)}, not {getattr(settings, name)}; "
                "give the model of the same network and fold at a coarser resolution"
            )
    take_weights(model, weights, path)
    return {"mpp": theirs.mpp, "fold": theirs.fold}
