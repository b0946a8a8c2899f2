"""A frozen BatchNorm becomes part of the convolution before it: one image less is made, and kept for the gradient."""

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F

from gigapipe.spatial.recording import Node, Ref


def fused(nodes: list[Node], output: Ref) -> dict[Node, Node]:
    """What to compute in place of `nodes`, in order: of each that is still made, the node that makes it."""
    uses = Counter(ref for node in nodes for ref in node.operands)
    made_by = {Ref(node): node for node in nodes}
    norm_of = {}
    for norm in nodes:
        before = made_by.get(norm.args[0]) if norm.function is F.batch_norm and not norm.kwargs else None
        if before is None or before.function is not torch.conv2d or before.kwargs or before.graded != norm.graded:
            continue
        if uses[norm.args[0]] == 1 and norm.args[0] != output:
            norm_of[before] = norm
    computed = {}
    for node in nodes:
        if node in norm_of:  # here, not where the norm is: what it looks at may be changed in place before that
            computed[norm_of[node]] = _both(node, norm_of[node])
        elif node not in norm_of.values():
            computed[node] = node
    return computed


def _both(convolution: Node, norm: Node) -> Node:
    both = Node(norm.index)
    both.function = convolved_and_normalised
    both.args = convolution.args[0], convolution.args[1:], norm.args[1:]
    both.accesses, both.layer, both.autocast = convolution.accesses, convolution.layer, convolution.autocast
    both.graded = convolution.graded
    both.results = norm.results
    return both


def convolved_and_normalised(x, convolution: tuple, norm: tuple):
    """torch.conv2d and F.batch_norm of these arguments, by the weights that do both."""
    arguments: tuple[Any, ...] = convolution if len(convolution) > 1 else (*convolution, None)
    weight, bias, *options = arguments
    mean, variance, gain, shift, _, _, eps = norm
    scale = (variance + eps).rsqrt() if gain is None else gain * (variance + eps).rsqrt()
    offset = -mean * scale if bias is None else (bias - mean) * scale
    offset = offset if shift is None else offset + shift
    return torch.conv2d(x, (weight * scale[:, None, None, None]).to(weight.dtype), offset.to(weight.dtype), *options)
