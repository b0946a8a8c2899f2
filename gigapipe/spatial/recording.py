"""What a model does to an image, written down instead of done.

A `Recorded` stands for a whole image, as `SpatialTensor` does, but nobody holds it: torch hands every operation on it
to `__torch_function__`, which notes the call as a `Node` and works out the result's shape. The notes are what
`segment.py` computes tile by tile. An operation that makes a plain tensor of the image (a sum, a mean, a loss) is
where that happens, and the model's code goes on with its value.
"""

import functools
import inspect
import math
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from gigapipe.spatial.mesh import Mesh, remembered_by_mesh
from gigapipe.spatial.refusals import LAYERS, NotDecomposed, changes_by_name, name_of
from gigapipe.spatial.tensor import (
    DECOMPOSED,
    METADATA,
    WATCHING,
    Form,
    SpatialTensor,
    entered,
    refuse_lost_gradient,
    spelled,
)
from gigapipe.spatial.tile import Tile
from gigapipe.spatial.torch_internals import (
    fake_tensor_mode,
    make_stand_in,
    memory_of,
    set_hooks,
    tree_iter,
    tree_map,
    version_of,
    without_torch_function,
)
from gigapipe.spatial.window import Access, Rectangle


class Ref(NamedTuple):
    """Result number `item` of a node."""

    node: "Node"
    item: int = 0

    @property
    def result(self) -> torch.Tensor:
        """Its shape, dtype and device: an image, or a plain tensor where the node sums. It has no values."""
        return self.node.results[self.item]

    @property
    def image(self) -> SpatialTensor:
        """The same of an image, with its axes and memory format; it has no pixels."""
        found = self.result
        assert isinstance(found, SpatialTensor)
        return found


class Node:
    """One call that a model made: torch's function, its arguments with `Ref`s for images, and what came of it.

    A source has no function; it is held, or `read` gives any rectangle of it. The others are numbered from 1, as the
    model makes them.
    """

    function: Callable
    is_source = False
    args: tuple = ()
    kwargs: dict = {}
    results: tuple[torch.Tensor, ...] = ()
    """What it makes, without pixels."""
    single = True
    """Whether it returns one image, not several."""
    accesses: tuple[Access, Access] | None = None
    """How it looks at its one image; None where it works pixel by pixel."""
    crops = True
    """Whether it is then given of each image what is computed of its result, and not all that a tile holds."""
    drawn: tuple[torch.Tensor, ...] = ()
    """The random numbers that it drew."""
    autocast: torch.dtype | None = None
    in_place = False
    """Whether it changes its first argument."""
    sums = False
    """Whether it makes a plain tensor, the sum of what it makes of each tile."""
    versions: tuple[int, ...] = ()
    """How often each of its plain tensors had been changed in place when it was noted."""
    graded = True
    """Whether gradients were enabled when it was noted."""
    passes = True
    """Whether its results hand gradients on to what it was given."""
    wanting: tuple[torch.Tensor, ...] = ()
    """The plain tensors that ask for a gradient."""
    layer = ""
    read: Callable[[Rectangle], torch.Tensor] | None = None

    def __init__(self, index: int):
        self.index = index

    @functools.cached_property
    def call(self) -> tuple[Callable, tuple, dict]:
        """What computes it of tiles, and its arguments: its decomposed form, which torch need not be asked for."""
        return DECOMPOSED.get(self.function, self.function), *spelled(self.args, self.kwargs)

    @functools.cached_property
    def operands(self) -> list[Ref]:
        """The images among the arguments."""
        return [a for a in _leaves((self.args, self.kwargs)) if isinstance(a, Ref)]

    @functools.cached_property
    def bytes_a_pixel(self) -> list[float]:
        """Of each result that is an image, its batch and channels; of others 0."""
        images = ((x, max(1, math.prod(x.image_size))) for x in self.results if isinstance(x, SpatialTensor))
        sizes = {id(x): x.numel() * x.dtype.itemsize / pixels for x, pixels in images}
        return [sizes.get(id(x), 0.0) for x in self.results]

    @functools.cached_property
    def tensors(self) -> list[torch.Tensor]:
        """The plain tensors among the arguments, parameters above all."""
        return [a for a in _leaves((self.args, self.kwargs)) if isinstance(a, torch.Tensor)]

    def refuse_changes(self) -> None:
        """Raise RuntimeError if a plain tensor that it works with is no longer what it was."""
        if self.versions != tuple(version_of(t) for t in self.tensors):
            raise RuntimeError(
                f"gigapipe.spatial: a tensor that {name_of(self.function)} in layer {self.layer or '?'} works with was "
                "changed in place before a streamed image was computed with it; change it after the backward pass"
            )

    def __repr__(self) -> str:
        return f"Node({self.index}, {'source' if self.is_source else name_of(self.function)}, {self.layer})"


