"""The file of a trained model: its weights and settings, written by a training and read by all that use it."""

import logging
import shlex
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from gigapipe.configuration.command_line import arguments
from gigapipe.configuration.configuration import OwnNetwork
from gigapipe.configuration.tasks import Task, code_of, learning_of
from gigapipe.errors import InputError
from gigapipe.given_text import option
from gigapipe.spatial import Mesh, decompose
from gigapipe.training.settings import Settings
from gigapipe.training.weight_files import Unusable, load, refuse_not_finite, save

logger = logging.getLogger(__name__)

S = TypeVar("S", bound=Settings)


def write_model(path: Path, weights: dict[str, torch.Tensor], settings: Settings) -> None:
    save(path, {"task": settings.own_task or settings.task, "model": weights, "settings": settings.model_dump()})


def read_model(
    path: Path, kind: type[S] | tuple[type[S], ...], own: type[S] | None = None
) -> tuple[dict[str, torch.Tensor], S]:
    """The weights that `gigapipe train` wrote, and their settings, of this kind or of one of several; or, of a task of
    the user's, of the kind `own`.

    Raises InputError if there is no model, it cannot be read, is damaged, or has learnt something else.
    """
    try:
        saved = load(path)
        kinds = {one.task: one for one in (kind if isinstance(kind, tuple) else (kind,))}
        learnt = str(saved.get("task"))
        if ":" in learnt and own is None:
            raise InputError(
                f"model {path}: its task is your own code, which is executed only if you name it; if you trust it, add "
                f"{shlex.join(option('--task', learnt))}"
            )
        found = own if ":" in learnt else kinds.get(learnt)
        if found is None:
            raise InputError(f"model {path}: was not trained for {' or '.join(kinds)}; give one that was")
        if missing := {"model", "settings"} - saved.keys():
            raise Unusable(f"it has no {missing.pop()}")
        refuse_not_finite(saved["model"])
    except FileNotFoundError:
        raise InputError(f"model {path}: no such file; make it with `gigapipe train`") from None
    except Unusable as error:
        raise InputError(f"model {path}: {error}; make it again with `gigapipe train`") from None
    return saved["model"], found.of(saved["settings"], f"model {path}: made by another version of gigapipe: ")


def trained_model(
    path: Path,
    kind: type[S] | tuple[type[S], ...],
    mesh: Mesh,
    trusted: OwnNetwork | None = None,
    task: Task | None = None,
) -> tuple[nn.Module, S]:
    """The network of such a file, decomposed over `mesh`, and its settings.

    A file runs no code that it names itself: a network of the user's is made by the function that `trusted` names, of
    the file's keywords, and what it has learnt, if that is a task of the user's, is as this `task` says. Raises
    InputError if there is none or these are others, and as `read_model`.
    """
    weights, settings = read_model(path, kind, own=learning_of(task).kind if task else None)
    if task:
        if not settings.own_task:
            raise InputError(f"model {path}: its task is one of gigapipe; remove --task {task.own}")
        settings = settings.model_copy(update={"own_task": task.own})
        _tell_of_other_code(path, task.own, settings.task_code, code_of(task), mesh)
    named = trusted.network if trusted else None
    if bool(named) != settings.own:
        raise InputError(
            f"model {path}: its network is your own code, which is executed only if you name it; if you trust it, add "
            f"{arguments(settings, OwnNetwork)}"
            if settings.own
            else f"model {path}: its network is one of gigapipe; remove --network {named}"
        )
    if settings.own and trusted:
        if trusted.network_options != settings.network_options:
            raise InputError(f"model {path}: was trained with {arguments(settings, OwnNetwork)}; give these options")
        settings = settings.model_copy(update={"network": named})
        _tell_of_other_code(path, named, settings.network_code, trusted.code(), mesh)
    model = settings.model()
    take_weights(model, weights, path)
    return decompose(model.to(mesh.device), mesh), settings


def _tell_of_other_code(path: Path, name: str | None, trained_with: str | None, now: str | None, mesh: Mesh) -> None:
    if trained_with != now and mesh.rank == 0:
        logger.warning(
            f"model {path}: the code of {name} has changed since training ({trained_with}); results may differ, train "
            "it again"
        )


def take_weights(model: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Give a network the weights of the model in `path`. InputError if they are of another network."""
    own = {name: value.shape for name, value in model.state_dict().items()}
    theirs = {name: value.shape for name, value in weights.items()}
    if strange := sorted(name for name in own.keys() | theirs if own.get(name) != theirs.get(name)):
        raise InputError(
            f"model {path}: its weights are not those of the network that its settings name ({strange[0]} differs); "
            "make it again with `gigapipe train`"
        )
    model.load_state_dict(weights)
