"""Where no backward pass follows, a frozen BatchNorm is part of the convolution before it: one image less is made."""

from collections import Counter

import torch
import torch.nn.functional as F

from gigapipe.spatial.recording import Node, Ref


def fused(nodes: list[Node], output: Ref) -> dict[Node, Node]:
    """What to compute in place of `nodes`, in order: of each that is still made, the node that makes it."""
    uses = Counter(ref for node in nodes for ref in node.operands)
    made_by = {Ref(node): node for node in nodes}
    computed = {node: node for node in nodes}
    for norm in nodes:
        if norm.function is not F.batch_norm or norm.kwargs:
            continue
        convolution = made_by.get(norm.args[0])
        if convolution is None or convolution.function is not torch.conv2d or convolution.kwargs:
            continue
        if uses[norm.args[0]] > 1 or norm.args[0] == output:
            continue
        both = Node(norm.index)
        both.function = _convolved_and_normalised
        both.args = convolution.args[0], convolution.args[1:], norm.args[1:]
        both.accesses, both.layer, both.autocast = convolution.accesses, convolution.layer, convolution.autocast
        both.results, both.versions = norm.results, convolution.versions + norm.versions
        computed[norm] = both
        del computed[convolution]
    return computed


def _convolved_and_normalised(x, convolution: tuple, norm: tuple):
    """torch.conv2d and F.batch_norm of these arguments, by the weights that do both."""
    weight, bias, *options = convolution
    mean, variance, gain, shift, _, _, eps = norm
    scale = (variance + eps).rsqrt() if gain is None else gain * (variance + eps).rsqrt()
    offset = -mean * scale if bias is None else (bias - mean) * scale
    offset = offset if shift is None else offset + shift
    return torch.conv2d(x, weight * scale[:, None, None, None], offset, *options)