def _is_ref(a) -> bool:
    return isinstance(a, Ref)


def _leaves(tree) -> Iterable:
    return tree_iter(tree, is_leaf=_is_ref)


def map_arguments(function: Callable, tree):
    """Apply `function` to every argument, in nested lists too; a `Ref` is one argument."""
    return tree_map(function, tree, is_leaf=_is_ref)


def map_each(function: Callable, arguments: tuple) -> tuple:
    """The same of a call's arguments, of which few are lists, and fewer are nested: tiles are many."""
    return tuple([_mapped(function, a) for a in arguments])


def _mapped(function: Callable, a):
    kind = type(a)
    if kind is list or kind is tuple:
        return kind([_mapped(function, b) for b in a])
    if isinstance(a, tuple | list | dict) and kind is not Ref:
        return map_arguments(function, a)
    return function(a)


class _Effect(NamedTuple):
    """What a call makes of images of certain shapes."""

    returned: Any
    """What torch's function returned."""
    results: tuple[torch.Tensor, ...]
    accesses: tuple[tuple[Access, Access], ...]
    sums: int
    drawn: tuple[torch.Tensor, ...]
    same: int | None
    """Which of the images it returns as it was."""
    alias: bool
    """Whether the result is a view of an image."""


@functools.cache
def without_pixels():
    """The mode in which tensors have no memory; one for all, for tensors of one mode alone may meet."""
    from gigapipe.spatial import shapes  # noqa: F401  of what torch itself cannot do without pixels

    return fake_tensor_mode()


def _kind(a):
    """All of an argument that can make a difference to the shape of a result."""
    if isinstance(a, Recorded):
        image = a.ref.image
        return image.shape, image.dtype, image.axes, image.local.stride(), image.device, image.mesh
    if isinstance(a, torch.Tensor):
        return a.shape, a.dtype, a.stride(), a.device
    return type(a), repr(a)


@remembered_by_mesh
def _whole_image(mesh: Mesh) -> Tile:
    return Tile(mesh)


@remembered_by_mesh
def _effects(mesh: Mesh) -> dict[tuple, _Effect]:
    """What calls make of images, by function and arguments."""
    return {}


