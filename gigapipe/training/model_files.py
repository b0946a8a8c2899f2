"""The file of a trained model: its weights and settings, written by a training and read by all that use it."""

from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from gigapipe.atomic import atomic_file
from gigapipe.errors import InputError
from gigapipe.spatial import Mesh, decompose
from gigapipe.training.checkpoints import Torn, read
from gigapipe.training.settings import Settings

S = TypeVar("S", bound=Settings)


def write_model(path: Path, weights: dict[str, torch.Tensor], settings: Settings) -> None:
    with atomic_file(path) as partial:
        torch.save({"task": settings.task, "model": weights, "settings": settings.model_dump()}, partial)


def read_model(path: Path, kind: type[S]) -> tuple[dict[str, torch.Tensor], S]:
    """The weights that `gigapipe train` wrote, and their settings.

    Raises InputError if there is no model, it cannot be read, or has learnt something else.
    """
    try:
        saved = read(path)
    except FileNotFoundError:
        raise InputError(f"model {path}: no such file; make it with `gigapipe train`") from None
    except Torn:
        raise InputError(f"model {path}: is torn, or no model; make it again with `gigapipe train`") from None
    if not isinstance(saved, dict) or saved.get("task") != kind.task:
        raise InputError(f"model {path}: has not learnt {kind.task}; give one that has")
    return saved["model"], kind.of(saved["settings"], f"model {path}: made by another version of gigapipe: ")


def trained_model(path: Path, kind: type[S], mesh: Mesh) -> tuple[nn.Module, S]:
    """The network of such a file, decomposed over `mesh`, and its settings. Raises InputError as `read_model`."""
    weights, settings = read_model(path, kind)
    model = settings.model()
    model.load_state_dict(weights)
    return decompose(model.to(mesh.device), mesh), settings
