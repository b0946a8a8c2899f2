"""A model of benchmarks/zoo_models.py against itself undivided, in float64: how it ended, and why."""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from gigapipe.spatial import Mesh, NotDecomposed, Plan, SpatialTensor, gather
from gigapipe.spatial.check import TOLERANCE, ModelFailed, compare
from gigapipe.spatial.transports import Alone

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from zoo_models import Entry, entries  # noqa: E402  that folder is not where Python looks

BATCH = 2
ENDS = "exact", "ill-conditioned", "wrong", "refused", "unusable"
"""How a comparison can end. An error of an ill-conditioned model is what a last-bit change of its image makes, too;
an unusable one fails undivided.
"""


class InDouble(TorchFunctionMode):
    """What is asked for in float32 comes in float64: the rounding of a part would hide errors of the whole."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            return args[0].double()
        args, kwargs = tree_map(lambda x: torch.float64 if x is torch.float32 else x, (args, kwargs or {}))
        return function(*args, **kwargs)


class Compared(nn.Module):
    """A model in float64 throughout, and in evaluation mode if `evaluated`."""

    def __init__(self, model: nn.Module, evaluated: bool = False):
        super().__init__()
        self.model, self.evaluated = model, evaluated

    def forward(self, image):
        with InDouble():
            return self.model(image)

    def train(self, mode: bool = True) -> "Compared":
        return super().train(mode and not self.evaluated)


class Nudged(nn.Module):
    """A model that sees, of a decomposed image on one rank, the whole image, changed in its last bits.

    Compared with itself on the undivided image, it says how far rounding alone carries.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image):
        if isinstance(image, SpatialTensor):
            whole = gather(image)
            generator = torch.Generator().manual_seed(3)
            signs = torch.randn(whole.shape, generator=generator, dtype=whole.dtype).sign()
            image = whole * (1 + torch.finfo(whole.dtype).eps * signs)
        return self.model(image)


def held(mesh: Mesh, library: str, name: str) -> dict:
    """In training mode, on ranks that hold their shards."""
    return judged(entries()[library, name], mesh)


def streamed(mesh: Mesh, library: str, name: str) -> dict:
    """In evaluation mode, tile by tile."""
    entry = entries()[library, name]
    return judged(entry, mesh, Plan(tile=48 if max(entry.size) <= 128 else 64))


def judged(entry: Entry, mesh: Mesh, plan: Plan | None = None) -> dict:
    """How it ended (one of `ENDS`), what there is to say about it, and the largest relative error."""
    torch.manual_seed(0)
    model = Compared(entry.make(), evaluated=plan is not None)
    images = torch.rand(BATCH * mesh.data, entry.channels, *entry.size, dtype=torch.float64)
    try:
        worst = compare(model, images, mesh, plan)[0]
    except ModelFailed as error:
        return {"end": "unusable", "says": str(error)}
    except NotDecomposed as error:
        return {"end": "refused", "says": str(error)}
    found = {"end": "exact", "says": f"{worst.kind} {worst.name}".strip(), "error": worst.error}
    if worst.error > TOLERANCE:
        found["rounding"] = compare(Nudged(model), images, Mesh(transport=Alone()))[0].error
        found["end"] = "ill-conditioned" if worst.error <= 100 * found["rounding"] else "wrong"
    return found


class Spectrum(nn.Module):
    def forward(self, image):
        return torch.fft.fft2(image).abs()


class Steep(nn.Module):
    def forward(self, image):
        return torch.sin(1e8 * image)


class Bent(nn.Module):
    """Is off by one part in 10⁹ where an image is decomposed."""

    def forward(self, image):
        return image * (1 + 1e-9 * isinstance(image, SpatialTensor))


LAST = {
    "exact": nn.ReLU(),
    "ill-conditioned": Steep(),
    "wrong": Bent(),
    "refused": Spectrum(),
    "unusable": nn.Conv2d(4, 4, 99),
}


def ending(mesh: Mesh, last: str) -> dict:
    """A model whose last layer is one of `LAST`."""
    return judged(Entry("", "", "", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), LAST[last])), mesh)
