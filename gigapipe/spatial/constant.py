"""Where an image is constant, one pixel of a segment's output stands for all.

Half of a slide is glass, and glass that was masked is exactly white. A tile whose input is constant, and which looks
nowhere past the image, is constant in every layer, so it is computed as a tile of one pixel. Of its gradients the
parameters' are those of that pixel, given the sum of the gradients of all pixels: exact, because every pixel of it is
the same function of the parameters. Tiles that begin with the same constants share one such pixel.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gigapipe.spatial.recording import Node, Ref
from gigapipe.spatial.window import Bins, Interval, Rectangle, Taps, Window


@dataclass
class Pixel:
    """One pixel that stands for all tiles that begin with the same constants."""

    out: Rectangle
    parts: dict[Ref, torch.Tensor]
    """What it needs of each input."""
    result: torch.Tensor
    """What the segment makes of it: its value, or its share of a sum."""


def keeps_constants(nodes: list[Node]) -> bool:
    """Whether nodes make constant images of constant images, away from the image's borders."""
    return all(
        not node.drawn
        and all(isinstance(access, Window | Bins | Taps) for access in node.accesses or ())
        and (node.accesses is not None or not any(_varies(tensor, node) for tensor in node.tensors))
        for node in nodes
    )


def _varies(tensor: torch.Tensor, node: Node) -> bool:
    """Whether a plain tensor has a value for each row or column; their last dimensions meet."""
    if node.function is F.batch_norm:  # whose tensors belong to channels
        return False
    image = node.operands[0].image
    from_behind = [axis - image.dim() for axis in image.axes]
    return any(tensor.dim() >= -axis and tensor.shape[axis] == image.shape[axis] != 1 for axis in from_behind)


def interior(nodes: Iterable[Node], rectangles: dict[Node, Rectangle]) -> bool:
    """Whether nodes that make these rectangles look at nothing past the image."""
    for node in nodes:
        for access, out, n in zip(node.accesses or (), rectangles[node], _size(node), strict=False):
            needed = access.needs(out)
            if needed.start < 0 or needed.stop > n:
                return False
    return True


def _size(node: Node) -> tuple[int, int]:
    return node.operands[0].image.image_size


def constants(parts: dict[Ref, torch.Tensor]) -> tuple[bytes, ...] | None:
    """The values of images each of which has one for all its pixels; None where one has not."""
    found = []
    for ref, part in parts.items():
        first = part
        for axis in ref.image.axes:
            first = first.narrow(axis, 0, 1)
        few = part
        for axis in ref.image.axes:
            few = few[(slice(None),) * axis + (slice(None, None, 61),)]
        if not ((few == first).all() and (part == first).all()):
            return None
        found.append(first.flatten().view(torch.uint8).numpy(force=True).tobytes())
    return tuple(found)


def middle(out: Rectangle) -> Rectangle:
    """The pixel in the middle of a tile."""
    return Rectangle(*(Interval(i.start + i.size // 2, i.start + i.size // 2 + 1) for i in out))
