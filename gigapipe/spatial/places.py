"""Where the places of a feature map lie on the image that it was made of: interval arithmetic once more."""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.planning import trace
from gigapipe.spatial.recording import Node, Recorded, Ref
from gigapipe.spatial.segment import needed_nodes
from gigapipe.spatial.transports import Alone
from gigapipe.spatial.window import Interpolation, Interval


class Places(NamedTuple):
    """Along each axis, place i looks at what is centred on pixel `first` + i × `stride`."""

    stride: float
    first: float


def last_image(model: nn.Module, shape: tuple[int, int, int, int]) -> str | None:
    """The name of the layer that makes the last image (four dimensions) in a model, "" if that is the model itself.

    Nothing is computed. None if no layer makes one that can be streamed.
    """
    found: list[str] = []
    hooks = [module.register_forward_hook(_noting(name, found)) for name, module in model.named_modules()]
    try:
        _traced(model, shape)
    finally:
        for hook in hooks:
            hook.remove()
    return found[-1] if found else None


def _noting(name: str, found: list[str]) -> Callable:
    def note(module, inputs, output) -> None:
        if isinstance(output, Recorded) and output.dim() == 4:
            found.append(name)

    return note


def places(model: nn.Module, shape: tuple[int, int, int, int]) -> Places | None:
    """Where the places of the image lie that a model makes of one of `shape`; None if rows and columns differ in it,
    or its operations do not tell.
    """
    output = _traced(model, shape)
    if output is None:
        return None
    axes = [_along(output, axis) for axis in (0, 1)]
    return axes[0] if axes[0] == axes[1] else None


def _traced(model: nn.Module, shape: tuple[int, int, int, int]) -> Ref | None:
    """What a model makes, noted; None if that is no image, or something before it cannot be streamed."""
    made: list[Ref] = []

    def keep(output) -> None:
        if isinstance(output, Recorded):
            made.append(output.ref)

    weight = next(model.parameters())
    trace(model, shape, Mesh(transport=Alone()), keep, weight.dtype, weight.device)
    return made[0] if made else None


def _along(output: Ref, axis: int) -> Places | None:
    size = output.image.image_size[axis]
    here, there = size // 4, size // 4 + max(1, size // 2)  # far apart: interpolated places repeat one another
    first, second = (_centre(output, axis, place) for place in (here, there))
    if first is None or second is None or second <= first:
        return None
    stride = (second - first) / (there - here)
    return Places(stride, first - here * stride)


def _centre(output: Ref, axis: int, place: int) -> float | None:
    """The middle of what a place looks at, as if the image went on beyond its ends, which would cut some short."""
    nodes, inputs = needed_nodes(output.node, ())
    needed: dict[Node, Interval] = {output.node: Interval(place, place + 1)}
    for node in reversed(nodes):
        for ref in node.operands:
            wanted = needed[node]
            if node.accesses:
                access = node.accesses[axis]
                if isinstance(access, Interpolation):  # which knows each place
                    wanted = wanted.intersect(Interval(0, access.output_size(0)))
                    if not wanted.size:
                        return None
                wanted = access.needs(wanted)
            needed[ref.node] = needed.get(ref.node, wanted).hull(wanted)
    source = needed.get(inputs[0].node) if inputs else None
    return None if source is None else (source.start + source.stop - 1) / 2
