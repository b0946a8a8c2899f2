"""Plain tensors made of images, where data ranks have images of their own: each data rank's are others.

What parameters meet behind the pool gives each data rank a gradient of its own; that of the mean loss is their average.
A `Pooled` is an ordinary tensor that remembers its mesh through any operation of torch, so that a backward pass begins
here: all ranks compare what they are about to sum, and parameters' gradients are averaged as they are complete, before
anybody else's hooks see them. Over one data rank there are none, for there all ranks compute the same.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch.autograd.graph import Node, get_gradient_edge
from torch.overrides import get_default_nowrap_functions

from gigapipe.spatial.late import hooked, late_over
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.refusals import LAYERS, NotDecomposed, changes_by_name
from gigapipe.spatial.summing import dense_strides, summed
from gigapipe.spatial.torch_internals import first_of_hooks, tree_leaves, tree_map, without_torch_function

_NUMBERS = itertools.count()
_PASSES: list[Mesh] = []
"""The meshes over whose data ranks a backward pass is running that was looked at first."""


class Pooled(torch.Tensor):
    """A plain tensor of one data rank of `mesh`, the same on the ranks that share its images."""

    mesh: Mesh

    @staticmethod
    def of(x: torch.Tensor, mesh: Mesh) -> torch.Tensor:
        """`x` as that; where there is one data rank, `x`."""
        if mesh.data == 1 or type(x) is not torch.Tensor:  # one without pixels, say
            return x
        x = x.as_subclass(Pooled)
        x.mesh = mesh
        return x

    def __reduce_ex__(self, protocol):
        return plain(self).__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        return Pooled.of(plain(self).__deepcopy__(memo), self.mesh)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if not all(issubclass(cls, kind) for kind in types):
            return NotImplemented  # an image knows what to do
        kwargs = kwargs or {}
        mesh = next((x.mesh for x in tree_leaves((args, kwargs)) if isinstance(x, Pooled)), None)
        if function in _DIFFERENTIATE:
            return _DIFFERENTIATE[function](mesh, *args, **kwargs)
        if function is torch.nn.functional.batch_norm and mesh is not None:
            refuse_batch_norm(*args, **kwargs)
        with without_torch_function():
            result = function(*args, **kwargs)
        if mesh is None or function in get_default_nowrap_functions():
            return result

        def made(x):
            return Pooled.of(x, mesh) if type(x) is torch.Tensor else x

        first = args[0] if args else None
        if type(first) is torch.Tensor and changes_by_name(function):
            first.__class__, vars(first)["mesh"] = Pooled, mesh
        return tree_map(made, result)


def refuse_batch_norm(x, running_mean, running_var, weight=None, bias=None, training=False, *_, **__) -> None:
    """Raise NotDecomposed in training, where statistics would be of one data rank's features alone."""
    if training:
        raise NotDecomposed(
            "BatchNorm of pooled features over several data ranks would see one rank's batch alone",
            "normalise before pooling, or use a mesh with data = 1",
        )


def plain(x: torch.Tensor) -> torch.Tensor:
    """A tensor without what it knew."""
    if not isinstance(x, Pooled):
        return x
    with without_torch_function():
        return x.as_subclass(torch.Tensor)


class Sum(NamedTuple):
    """What a node's backward pass does; an autograd node of ours has it as `across`."""

    number: int
    """In the order of creation; backward passes go the other way."""
    what: str
    """Which sum over everyone, for comparison between ranks."""
    enters: bool = False
    """Whether plain tensors become an image's operator's here."""
    batch: int | None = None
    """Of how many images the node makes a plain tensor."""


def across(what: str, **more) -> Sum:
    return Sum(next(_NUMBERS), f"{LAYERS[-1] if LAYERS else ''}: {what}", **more)


class _Found(NamedTuple):
    """What a backward pass comes by."""

    leaves: list[torch.Tensor]
    """Those that data ranks have in common, and that no image's operator took as they are."""
    plain: set[Node]
    """The nodes that are not of images."""
    sums: list[Sum]
    """In the order in which they happen."""


def leaf_of(node: Node | None) -> torch.Tensor | None:
    """The tensor whose gradient a node adds up, if it is a node that does."""
    if node is None or node.name() != "torch::autograd::AccumulateGrad":
        return None
    return getattr(node, "variable", None)


