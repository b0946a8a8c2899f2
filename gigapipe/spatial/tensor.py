"""The tensor that knows its position: an image divided over a mesh, to which any model can be applied.

`SpatialTensor` represents a whole image, usually (batch, channels, rows, columns), of which this rank has a rectangle.
Its `shape` is that of the whole image. torch passes every operation on it to `__torch_function__`, which runs the
operation's decomposed form (see `operators/`) on this rank's shard; an operation without one raises an error, and so
does any access to the storage, because there is none. A model's source therefore does not change.

Operations that reduce an image to a vector (global pooling) return a plain tensor, the same on every rank that shares
the image.
"""

import copy
import functools
import inspect
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from gigapipe.spatial.gradients import enter
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.refusals import NotDecomposed, name_of
from gigapipe.spatial.tile import Tile, resized
from gigapipe.spatial.torch_internals import (
    OF_FULLY_SHARD,
    give_way_to_compiler,
    make_stand_in,
    memory_of,
    set_hooks,
    tree_flatten,
    tree_unflatten,
    without_torch_function,
)
from gigapipe.spatial.window import Rectangle

Form = TypeVar("Form", bound=Callable)

DECOMPOSED: dict[Callable, Callable] = {}
"""torch's own function -> our decomposed form of it, which takes the same arguments."""

# Questions about the whole image that torch answers from the tensor's description alone.
METADATA = {
    torch.Tensor.size,
    torch.Tensor.dim,
    torch.Tensor.ndimension,
    torch.Tensor.numel,
    torch.Tensor.nelement,
    torch.Tensor.__len__,
    torch.Tensor.get_device,
    torch.Tensor.is_floating_point,
    torch.Tensor.is_complex,
    torch.is_floating_point,
    torch.is_complex,
    torch.is_tensor,
    torch.numel,
    *(
        getattr(torch.Tensor, name).__get__
        for name in (
            "shape", "ndim", "dtype", "device", "layout", "is_cuda", "is_sparse", "is_quantized", "is_nested",
        )
    ),
}  # fmt: skip


ENTERS_ITSELF: set[Callable] = set()
"""Those of them whose decomposed form sees to the gradients of plain tensors (see `gradients.py`)."""


def decomposes(*functions: Callable, enters_itself: bool = False) -> Callable[[Form], Form]:
    """Register a function as the decomposed form of the torch functions `functions`."""

    def register(ours: Form) -> Form:
        if enters_itself:
            ENTERS_ITSELF.update(functions)
        DECOMPOSED.update(dict.fromkeys(functions, ours))
        return ours

    return register


class Memory:
    """What images have in common of which one is a view of the other."""

    is_copy = False
    """Whether they are a copy of what in torch is a view of another image."""

    def __init__(self):
        self.parts: list[weakref.ref[Memory]] = []
        """That of such copies."""

    def copied_to(self, part: "Memory") -> None:
        part.is_copy = True
        self.parts = [other for other in self.parts if other() is not None] + [weakref.ref(part)]


