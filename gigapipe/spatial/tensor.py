"""The tensor that knows where it lies: an image decomposed over a mesh, to which any model can be applied.

`SpatialTensor` stands for a whole image (batch, channels, rows, columns) of which this rank holds a rectangle. Its
`shape` is that of the whole image. torch hands every operation on it to `__torch_function__`, which runs the
operation's decomposed form (see `operators.py`) on this rank's shard; an operation that has none raises, and so
does anything that would reach the storage, for there is none. A model's source therefore does not change:

    mesh = Mesh(rows=2)                                  # two ranks, one above the other
    image = SpatialTensor(my_half, (1024, 1024), mesh)
    loss = criterion(model(image), label)                # the logits are plain, equal on both ranks
    loss.backward()
    average_gradients(model.parameters(), mesh)          # now the gradients of the undivided image

Operations that make an image into a vector (global pooling) return a plain tensor, the same on every rank.
"""

import torch

from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.window import Rectangle

# Questions about the whole image that torch answers from the tensor's description alone.
_METADATA = {
    torch.Tensor.size,
    torch.Tensor.dim,
    torch.Tensor.numel,
    torch.Tensor.is_floating_point,
    torch.is_floating_point,
    torch.Tensor.shape.__get__,
    torch.Tensor.ndim.__get__,
    torch.Tensor.dtype.__get__,
    torch.Tensor.device.__get__,
    torch.Tensor.layout.__get__,
    torch.Tensor.is_cuda.__get__,
}


class SpatialTensor(torch.Tensor):
    """An image (…, rows, columns) decomposed over `mesh`; `local` is this rank's shard, `size` the whole's.

    Raises ValueError if `local` has not the shape of the rectangle that the mesh gives this rank.
    """

    local: torch.Tensor
    mesh: Mesh

    @staticmethod
    def __new__(cls, local: torch.Tensor, size: tuple[int, int], mesh: Mesh):
        expected = mesh.rectangle(size).shape
        if tuple(local.shape[-2:]) != expected:
            raise ValueError(f"{mesh!r} owns {expected} of an image of {tuple(size)}, not {tuple(local.shape[-2:])}")
        self = torch.Tensor._make_wrapper_subclass(
            cls, (*local.shape[:-2], *size), dtype=local.dtype, device=local.device
        )
        self.local = local
        self.mesh = mesh
        return self

    @property
    def image_size(self) -> tuple[int, int]:
        """Rows and columns of the whole image."""
        return self.shape[-2], self.shape[-1]

    @property
    def rectangle(self) -> Rectangle:
        """What this rank owns, in global rows and columns."""
        return self.mesh.rectangle(self.image_size)

    @property
    def requires_grad(self) -> bool:
        return self.local.requires_grad

    def with_local(self, local: torch.Tensor) -> "SpatialTensor":
        """Another tensor of the same image size over the same mesh."""
        return SpatialTensor(local, self.image_size, self.mesh)

    def __repr__(self) -> str:
        return f"SpatialTensor(shape={tuple(self.shape)}, local={tuple(self.local.shape)}, mesh={self.mesh!r})"

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in _METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*args, **kwargs)
        from gigapipe.spatial.operators import DECOMPOSED  # operators.py needs this class

        if function not in DECOMPOSED:
            name = getattr(function, "__qualname__", None) or str(function)
            raise NotImplementedError(
                f"gigapipe.spatial has no decomposed form of {name}: it would be wrong on a shard. Use an "
                f"operation that has one ({', '.join(sorted({f.__name__ for f in DECOMPOSED}))}), or apply it after "
                "global pooling."
            )
        return DECOMPOSED[function](*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError(f"gigapipe.spatial: {function} reached a shard below torch's Python functions")
