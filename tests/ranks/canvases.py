"""Each rank's rectangle of a canvas, under each augmentation, against the whole canvas."""

import pandas as pd
import torch

from gigapipe.pyramids.canvas import read_canvas
from gigapipe.spatial import Plan
from gigapipe.training.augmentation import Augmentation
from gigapipe.training.canvases import Canvases
from gigapipe.training.streaming import Streaming

SIZE, MPP = 53, 8.0  # odd, so that the ranks' rectangles differ in shape
COLOURS = {"stains": (1.2, 0.8, 0.9), "brightness": 1.1, "contrast": 0.8}
AUGMENTATIONS = [
    *(Augmentation(symmetry) for symmetry in range(8)),
    Augmentation(6, (0.1, -0.07), **COLOURS),
    Augmentation(1, (-0.2, 0.2), **COLOURS),
]


def expected(whole: torch.Tensor, augmentation: Augmentation) -> torch.Tensor:
    """The whole canvas (1, 3, SIZE, SIZE), from one that is larger by SIZE on each side."""
    rows, columns = (SIZE + round(part * SIZE) for part in augmentation.shift)
    image = whole[..., rows : rows + SIZE, columns : columns + SIZE]
    if augmentation.symmetry & 4:
        image = image.transpose(2, 3)
    if augmentation.symmetry & 2:
        image = image.flip(2)
    if augmentation.symmetry & 1:
        image = image.flip(3)
    return augmentation.colour((255 - image) / 255)


def differences(mesh, pyramids: str, slide: str, label: str) -> list[tuple[int, float, float]]:
    """Of each look its symmetry, and how far this rank is from the whole canvas: held, and summed by tiles."""
    table = pd.DataFrame({"slide": [slide], "label": [label]})
    canvases = Canvases(table, torch.zeros(1), pyramids, MPP, SIZE, mesh)
    whole = torch.from_numpy(read_canvas(canvases.pyramids[0], MPP, 3 * SIZE)).float()[None]
    streaming = Streaming(None, mesh)
    streaming.plan = Plan(tile=5)
    rows, columns = (slice(*part) for part in mesh.rectangle((SIZE, SIZE)))
    found = []
    for augmentation in AUGMENTATIONS:
        want = expected(whole, augmentation)
        held, _ = canvases.batch([0], [augmentation])
        difference = (held.local - want[..., rows, columns]).abs().max().item()
        streamed, _ = canvases.batch([0], [augmentation], streaming)
        sums = [(image * image.square()).sum((2, 3)) for image in (streamed, want)]  # by tiles of 5 pixels
        found.append((augmentation.symmetry, difference, ((sums[0] - sums[1]) / sums[1]).abs().max().item()))
    return found