class SpatialTensor(torch.Tensor):
    """An image divided over `mesh`; `local` is this rank's shard, `size` are rows and columns of the whole image.

    `axes` are the dimensions of rows and columns; by default the last two. Raises ValueError if the shape of `local` is
    not that of this rank's rectangle.
    """

    stands_for = "an image"
    local: torch.Tensor
    mesh: Mesh | Tile
    axes: tuple[int, int]
    image_size: tuple[int, int]
    """Rows and columns of the whole image."""
    rectangle: Rectangle
    """What `local` is of the image, in global rows and columns."""
    memory: "Memory"
    """What it shares with its views."""
    _shape: torch.Size

    @staticmethod
    def __new__(
        cls,
        local: torch.Tensor,
        size: tuple[int, int],
        mesh: Mesh | Tile,
        axes: tuple[int, int] = (-2, -1),
        rectangle: Rectangle | None = None,
    ):
        rows, columns = (axis % local.dim() for axis in axes)
        rectangle = rectangle or mesh.rectangle(size)
        held = local.shape[rows], local.shape[columns]
        if held != rectangle.shape:
            raise ValueError(f"{mesh!r} owns {rectangle.shape} of an image of {tuple(size)}, not {held}")
        shape = list(local.shape)
        shape[rows], shape[columns] = size
        # That it asks for a gradient, which nothing here gives it, shows what went past us: see `refuse_lost_gradient`.
        self = make_stand_in(
            cls,
            shape,
            dtype=local.dtype,
            device=local.device,
            requires_grad=local.is_floating_point() or local.is_complex(),
        )
        set_hooks(self, WATCHING)
        self.local = local
        self.mesh = mesh
        self._shape = torch.Size(shape)
        self.axes = rows, columns
        self.image_size = shape[rows], shape[columns]
        self.rectangle = rectangle
        self.memory = Memory()
        return self

    # What is asked most often is answered here: torch would call `__torch_function__` each time.
    @property
    def shape(self) -> torch.Size:  # type: ignore[override]  # torch declares attributes
        """Of the whole image."""
        return self._shape

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """Of its pixels."""
        return self.local.dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where this rank's shard is."""
        return self.local.device

    def dim(self) -> int:
        """How many dimensions it has."""
        return len(self._shape)

    @property
    def batch(self) -> int:
        """How many images it is."""
        return 1 if 0 in self.axes else self.shape[0]

    @property
    def requires_grad(self) -> bool:
        return self.local.requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.local.requires_grad = value

    def requires_grad_(self, requires_grad: bool = True) -> "SpatialTensor":
        self.local.requires_grad_(requires_grad)
        return self

    @property
    def is_leaf(self) -> bool:  # type: ignore[override]  # torch declares an attribute
        return self.local.is_leaf

    def retain_grad(self) -> None:
        self.local.retain_grad()

    def register_hook(self, hook: Callable) -> torch.utils.hooks.RemovableHandle:
        """As of any tensor: `hook` gets the image's gradient, of the mean loss, as an image."""
        description = self.image_size, self.mesh, self.axes, self.rectangle  # not this image, which would keep itself

        def of_shard(grad: torch.Tensor) -> torch.Tensor | None:
            changed = hook(SpatialTensor(grad, *description))
            return None if changed is None else changed.local

        return self.local.register_hook(of_shard)

    @property
    def grad(self) -> "SpatialTensor | None":
        """The gradient of the mean loss, decomposed alike."""
        return None if self.local.grad is None else self.with_local(self.local.grad)

    @grad.setter
    def grad(self, value: torch.Tensor | None) -> None:
        if not isinstance(value, SpatialTensor | None):
            raise TypeError("the gradient of a decomposed image is one, too, or None")
        self.local.grad = None if value is None else value.local

    def __deepcopy__(self, memo: dict) -> "SpatialTensor":
        return self.with_local(copy.deepcopy(self.local, memo))

    def __reduce_ex__(self, protocol):
        raise NotDecomposed("saving a decomposed image", "save gigapipe.spatial.gather(x), or its local")

    def with_local(self, local: torch.Tensor, axes: tuple[int, int] | None = None) -> "SpatialTensor":
        """Another tensor of the same image size over the same mesh."""
        other = SpatialTensor(local, self.image_size, self.mesh, axes or self.axes, self.rectangle)
        if memory_of(local) == memory_of(self.local):
            other.memory = self.memory
        return other

    def dimension(self, dim: int) -> int:
        """`dim`, counted from the first; IndexError where there is none, as torch does."""
        if not -self.dim() <= dim < self.dim():
            raise IndexError(
                f"Dimension out of range (expected to be in range of [{-self.dim()}, {self.dim() - 1}], but got {dim})"
            )
        return dim % self.dim()

    def refuse_change(self, name: str) -> None:
        """Raise NotDecomposed if a change in place would not reach all that sees this image in torch."""
        if self.memory.is_copy:
            raise NotDecomposed(f"{name} of a part of an image", "use it without in-place")
        if any(part() is not None for part in self.memory.parts):
            raise NotDecomposed(f"{name} of an image of which a part is still in use", "do without in-place")

    def __repr__(self) -> str:  # type: ignore[override]  # torch's is told contents by torch alone
        return f"SpatialTensor(shape={tuple(self.shape)}, local={tuple(self.local.shape)}, mesh={self.mesh!r})"

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if any(getattr(kind, "takes_precedence", False) for kind in types):
            return NotImplemented
        if function in METADATA:
            with without_torch_function():
                return function(*args, **kwargs)
        if function not in DECOMPOSED:
            give_way_to_compiler()
            raise NotDecomposed(
                f"{name_of(function)} has no decomposed form, and would be wrong on a part of an image",
                "use an operation that has one (docs/operations.md lists them), or apply it after global pooling or to "
                "gigapipe.spatial.gather(x)",
            )
        images = list(_spatial((*args, *kwargs.values())))
        for x in images:
            refuse_lost_gradient(x)
        ours = DECOMPOSED[function]
        if function not in ENTERS_ITSELF:
            args, kwargs = entered(args, kwargs, images[0].mesh, SpatialTensor)
        args, kwargs = spelled(args, kwargs)
        try:
            _signature(ours).bind(*args, **kwargs)
        except TypeError as error:
            raise NotDecomposed(f"{name_of(function)}: {error}", "docs/operations.md lists all operations") from None
        return ours(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):  # type: ignore[override]  # torch's is no method
        raise NotDecomposed(
            f"{function} reached a shard below torch's Python functions", "give it gigapipe.spatial.gather(x)"
        )