class Recorder:
    """Notes one pass through a model. Whoever makes a subclass of it says where values come from."""

    def __init__(self, mesh: Mesh, device: torch.device | str):
        self.mesh, self.device = mesh, torch.device(device)
        self.nodes: list[Node] = []
        self.held: dict[Ref, SpatialTensor] = {}
        """Images that are there, on the mesh: sources, and what is kept between segments."""
        self.reading = threading.Lock()
        """Held by the thread that calls a reader."""

    def undivided(self, index: int) -> bool:
        """Whether the node of this index is no longer noted but computed at once, of the whole image."""
        raise NotImplementedError

    def whole(self, ref: Ref) -> SpatialTensor:
        """An image, on the mesh."""
        raise NotImplementedError

    def summed(self, node: Node) -> torch.Tensor:
        """The plain tensor that a node makes which sums over the image."""
        raise NotImplementedError

    def source(self, shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False) -> "Recorded":
        """An image to begin with."""
        layout = torch.channels_last if channels_last else torch.contiguous_format
        with without_pixels():
            x = torch.empty(shape, dtype=dtype, device=self.device, memory_format=layout)
        node = Node(0)
        node.is_source = True
        self.nodes.append(node)
        node.results = (SpatialTensor(x, (shape[-2], shape[-1]), _whole_image(self.mesh)),)
        return Recorded(self, Ref(node))

    def record(self, function: Callable, args: tuple, kwargs: dict):
        """What a call returns that torch handed to us: `Recorded` images, or something plain."""
        index = sum(not node.is_source for node in self.nodes) + 1
        if self.undivided(index):
            return self._of_the_whole(function, args, kwargs)
        images = [a for a in _leaves((args, kwargs)) if isinstance(a, Recorded)]
        if any(isinstance(a, SpatialTensor) for a in _leaves((args, kwargs))):
            raise NotDecomposed(f"{name_of(function)} of a streamed and a decomposed image", "stream both")
        effect = self._effect(function, args, kwargs, images)
        if not effect.results:  # an answer, say of `x == None`
            return effect.returned
        plain = not isinstance(effect.results[0], SpatialTensor)
        if plain and not (function in _SUMS and effect.sums == 1):
            return self._of_the_whole(function, args, kwargs)
        in_place = changes_in_place(function, args, kwargs)
        if effect.same is not None and not in_place:
            return images[effect.same]
        if in_place and any(one() is not None and one() is not images[0] for one in images[0].views):
            raise NotDecomposed(f"{name_of(function)} of what may share memory with another image", "use its result")
        if len(effect.accesses) > 1:
            raise NotDecomposed(f"{name_of(function)}, which looks at its input twice", "use simpler operations")
        node = Node(index)
        self.nodes.append(node)
        args, kwargs = entered(args, kwargs, self.mesh, Recorded)
        node.function, node.in_place, node.results = function, in_place, effect.results
        node.single = isinstance(effect.returned, torch.Tensor)
        node.args, node.kwargs = tree_map(lambda a: a.ref if isinstance(a, Recorded) else a, (args, kwargs))
        node.accesses = next(iter(effect.accesses), None)
        node.drawn, node.layer = effect.drawn, LAYERS[-1] if LAYERS else ""
        node.versions = tuple(version_of(t) for t in node.tensors)
        node.graded = torch.is_grad_enabled()
        # As in torch: what is changed in place without gradients keeps those that it had.
        node.passes = (node.graded and function not in _CONSTANT and effect.results[0].is_floating_point()) or in_place
        node.wanting = tuple(t for t in node.tensors if t.requires_grad) if node.graded else ()
        if torch.is_autocast_enabled(self.device.type):
            node.autocast = torch.get_autocast_dtype(self.device.type)
        if plain:
            node.sums = True
            return self.summed(node)
        if in_place:
            args[0].ref = Ref(node)
            return args[0]
        recorded = [Recorded(self, Ref(node, i)) for i in range(len(effect.results))]
        for one in recorded if effect.alias else ():
            for image in images:
                image.views.append(weakref.ref(one))
                one.views = image.views
        return recorded[0] if node.single else type(effect.returned)(recorded)

    def _effect(self, function: Callable, args: tuple, kwargs: dict, images: list["Recorded"]) -> "_Effect":
        """What a call makes of such images; found out once, for a step is like another."""
        autocast = torch.is_autocast_enabled(self.device.type) and torch.get_autocast_dtype(self.device.type)
        key = function, autocast, *(_kind(a) for a in _leaves((args, kwargs))), *kwargs
        tile, effects = _whole_image(self.mesh), _effects(self.mesh)
        if key in effects:
            return effects[key]

        tile.record()
        with without_pixels(), torch.no_grad():
            given, options = tree_map(lambda a: a.ref.image if isinstance(a, Recorded) else a, (args, kwargs))
            returned = function(*given, **options)
        results = tuple(r for r in _leaves(returned) if isinstance(r, torch.Tensor))
        same = [i for i, image in enumerate(images) if results and results[0] is image.ref.image]
        memory = {memory_of(image.ref.image.local) for image in images}
        alias = any(isinstance(r, SpatialTensor) and memory_of(r.local) in memory for r in results)
        effect = _Effect(
            returned, results, tuple(tile.accesses), tile.sums, tuple(tile.drawn), next(iter(same), None), alias
        )
        if not effect.drawn:
            effects[key] = effect
        return effect

    def asks_for_gradient(self, ref: Ref) -> bool:
        """Whether a gradient would go on from an image to a parameter, or to an image that begins here."""
        waiting = [ref]
        while waiting:
            node = waiting.pop().node
            begun = [x for kept, x in self.held.items() if kept.node is node] if node.is_source else []
            if node.wanting or any(x.requires_grad for x in begun):
                return True
            waiting += node.operands if node.passes else []
        return False

    def _of_the_whole(self, function: Callable, args: tuple, kwargs: dict):
        args, kwargs = tree_map(lambda a: self.whole(a.ref) if isinstance(a, Recorded) else a, (args, kwargs))
        return function(*args, **kwargs)


