"""Networks of several folds, asked one after another about the same slides."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from gigapipe.configuration.configuration import OwnNetwork
from gigapipe.configuration.tasks import Task, learning_of
from gigapipe.errors import InputError
from gigapipe.pyramids.maps import ActivationMap, on_slide
from gigapipe.spatial import Mesh
from gigapipe.training.activation import Mapper
from gigapipe.training.canvases import Canvases
from gigapipe.training.classification import CanvasSettings, predict
from gigapipe.training.model_files import read_model, trained_model
from gigapipe.training.regression import RegressorSettings
from gigapipe.training.streaming import Memory, Streaming
from gigapipe.training.task import kinds_of_settings

ALIKE = ("task", "mpp", "canvas", "outputs", "background")
"""What networks that are asked together have in common."""


class Ensemble:
    """Trained networks that see slides alike. InputError if they do not, and as `trained_model`."""

    def __init__(self, paths: Sequence[Path], mesh: Mesh, trusted: OwnNetwork, task: Task | None):
        self.paths, self.mesh, self._trusted, self._task = paths, mesh, trusted, task
        own = learning_of(task).kind if task else None
        settings = [read_model(path, kinds_of_settings(canvas=True), own)[1] for path in paths]
        for path, one in zip(paths, settings, strict=True):
            for name in ALIKE:
                if getattr(one, name) != getattr(settings[0], name):
                    raise InputError(
                        f"model {path}: its {name} is {getattr(one, name)}, not {getattr(settings[0], name)}, that of "
                        f"{paths[0]}; give models of one resolution and one question"
                    )
        of_networks = [one for one in settings if isinstance(one, CanvasSettings)]
        assert len(of_networks) == len(paths)
        self.of_networks: list[CanvasSettings] = of_networks
        self.settings: CanvasSettings = of_networks[0]

    def asked(
        self, slides: Sequence[Sequence[str]], pyramids: Path, memory: Memory | None, stage: Path | None, maps: bool
    ) -> Iterator[tuple[np.ndarray, list[ActivationMap]]]:
        """Of each network what it says of its `slides` (slides, outputs), and a map of each, if `maps` are wanted.

        `pyramids` is the folder of their pyramids. All ranks of the mesh, whose `data` is 1, call this together.
        """
        for path, names in zip(self.paths, slides, strict=True):
            kinds = kinds_of_settings(canvas=True)
            model, settings = trained_model(path, kinds, self.mesh, self._trusted, self._task)
            assert isinstance(settings, CanvasSettings)
            table = pd.DataFrame({"slide": list(names)})
            size = settings.mpp, settings.canvas
            canvases = Canvases(table, torch.zeros(len(table)), pyramids, *size, self.mesh, settings.background, stage)
            said = predict(model, settings, canvases, Streaming(memory, self.mesh)).numpy()
            yield said, list(self._maps(model, settings, canvases, memory)) if maps else []

    def _maps(
        self, model, settings: CanvasSettings, canvases: Canvases, memory: Memory | None
    ) -> Iterator[ActivationMap]:
        mapper = Mapper(model, settings)
        unit = settings.deviation if isinstance(settings, RegressorSettings) else 1.0
        found = mapper.activations(canvases, Streaming(memory, self.mesh))
        for pyramid, activations in zip(canvases.pyramids, found, strict=True):
            head = settings.outputs, [unit * bias for bias in activations.bias]
            size = settings.mpp, settings.canvas
            yield on_slide(unit * activations.values, *head, pyramid, *size, *mapper.places)