def spelled(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """A call's arguments, by the names that decomposed forms have for them."""
    kwargs = {_SPELLINGS.get(name, name): value for name, value in kwargs.items()}
    if "input" in kwargs and not args:
        args = (kwargs.pop("input"),)
    return args, kwargs


_SPELLINGS = {"axis": "dim", "keepdims": "keepdim"}
_signature = functools.cache(inspect.signature)


def index_of(image: SpatialTensor, inner: Rectangle, outer: Rectangle) -> tuple:
    """Where `inner` lies in a tensor laid out as `image` that holds `outer`."""
    index = [slice(None)] * image.dim()
    for axis, part in zip(image.axes, inner.within(outer), strict=True):
        index[axis] = part
    return tuple(index)


def cropped(x: SpatialTensor, rectangle: Rectangle) -> SpatialTensor:
    """What of an image, or of a tile, lies in `rectangle`."""
    (above, below), (left, right) = (
        (held.start - kept.start, kept.stop - held.stop) for held, kept in zip(x.rectangle, rectangle, strict=True)
    )
    local = resized(x.local.movedim(x.axes, (-2, -1)), (left, right, above, below)).movedim((-2, -1), x.axes)
    return SpatialTensor(local, x.image_size, x.mesh, x.axes, rectangle)


def entered(args: tuple, kwargs: dict, mesh: Mesh | Tile, image: type) -> tuple[tuple, dict]:
    """A call's arguments, whose plain tensors meet an `image` over `mesh`."""
    if mesh.size == 1 or (isinstance(mesh, Tile) and mesh.out):  # a tile's have entered when they were recorded
        return args, kwargs
    leaves, structure = tree_flatten((args, kwargs))
    places = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor) and not isinstance(x, image)]
    if places:
        for i, x in zip(places, enter([leaves[i] for i in places], mesh), strict=True):
            leaves[i] = x
        args, kwargs = tree_unflatten(leaves, structure)
    return args, kwargs


def _spatial(values) -> Iterator[SpatialTensor]:
    """The decomposed images among arguments, lists of them included."""
    for value in values:
        if isinstance(value, SpatialTensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _spatial(value)


def refuse_gradient_of_stand_in(_: torch.Tensor) -> None:
    """A hook on what stands for an image: a gradient that reaches it does not reach the image itself."""
    raise NotDecomposed(
        "a custom autograd.Function or a reentrant checkpoint made a plain tensor of an image, and loses the gradient",
        "use torch's operations, or checkpoint(…, use_reentrant=False)",
    )


WATCHING = OrderedDict({0: refuse_gradient_of_stand_in})
"""The hooks of what stands for an image."""


def refuse_lost_gradient(x: torch.Tensor) -> None:
    """Raise NotDecomposed if `x` comes from a custom autograd.Function.

    Such run without gradients and hand `x` on as if it had one of their making, which never reaches the shard.
    """
    with without_torch_function():
        node = x.grad_fn
    if node is not None and node.name() == OF_FULLY_SHARD:
        raise NotDecomposed(
            "FSDP (fully_shard) would shard weights of which all ranks of an image need the whole",
            "give each rank all weights; for more images at a time, use Mesh(data=…) or DistributedDataParallel",
        )
    if node is not None:
        raise NotDecomposed(
            f"{node.name()}, a custom autograd.Function or a reentrant checkpoint, would lose the gradient",
            "use torch's operations, or checkpoint(…, use_reentrant=False)",
        )