def _look(roots: Sequence[torch.Tensor], images: bool) -> _Found:
    leaves, found_plain, sums, seen = {}, set(), [], set()
    waiting = [(plain(root).grad_fn, images) for root in roots]
    while waiting:
        node, of_image = waiting.pop()
        if node is None or node in seen:
            continue
        if (leaf := leaf_of(node)) is not None:
            if not of_image and not isinstance(leaf, Pooled) and not hasattr(leaf, "stands_for"):
                leaves[id(leaf)] = leaf
            continue
        seen.add(node)
        if not of_image:
            found_plain.add(node)
        own = getattr(node, "across", None)
        enters = leaves_image = False
        if isinstance(own, Sum):
            sums.append(own)
            enters, leaves_image = own.enters, own.batch is not None
        for following, _ in node.next_functions:
            # What an operator took as it is has been summed; what was computed of others goes on to these.
            if following is not None and not (enters and leaf_of(following) is not None):
                waiting.append((following, not enters and (of_image or leaves_image)))
    return _Found(list(leaves.values()), found_plain, sorted(sums, key=lambda s: -s.number))


@contextlib.contextmanager
def averaging(roots: Sequence[torch.Tensor], mesh: Mesh, images: bool = False) -> Iterator[_Found]:
    """Around a backward pass from `roots`, which may be shards of `images`: averages leaves' gradients over everyone.

    Raises NotDecomposed, on all ranks, if data ranks are not alike.
    """
    if mesh.data == 1 or not roots:
        yield _Found([], set(), [])
        return
    found = _look(roots, images)
    what = [s.what for s in found.sums], sorted(tuple(leaf.shape) for leaf in found.leaves)
    mesh.agree(what, sorted(s.batch for s in found.sums if s.batch is not None), roots[0].device)
    handles = [first_of_hooks(leaf, _averaged(leaf, mesh)) for leaf in found.leaves]
    _PASSES.append(mesh)
    try:
        yield found
    finally:
        _PASSES.remove(mesh)
        for handle in handles:
            handle.remove()


def _averaged(leaf: torch.Tensor, mesh: Mesh) -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes of a leaf's gradient the mean over everyone; what is put off adds nothing to `.grad` meanwhile."""
    late = late_over(mesh) if not hooked(leaf) else None

    def averaged(grad: torch.Tensor) -> torch.Tensor:
        if late is None:
            return _mean(grad, mesh)
        with torch.no_grad():
            late.take(leaf, grad / mesh.size, dense_strides(leaf))
            return torch.zeros_like(grad)

    return averaged


def _mean(grad: torch.Tensor, mesh: Mesh) -> torch.Tensor:
    with torch.no_grad():
        return summed([grad], [dense_strides(grad)], mesh.everyone)[0].div_(mesh.size)


def refuse_unnoticed(mesh: Mesh) -> None:
    """Raise NotDecomposed in a backward pass over several data ranks that nobody looked at before it began."""
    if mesh.data > 1 and mesh not in _PASSES:
        raise NotDecomposed(
            "a backward pass over several data ranks began at a tensor that something beside torch's operations made",
            "begin it at what torch's own operations make of the pooled features",
        )


def _tuple(x) -> tuple:
    return tuple(x) if isinstance(x, tuple | list) else () if x is None else (x,)


def _without(x):
    """Roots and their gradients, for torch's own functions; these look at them again."""
    return tree_map(lambda a: plain(a) if isinstance(a, torch.Tensor) else a, x)


def _edges(inputs) -> tuple:
    """What gradients are asked for: of `Pooled` ones their edges, for torch's functions would look at them again."""
    with without_torch_function():
        return tuple(get_gradient_edge(x) if isinstance(x, Pooled) else x for x in _tuple(inputs))


def _backward(
    mesh, tensors, grad_tensors=None, retain_graph=None, create_graph=False, grad_variables=None, inputs=None
):
    with averaging(_tuple(tensors), mesh):
        inputs = None if inputs is None else _edges(inputs)
        torch.autograd.backward(_without(tensors), _without(grad_tensors), retain_graph, create_graph, inputs=inputs)


def _backward_of_one(mesh, self, gradient=None, retain_graph=None, create_graph=False, inputs=None):
    _backward(mesh, self, gradient, retain_graph, create_graph, inputs=inputs)


def _grad(mesh, outputs, inputs, grad_outputs=None, *args, **kwargs):
    """What data ranks have in common has the average: leaves, and what was computed of these alone."""
    given = _tuple(inputs)
    with averaging(_tuple(outputs), mesh) as found:
        grads = list(torch.autograd.grad(_without(outputs), _edges(given), _without(grad_outputs), *args, **kwargs))
        for i, (x, grad) in enumerate(zip(given, grads, strict=True)):
            if grad is not None and isinstance(x, Pooled):
                grads[i] = Pooled.of(grad, mesh)
            elif grad is not None and isinstance(x, torch.Tensor) and x.grad_fn in found.plain:
                grads[i] = _mean(grad, mesh)
    return tuple(grads)


_DIFFERENTIATE: dict[Callable, Callable] = {
    torch.Tensor.backward: _backward_of_one,
    torch.autograd.backward: _backward,
    torch.autograd.grad: _grad,
}
