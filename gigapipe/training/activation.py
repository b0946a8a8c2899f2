"""Class activation: what each place of a slide says for each class, from one pass over the whole of it.

Zhou et al., "Learning deep features for discriminative localization", CVPR 2016, doi:10.1109/CVPR.2016.319.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from gigapipe.models.resnet import ResNet
from gigapipe.spatial import gather
from gigapipe.spatial.recording import Recorded
from gigapipe.training.canvases import Canvases
from gigapipe.training.classification import ClassifierSettings
from gigapipe.training.streaming import Streaming

STRIDE = 32
"""A ResNet's: place i of its last feature map looks at what is centred on pixel 32 i of the canvas."""


class Activation(nn.Module):
    """A ResNet with its head at every place in place of pooling: (batch, 3, rows, columns) to (batch, classes, …).

    The result has the rows and columns of the last feature map. The head's bias is left out: where pooling is the
    global average, the mean over all places plus the bias is the logit. The layers are those of `model`.
    """

    def __init__(self, model: ResNet):
        super().__init__()
        self.features = nn.Sequential(
            model.conv1, model.bn1, model.relu, model.maxpool, model.layer1, model.layer2, model.layer3, model.layer4
        )
        self.head = model.fc

    def forward(self, x):
        return F.conv2d(self.features(x), self.head.weight[:, :, None, None])


@torch.no_grad()
def activations(
    model: ResNet, settings: ClassifierSettings, canvases: Canvases, streaming: Streaming
) -> Iterator[np.ndarray]:
    """The activation of each canvas (class, row, column), float32, one after another; on all ranks alike.

    Every rank of the mesh computes on every canvas: `mesh.data` must be 1.
    """
    activation = Activation(model).eval()
    with settings.autocast(canvases.mesh.device):
        streaming.prepare(activation, (1, 3, settings.canvas, settings.canvas))
    for index in range(len(canvases)):
        image, _ = canvases.batch([index], streaming=streaming)
        with settings.autocast(canvases.mesh.device):
            found = activation(image)
        found = found.computed() if isinstance(found, Recorded) else found
        streaming.done()
        yield gather(found)[0].float().cpu().numpy()
