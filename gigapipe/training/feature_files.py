"""Features of frozen layers in a folder: other folds and methods find there what they would compute of slides."""

import hashlib
import json
import time
from pathlib import Path

import torch
from torch import nn

import gigapipe
from gigapipe.configuration.configuration import Architecture
from gigapipe.disks import tell_once
from gigapipe.errors import Unavailable
from gigapipe.pyramids import Pyramid
from gigapipe.training.settings import Settings
from gigapipe.training.weight_files import Unusable, load, save

READ_AT = 50e6
"""Bytes a second that a slow file system reads: what is computed faster than it is read is not written."""

OF_THE_HEAD = ("train", "weights", "pool")
"""What the network's options say of its head, and from where it has weights, which are looked at themselves."""


class FeatureFiles:
    """Features that a frozen `model` computes of slides at a resolution, a file for each slide and way it is turned.

    The files of another network, other weights, another canvas or other versions have other names. Whatever cannot be
    read or written is computed, and said.
    """

    def __init__(self, model: nn.Module, settings: Settings, maps: bool):
        options = settings.model_dump(include=set(Architecture.model_fields) - set(OF_THE_HEAD))
        seen = [getattr(settings, name, None) for name in ("mpp", "canvas", "background", "precision", "network_code")]
        pooled = None if maps else getattr(settings, "pool", None)
        made_by = json.dumps([options, seen, pooled, gigapipe.__version__, torch.__version__], sort_keys=True)
        digest = hashlib.sha256(made_by.encode())
        for name, value in sorted(model.state_dict().items()):
            if not name.startswith(("fc.", "avgpool.")):
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        self.network = digest.hexdigest()[:16]

    def read(self, folder: Path, pyramid: Pyramid, symmetry: int) -> torch.Tensor | None:
        """Features (1, channels, …) of a slide, or None."""
        path = self._path(folder, pyramid, symmetry)
        try:
            return load(path)["features"]
        except FileNotFoundError:
            return None
        except (OSError, Unavailable, Unusable, KeyError) as error:
            tell_once(f"features {path}: {error}; computed again")
            return None

    def write(self, folder: Path, pyramid: Pyramid, symmetry: int, features: torch.Tensor, begun: float) -> None:
        """Keep what was computed since `begun` (`time.perf_counter`), if reading it takes less time."""
        if features.nbytes / READ_AT > time.perf_counter() - begun:
            return
        path = self._path(folder, pyramid, symmetry)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path, {"features": features.detach().cpu()})
        except OSError as error:
            tell_once(f"features: {folder}: {error.strerror or error}; features are not kept there")

    def _path(self, folder: Path, pyramid: Pyramid, symmetry: int) -> Path:
        """Named by digests: names of slides are of no consequence, and lead nowhere."""
        slide = json.dumps([pyramid.source["md5"], pyramid.settings, pyramid.codec], sort_keys=True, default=str)
        return folder / self.network / f"{hashlib.sha256(slide.encode()).hexdigest()[:24]}-{symmetry}.pt"