class Recorded(torch.Tensor):
    """An image that is computed later, tile by tile. Its `shape` is that of the whole image."""

    stands_for = "an image"
    recorder: Recorder
    ref: Ref
    views: "list[weakref.ref[Recorded]]"
    """What shares memory with it, itself too; its views have the same list."""
    takes_precedence = True
    """Over `SpatialTensor`, which a streamed image can become where the two meet."""

    @staticmethod
    def __new__(cls, recorder: Recorder, ref: Ref):
        like = ref.image
        self = make_stand_in(
            cls, like.shape, dtype=like.dtype, device=recorder.device, requires_grad=like.dtype.is_floating_point
        )
        set_hooks(self, WATCHING)
        views: list[weakref.ref[Recorded]] = [weakref.ref(self)]
        self.recorder, self.ref, self.views = recorder, ref, views
        return self

    def computed(self) -> SpatialTensor:
        """The image itself, on the mesh; made tile by tile."""
        return self.recorder.whole(self.ref)

    @property
    def requires_grad(self) -> bool:  # type: ignore[override]  # nobody sets it
        return self.recorder.asks_for_gradient(self.ref)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in METADATA:
            with without_torch_function():
                return function(*args, **kwargs)
        images = [a for a in _leaves((args, kwargs)) if isinstance(a, Recorded)]
        for image in images:
            refuse_lost_gradient(image)
        if function in _DIFFERENTIATE:
            raise NotDecomposed("a gradient of a streamed image", "ask for that of the image that is streamed")
        if function in STREAMED:
            return STREAMED[function](*args, **kwargs)
        return images[0].recorder.record(function, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):  # type: ignore[override]  # torch's is no method
        raise NotDecomposed(f"{function} reached a streamed image below torch's Python functions", "do without it")


_DIFFERENTIATE = {torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward}

STREAMED: dict[Callable, Callable] = {}
"""torch's function -> the same, made of others (statistical.py, composed.py)."""


def streams_as(*functions: Callable) -> Callable[[Form], Form]:
    """Register a function as the form that torch's `functions` take on a streamed image."""

    def register(ours: Form) -> Form:
        STREAMED.update(dict.fromkeys(functions, ours))
        return ours

    return register


_F = torch.nn.functional
_SUMS = {
    torch.sum, torch.Tensor.sum, torch.mean, torch.Tensor.mean, _F.adaptive_avg_pool2d, _F.mse_loss, _F.l1_loss,
    _F.smooth_l1_loss, _F.huber_loss, _F.binary_cross_entropy, _F.binary_cross_entropy_with_logits, _F.cross_entropy,
    _F.nll_loss, _F.kl_div,
}  # fmt: skip
"""Functions whose value is the sum of their values for the tiles, if they sum over the image once."""


TAKE_VALUED: set[Callable] = set()
"""Those of them that are told, by their keyword `valued`, whether their value is needed, or their gradient alone."""


def sums_over_image(ours: Form, takes_valued: bool = False) -> Form:
    """Register a function of ours as one of them."""
    _SUMS.add(ours)
    if takes_valued:
        TAKE_VALUED.add(ours)
    return ours


_CONSTANT = {
    torch.Tensor.detach, torch.detach, torch.zeros_like, torch.ones_like, torch.full_like, torch.rand_like,
    torch.randn_like, torch.bernoulli, torch.Tensor.bernoulli,
}  # fmt: skip
"""Functions whose value hands no gradient on."""


def changes_in_place(function: Callable, args: tuple, kwargs: dict) -> bool:
    """Whether a call changes its first argument, as torch's names and arguments tell."""
    if changes_by_name(function):
        return True
    try:
        return bool(inspect.signature(function).bind(*args, **kwargs).arguments.get("inplace"))
    except (TypeError, ValueError):  # built in: torch's own take no such argument
        return bool(kwargs.get("inplace"))
