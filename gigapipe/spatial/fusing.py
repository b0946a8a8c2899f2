"""A convolution takes over what follows it pixel by pixel: a frozen BatchNorm, an image that is added, a ReLU.

So fewer images are made, and kept for the gradient, and fewer passes go over memory. The weights that do the work of
both, convolution and norm, are made once for all tiles.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from gigapipe.spatial.operators.convolution import convolved
from gigapipe.spatial.recording import Node, Ref

_RELU = {F.relu, F.relu_, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_}
_ADD = {torch.add, torch.Tensor.add, torch.Tensor.add_, torch.Tensor.__add__, torch.Tensor.__iadd__}


class Convolved(Node):
    """A convolution with what follows it. Its weights stand in for those that `folded` makes."""

    function = staticmethod(convolved)

    def __init__(self, convolution: Node, norm: Node | None, added: Ref | None, last: Node, relu: bool):
        super().__init__(last.index)
        weight, bias, *options = _arguments(convolution)
        self.convolution, self.norm = (weight, bias), norm.args[1:] if norm else None
        self.wanting = *convolution.wanting, *(norm.wanting if norm else ())
        asks = bool(self.wanting)
        self.relu = relu
        self.weight = weight.detach().requires_grad_(asks)
        self.bias = None
        if norm or bias is not None:
            self.bias = torch.zeros_like(weight[:, 0, 0, 0], requires_grad=asks)
        self.args = convolution.args[0], self.weight, self.bias, added, relu, *options
        self.accesses, self.layer, self.autocast = convolution.accesses, convolution.layer, convolution.autocast
        self.graded, self.results = convolution.graded, last.results

    def folded(self, tensors: dict[int, torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Weight and bias, each after what stands for it; with `tensors` in place of those of these ids."""
        wanted = {id(t) for t in self.wanting}

        def given(a):
            if not isinstance(a, torch.Tensor):
                return a
            return tensors.get(id(a), a if id(a) in wanted else a.detach())

        weight, bias, *norm = map(given, (*self.convolution, *(self.norm or ())))
        if norm:
            mean, variance, gain, shift, _, _, eps = norm
            scale = (variance + eps).rsqrt() if gain is None else gain * (variance + eps).rsqrt()
            offset = -mean * scale if bias is None else (bias - mean) * scale
            offset = offset if shift is None else offset + shift
            weight, bias = (weight * scale[:, None, None, None]).to(weight.dtype), offset.to(weight.dtype)
        yield self.weight, weight
        if self.bias is not None:
            yield self.bias, bias

    def lowered(self, t: torch.Tensor) -> torch.Tensor:
        """In the precision in which it is computed."""
        return t if self.autocast is None or t.dtype == torch.float64 else t.to(self.autocast)


class _Chain(NamedTuple):
    """A convolution, what follows it, and with which of them the image is there that is added."""

    nodes: list[Node]
    norm: Node | None
    add: Node | None
    relu: Node | None


def fused(nodes: list[Node], output: Ref) -> dict[Node, Node]:
    """What to compute in place of `nodes`, in order: of each that is still made, the node that makes it."""
    users: dict[Ref, list[Node]] = {}
    for node in nodes:
        for ref in node.operands:
            users.setdefault(ref, []).append(node)
    changes = [node.index for node in nodes if node.in_place]
    placed: dict[Node, _Chain] = {}
    covered: set[Node] = set()
    for node in nodes:
        if node.function is torch.conv2d and (chain := _chain(node, users, changes, output, covered)):
            # Where the convolution is, for what it looks at may be changed in place later; or where the addend is.
            placed[chain.add or node] = chain
            covered.update(chain.nodes)
    computed: dict[Node, Node] = {}
    for node in nodes:
        if chain := placed.get(node):
            convolution, last = chain.nodes[0], chain.nodes[-1]
            added = _other(chain.add, chain.nodes) if chain.add else None
            computed[last] = Convolved(convolution, chain.norm, added, last, relu=chain.relu is not None)
        elif node not in covered:
            computed[node] = node
    return computed


def _chain(
    convolution: Node, users: dict[Ref, list[Node]], changes: list[int], output: Ref, covered: set[Node]
) -> _Chain | None:
    """What nobody has `covered`; None of a convolution that is called in an unusual way.

    Each image has `users`; `changes` are the numbers of the operations that change something in place.
    """
    if (
        convolution.kwargs
        or not isinstance(convolution.args[0], Ref)
        or any(isinstance(a, Ref) for a in convolution.args[1:])
    ):
        return None
    found = [convolution]

    def follower(fits: Callable[[Node], bool]) -> Node | None:
        """The one that uses all that was found, if it is as told; then it is found, too."""
        end = Ref(found[-1])
        if end == output or len(users.get(end, ())) != 1:
            return None
        (user,) = users[end]
        alike = user not in covered and user.single and not user.sums and user.graded == convolution.graded
        if not (alike and end.result.dtype == user.results[0].dtype and fits(user)):
            return None
        found.append(user)
        return user

    def normalises(user: Node) -> bool:
        return user.function is F.batch_norm and not user.kwargs and user.args[0] == Ref(found[-1])

    def adds(user: Node) -> bool:
        if user.function not in _ADD or user.kwargs or len(user.args) != 2 or len(user.operands) != 2:
            return False
        end, other = Ref(found[-1]), _other(user, found)
        alike = other.image.shape == end.image.shape and other.image.dtype == end.image.dtype
        # The convolution waits for the addend: nothing may change meanwhile.
        waits = not any(convolution.index < index < user.index for index in changes)
        return alike and waits and (not user.in_place or user.args[0] == end)

    def rectifies(user: Node) -> bool:
        return user.function in _RELU and len(user.args) == 1 and set(user.kwargs) <= {"inplace"}

    norm, add, relu = follower(normalises), follower(adds), follower(rectifies)
    return _Chain(found, norm, add, relu)


def _other(add: Node, nodes: list[Node]) -> Ref:
    """What is added to what one of `nodes` makes."""
    return next(ref for ref in add.operands if ref.node not in nodes)


def _arguments(convolution: Node) -> tuple:
    """Weight, bias or None, and what else."""
    arguments = convolution.args[1:]
    return arguments if len(arguments) > 1 else (*arguments, None)
