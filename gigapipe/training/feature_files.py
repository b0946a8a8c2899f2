"""Features of frozen layers in a folder: other folds and predictions find there what they would compute of slides."""

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
from gigapipe.pyramids.canvas import corner
from gigapipe.pyramids.files import KEY as STAMP
from gigapipe.pyramids.files import is_stamped
from gigapipe.training.canvases import Canvases
from gigapipe.training.devices import finish
from gigapipe.training.settings import Settings
from gigapipe.training.weight_files import Unusable, load, save

READ_AT = 50e6
"""Bytes a second that a slow file system reads: what is computed faster than it is read is not written."""

OF_THE_HEAD = ("train", "weights", "pool")
"""What the network's options say of its head, and from where it has weights, which are looked at themselves."""


class FeatureFiles:
    """Features that a frozen `model` computes of the canvases of slides, a file for each and each way it is turned.

    The files of another network, other weights, other pixels, another canvas or other versions have other names.
    Whatever cannot be read or written is computed, and said.
    """

    def __init__(self, model: nn.Module, settings: Settings, maps: bool, device: torch.device):
        options = settings.model_dump(include=set(Architecture.model_fields) - set(OF_THE_HEAD))
        seen = [getattr(settings, name, None) for name in ("mpp", "canvas", "background", "precision", "network_code")]
        pooled = None if maps else getattr(settings, "pool", None)
        versions = [gigapipe.__version__, torch.__version__, device.type]
        digest = hashlib.sha256(json.dumps([options, seen, pooled, versions], sort_keys=True).encode())
        for name, value in sorted(model.state_dict().items()):
            if not name.startswith(("fc.", "avgpool.")):
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        self.network = digest.hexdigest()[:16]

    def path(self, canvases: Canvases, index: int, symmetry: int) -> Path | None:
        """Where features of a slide are kept, named by digests of its pixels and place; None if that is nowhere."""
        pyramid, folder = canvases.pyramids[index], canvases.features
        array = pyramid.array(canvases.mpp)
        if folder is None:
            return None
        if not is_stamped(array):
            tell_once(f"features: not kept of pyramids that gigapipe 0.1 wrote, as {pyramid.folder}: no checksums")
            return None
        outline = hashlib.sha256(pyramid.outline.tobytes()).hexdigest() if canvases.masked else ""
        shown = [str(array.attrs[STAMP]), array.shape, corner(pyramid, canvases.mpp, canvases.size), outline]
        slide = hashlib.sha256(json.dumps(shown).encode()).hexdigest()
        return folder / self.network / f"{slide[:24]}-{symmetry}.pt"

    def read(self, path: Path) -> torch.Tensor | None:
        """Features (1, channels, …) of a slide, or None."""
        try:
            return load(path)["features"]
        except FileNotFoundError:
            return None
        except (OSError, Unavailable, Unusable, KeyError) as error:
            tell_once(f"features {path}: {error}; computed again")
            return None

    def write(self, path: Path, features: torch.Tensor, begun: float) -> None:
        """Keep what was computed since `begun` (`time.perf_counter`), if reading it takes less time."""
        finish(features.device)
        if features.nbytes / READ_AT > time.perf_counter() - begun:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path, {"features": features.detach().cpu()})
        except OSError as error:
            tell_once(f"features: {path.parent}: {error.strerror or error}; features are not kept there")
