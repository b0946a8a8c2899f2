"""A linear probe: the last layer is solved for, not trained, on pooled features of slides that are computed once.

Of classes it is logistic regression, of numbers ridge regression, both of features standardised by those of training
slides, and both by scikit-learn with an L2 penalty, whose strength the validation slides choose. The standardisation is
folded into the layer: the model is an ordinary one.
"""

import json
import logging
import time
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from gigapipe.errors import InputError, Unavailable
from gigapipe.spatial import Mesh
from gigapipe.training.augmentation import UNCHANGED
from gigapipe.training.batches import indivisible
from gigapipe.training.canvases import Canvases
from gigapipe.training.checkpoints import Checkpoints
from gigapipe.training.frozen_features import FrozenFeatures
from gigapipe.training.linear import Layer
from gigapipe.training.loop import CHECKPOINT_EVERY, granted, unfinished, wishes_of
from gigapipe.training.model_files import write_model
from gigapipe.training.record import Recorder, write_record
from gigapipe.training.state import State, newest_of_all
from gigapipe.training.stopping import Stop
from gigapipe.training.task import Task

logger = logging.getLogger(__name__)

STRENGTHS = [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]
"""scikit-learn's C, and for ridge regression 1 / alpha, among which validation chooses."""
USUAL = 1e-2
"""The one that is taken where validation slides cannot tell."""


class Probed(Task, Protocol):
    """A task whose last layer can be solved for."""

    @property
    def training(self) -> Canvases: ...

    @property
    def validation(self) -> Canvases: ...

    features: FrozenFeatures | None

    def solved(self, features: np.ndarray, strength: float) -> Layer:
        """The last layer, of standardised features of the training slides (slides, channels)."""

    def measured(self, outputs: torch.Tensor, canvases: Canvases) -> dict[str, float]:
        """`loss` and other figures of a network's outputs (slides, outputs), float64."""


def solve(task: Probed, output: Path, stop: Stop | None = None) -> None:
    """Compute features, solve for the last layer, and write `output` and `training.json` beside it.

    As in a training, ends before its time does, with what it has in the folder `checkpoints`, and goes on from there. A
    step is the features of `batch` slides. Raises InputError and Unfinished as `loop.train`.
    """
    settings, mesh = task.settings, task.mesh
    if settings.batch % mesh.data:
        raise InputError(indivisible(settings, mesh))
    if settings.precision != "float32":
        raise InputError(f"train: probe: precision {settings.precision} would round what is solved for; use float32")
    state = State.beginning(task)
    recorder = Recorder(mesh, state)
    features = _features(task, state, recorder, Checkpoints(output.with_name("checkpoints")), stop)
    begun = time.perf_counter()
    with recorder.validation():
        of_training, of_validation = np.split(features.numpy(), [len(task.training)])
        layer, strength = _chosen(task, of_training, of_validation)
        with torch.no_grad():
            head = task.model.fc
            assert isinstance(head, torch.nn.Linear)
            for own, value in ((head.weight, layer.weight), (head.bias, layer.bias)):
                own.copy_(mesh.everyone.sum_(torch.from_numpy(value) * (mesh.rank == 0)))
        state.losses.append(task.measured(layer(of_training), task.training)["loss"])
        validation = task.measured(layer(of_validation), task.validation)
    state.end_epoch(validation, task.model, 0.0)
    if mesh.rank == 0:
        took = time.perf_counter() - begun
        figures = "  ".join(f"{name} {value:.4g}" for name, value in state.history[-1].items() if name != "epoch")
        logger.info(f"last layer solved in {took:.1f} s, C {strength:g}  {figures}")
        write_model(output, state.best["model"], settings)
        write_record(output.with_name("training.json"), task, state)
        Checkpoints(output.with_name("checkpoints")).remove()


def _features(
    task: Probed, state: State, recorder: Recorder, checkpoints: Checkpoints, stop: Stop | None
) -> torch.Tensor:
    """Those of training and validation slides, in this order (slides, channels), float64, the same on every rank."""
    settings, mesh = task.settings, task.mesh
    slides = [(of, i) for of in (task.training, task.validation) for i in range(len(of))]
    identity = json.dumps([settings.model_dump(), task.identity()], sort_keys=True)
    found = torch.zeros(0, 0, dtype=torch.float64)
    if (newest := newest_of_all(checkpoints, identity, mesh)) is not None:
        saved = checkpoints.load(newest)
        if mesh.everyone.sum_(torch.tensor(float(saved is None))):
            raise Unavailable(f"{checkpoints.folder}: ranks see different files; wait for the file system")
        assert saved
        found, state.seconds, state.spent = saved["features"], saved["seconds"], saved["spent"]

    def save() -> None:
        if mesh.rank == 0:
            of_steps = {"seconds": state.seconds, "spent": state.spent}
            checkpoints.save(len(found), {"identity": identity, "features": found, **of_steps})

    task.model.eval()
    assert task.features
    task.features.prepare(task.training.size)
    saved_at = time.perf_counter()
    while len(found) < len(slides):
        mesh.phase = f"features of slide {len(found) + 1} of {len(slides)}"
        with recorder.step():
            of_step = _of_step(task, slides[len(found) : len(found) + settings.batch], mesh)
            found = of_step if not len(found) else torch.cat([found, of_step])
        stopping = granted(recorder.told(*wishes_of(stop, recorder.longest_step)))
        if stopping or time.perf_counter() - saved_at > CHECKPOINT_EVERY:
            save()
            saved_at = time.perf_counter()
        if stopping:
            raise unfinished(f"after {len(found)} slides, for {stopping}", mesh)
    return found


def _of_step(task: Probed, slides: list[tuple[Canvases, int]], mesh: Mesh) -> torch.Tensor:
    """Features of slides (slides, channels), float64; data ranks divide them."""
    assert task.features and isinstance(task.model.fc, torch.nn.Linear)
    found = torch.zeros(len(slides), task.model.fc.in_features, dtype=torch.float64)
    for number in range(mesh.data_index, len(slides), mesh.data):
        features = task.features.of(*slides[number], UNCHANGED)
        # The ranks of one image have found the same: their sum must count it once.
        found[number] = features[0].cpu().double() / mesh.image_ranks
    return mesh.everyone.sum_(found)


def _chosen(task: Probed, training: np.ndarray, validation: np.ndarray) -> tuple[Layer, float]:
    """The layer, of features as they are, of the strength with the lowest loss in validation, and that."""
    mean, deviation = training.mean(axis=0), training.std(axis=0)
    deviation[deviation < 1e-6 * deviation.max()] = 1.0  # what is the same everywhere says nothing

    def at(strength: float) -> Layer:
        weight, bias = task.solved((training - mean) / deviation, strength)
        return Layer(weight / deviation, bias - weight @ (mean / deviation))

    if task.validation.truth.unique().numel() < 2:
        return at(USUAL), USUAL
    layers = {strength: at(strength) for strength in STRENGTHS}
    strength = min(layers, key=lambda one: task.measured(layers[one](validation), task.validation)["loss"])
    return layers[strength], strength
