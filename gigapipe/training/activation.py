"""Class activation: what each place of a slide says for each class, from one pass over the whole of it.

Zhou et al., "Learning deep features for discriminative localization", CVPR 2016, doi:10.1109/CVPR.2016.319. Of a
network whose head is its own, the head's gradient stands for the weights: "HiResCAM", Draelos and Carin 2020,
arXiv:2011.08891, which is the same where pooling is the global average and the head linear.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from gigapipe.errors import InputError
from gigapipe.models.networks import Headed
from gigapipe.models.resnet import ResNet
from gigapipe.spatial import SpatialTensor, gather
from gigapipe.spatial.places import Places, last_image, places
from gigapipe.spatial.recording import Recorded
from gigapipe.training.ahead import with_following
from gigapipe.training.canvases import Canvases
from gigapipe.training.classification import CanvasSettings
from gigapipe.training.streaming import Image, Streaming

OF_RESNET = Places(stride=32, first=0)
"""Place i of its last feature map looks at what is centred on pixel 32 i of the canvas."""


class Found(NamedTuple):
    """Of one canvas: what each place says for each class (class, row, column), float32, and what is said of none.

    The mean over all places and the bias are the logit, but of a ResNet or a `Headed` network whose pool is not the
    average.
    """

    values: np.ndarray
    bias: list[float]


class Activation(nn.Module):
    """A network with its linear head at every place in place of pooling: (batch, 3, rows, columns) to
    (batch, classes, …), with the rows and columns of the last feature map.

    The head's bias is left out: where pooling is the global average, the mean over all places plus the bias is the
    logit. The layers are those of `model`.
    """

    def __init__(self, model: ResNet | Headed):
        super().__init__()
        if isinstance(model, Headed):
            self.features = model.features
        else:
            stem = model.conv1, model.bn1, model.relu, model.maxpool
            self.features = nn.Sequential(*stem, model.layer1, model.layer2, model.layer3, model.layer4)
        self.head = model.fc

    def forward(self, x):
        return F.conv2d(self.features(x), self.head.weight[:, :, None, None])


class Graded(nn.Module):
    """A network whose head is its own: its last feature map (batch, channels, rows, columns), and its logits.

    The map is what `layer` makes. The logits have gradients of it, and of nothing before it. The layers are those of
    `model`.
    """

    def __init__(self, model: nn.Module, layer: str):
        super().__init__()
        self.model, self.layer = model, layer

    def forward(self, x: Image) -> tuple[SpatialTensor, torch.Tensor]:
        kept: list[SpatialTensor] = []

        def begin_anew(module, inputs, output: Image) -> torch.Tensor:
            image = output.computed() if isinstance(output, Recorded) else output
            kept[:] = [image.with_local(image.local.detach().requires_grad_())]
            return kept[0].clone()  # what follows may change it in place

        hook = self.model.get_submodule(self.layer).register_forward_hook(begin_anew)
        try:
            with torch.enable_grad():
                logits = self.model(x)
        finally:
            hook.remove()
        return kept[0], logits


class _Body(nn.Module):
    """A network as far as one of its layers: the image that this makes."""

    class _Reached(Exception):
        pass

    def __init__(self, model: nn.Module, layer: str):
        super().__init__()
        self.model, self.layer = model, layer

    def forward(self, x: Image) -> Image:
        made: list[Image] = []

        def stop(module, inputs, output: Image) -> None:
            made.append(output)
            raise self._Reached

        hook = self.model.get_submodule(self.layer).register_forward_hook(stop)
        try:
            self.model(x)
        except self._Reached:
            pass
        finally:
            hook.remove()
        return made[0]


class Mapper:
    """Maps canvases with a trained network. InputError if that makes no feature map, or none that lies on the canvas.

    `places` is where those of its maps lie.
    """

    def __init__(self, model: nn.Module, settings: CanvasSettings):
        self.model, self.settings = model.eval().requires_grad_(False), settings
        self.places = OF_RESNET
        self.activation: nn.Module = self.model
        shape = 1, 3, settings.canvas, settings.canvas
        self.bias: list[float] | None = None
        if isinstance(model, ResNet | Headed):
            self.activation, self.bias = Activation(model), model.fc.bias.tolist()
        if isinstance(model, ResNet):
            return
        body: nn.Module = self.activation
        if not isinstance(model, Headed):
            layer = last_image(model, shape)
            if not layer:
                raise InputError(
                    f"network {settings.network}: none of its layers gives a feature map, so that no map can be made"
                )
            self.activation, body = Graded(model, layer), _Body(model, layer)
        found = places(body, shape)
        if found is None:
            raise InputError(
                f"network {settings.network}: the position of its last feature map on the canvas is unknown, so that "
                "no map can be made"
            )
        self.places = found

    @torch.no_grad()
    def activations(self, canvases: Canvases, streaming: Streaming) -> Iterator[Found]:
        """What is found on each canvas, one after another; on all ranks alike.

        Every rank of the mesh computes on every canvas: `mesh.data` must be 1.
        """
        settings, device = self.settings, canvases.mesh.device
        with settings.autocast(device):
            whole = self.model if self.bias is None else self.activation
            streaming.prepare(whole, (1, 3, settings.canvas, settings.canvas))
        for (indices, _), following in with_following(([index], None) for index in range(len(canvases))):
            image, _ = canvases.batch(indices, None, streaming, following)
            with settings.autocast(device):
                found = self.activation(image)
            if self.bias is None:
                streaming.done()
                yield by_gradients(*found)
            else:
                found = found.computed() if isinstance(found, Recorded) else found
                streaming.done()
                yield Found(_whole(found)[0], self.bias)


def _whole(image: SpatialTensor) -> np.ndarray:
    return gather(image).float().cpu().numpy()


def by_gradients(features: SpatialTensor, logits: torch.Tensor) -> Found:
    """Of each class its logit's gradient, times the feature map, summed over channels; the logit is their mean over
    places, and a bias.
    """
    (rows, columns), axes = features.image_size, features.axes
    values = []
    with torch.enable_grad():
        each_logit = logits[0].unbind()
    for logit in each_logit:
        (gradient,) = torch.autograd.grad(logit, features.local, retain_graph=True)
        each = (gradient.float() * features.local.detach().float()).movedim(axes, (-2, -1)).sum(1, keepdim=True)
        values.append(_whole(features.with_local(each, (-2, -1)))[0, 0] * rows * columns)
    found = np.stack(values)
    return Found(found, (logits[0].detach().float().cpu().numpy() - found.mean((1, 2))).tolist())
