"""Where plain tensors and images meet: however a gradient comes about, it is that of the undivided images.

Let M be the mean, over the data ranks, of their losses. An image's gradient is M's, and each rank has its shard of it.
A plain tensor is the same on all ranks of an image, and its gradient is that of its data rank's own loss. Two adjoints
lead from one to the other:

- `leave`: an image becomes a plain tensor (pooling, a loss, `gather`). What follows is computed alike on all ranks of
  the image: each has the whole gradient, and takes what belongs to its shard.
- `enter`: a plain tensor meets an image (a weight, a scale made of pooled features). Each rank finds the share of its
  shard, and they are summed. A leaf, which all data ranks have in common, is summed over these, too: it has M's.

So it makes no difference what of a model is called, by whom, and how gradients are asked for. What data ranks have in
common behind the pool is averaged over them: `pooled.py`.
"""

from collections.abc import Iterable, Sequence

import torch

from gigapipe.spatial.late import hooked, late_over
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.pooled import Pooled, across, leaf_of, plain, refuse_unnoticed
from gigapipe.spatial.refusals import NotDecomposed, once_differentiable
from gigapipe.spatial.summing import dense_strides, summed
from gigapipe.spatial.tile import Tile
from gigapipe.spatial.torch_internals import made_by
from gigapipe.spatial.wide import wide

UNLIKE = 1e-2  # relative difference of gradients that no rounding makes


class _Entering(torch.autograd.Function):
    """Plain tensors, as they are. `common` are those that all data ranks have in common."""

    @staticmethod
    def forward(ctx, mesh: Mesh, common: tuple[bool, ...], own_factor: int, *tensors: torch.Tensor):
        ctx.mesh, ctx.common, ctx.own_factor = mesh, common, own_factor
        ctx.strides = [dense_strides(t) for t in tensors]
        ctx.across = across(f"{common}, {[tuple(t.shape) for t in tensors]}", enters=True)
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: torch.Tensor):
        found: list[torch.Tensor | None] = list(grads)
        if ctx.own_factor > 1 and not all(ctx.common):
            refuse_unnoticed(ctx.mesh)
        put_off = set()
        if (late := late_over(ctx.mesh)) is not None:
            for i, (following, _) in enumerate(ctx.next_functions):
                if ctx.common[i] and (leaf := leaf_of(following)) is not None and not hooked(leaf):
                    late.take(leaf, grads[i], ctx.strides[i])
                    found[i] = None
                    put_off.add(i)
        for common, ranks in ((True, ctx.mesh.everyone), (False, ctx.mesh.image)):
            chosen = [i for i, c in enumerate(ctx.common) if c is common and i not in put_off]
            totals = summed([grads[i] for i in chosen], [ctx.strides[i] for i in chosen], ranks)
            for i, total in zip(chosen, totals, strict=True):
                found[i] = total if common or ctx.own_factor == 1 else total.mul_(ctx.own_factor)
        return None, None, None, *found


def is_common_leaf(x: torch.Tensor) -> bool:
    """Whether a plain tensor is one that all data ranks have in common."""
    return x.is_leaf and not isinstance(x, Pooled)


def enter(tensors: Sequence[torch.Tensor | None], mesh: Mesh | Tile) -> list[torch.Tensor | None]:
    """Plain tensors as an operator on an image over `mesh` takes them."""
    if isinstance(mesh, Tile) or mesh.size == 1 or not torch.is_grad_enabled():  # a segment's have entered before
        return [None if t is None else plain(t) for t in tensors]
    wanting = [t for t in tensors if t is not None and t.requires_grad]
    chosen = {id(t): t for t in wanting if not made_by(t, _Entering)}
    if chosen:
        common = tuple(mesh.data == 1 or is_common_leaf(t) for t in chosen.values())
        entered = _Entering.apply(mesh, common, mesh.data, *map(plain, chosen.values()))
        chosen = dict(zip(chosen, entered, strict=True))
    return [None if t is None else chosen.get(id(t), plain(t)) for t in tensors]


def enter_image(whole: torch.Tensor, mesh: Mesh) -> torch.Tensor:
    """A whole image that every rank of it has, before it is cut; the gradient of one that begins here is an image's."""
    if not (mesh.size > 1 and whole.requires_grad and torch.is_grad_enabled()):
        return plain(whole)
    return _Entering.apply(mesh, (False,), 1 if whole.is_leaf else mesh.data, plain(whole))[0]


class _Leaving(torch.autograd.Function):
    """The sum of the shards' parts of it."""

    @staticmethod
    def forward(ctx, part: torch.Tensor, mesh: Mesh, batch: int):
        ctx.mesh, ctx.across = mesh, across("leaves", batch=batch)
        ctx.save_for_backward(part.new_empty(0))  # so that checkpointing comes as far as this on every rank
        return mesh.image.sum_(part.clone(memory_format=torch.contiguous_format))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor):
        (_,) = ctx.saved_tensors
        return of_images(grad, ctx.mesh), None, None


def leave(part: torch.Tensor, mesh: Mesh | Tile, batch: int) -> torch.Tensor:
    """The plain tensor that is the sum of what the ranks of an image made of their shards; `batch` images have it."""
    if isinstance(mesh, Tile):  # whoever goes through the tiles adds up
        return mesh.sum_(part)
    if mesh.size == 1:
        return part
    return Pooled.of(_Leaving.apply(part, mesh, batch), mesh)


def of_images(grad: torch.Tensor, mesh: Mesh) -> torch.Tensor:
    """The gradient of M, given a plain tensor's. Raises NotDecomposed if the ranks of an image have not the same.

    They have not where each drew its own random numbers behind the pool: their weights would drift apart in silence.
    """
    refuse_unnoticed(mesh)
    if mesh.image_ranks > 1:
        flat = (torch.view_as_real(grad) if grad.is_complex() else grad).flatten()
        flat = wide(flat[:: max(1, len(flat) // 2**16)])  # of a whole map, some
        along = flat @ torch.arange(1, len(flat) + 1, dtype=torch.float64, device=flat.device).cos()
        table = torch.stack([along, along.square(), flat.square().sum()])
        mean, square, norm = mesh.image.sum_(table) / mesh.image_ranks
        unlike = (square - mean**2 > UNLIKE**2 * norm).int()
        unlike = mesh.everyone.sum_(unlike) if mesh.data > 1 else unlike  # all refuse if those of one image do
        if bool(unlike > 0):
            raise NotDecomposed(
                "ranks that share an image computed different things of its pooled features",
                "use the same random numbers (torch.manual_seed with one seed) and the same labels on all of them",
            )
    return grad / mesh.data if mesh.data > 1 else grad


def average_gradients(parameters: Iterable[torch.Tensor], mesh: Mesh) -> None:
    """Average `.grad` over all ranks, after `backward()`, on every rank.

    It is for gradients that ranks computed separately. Gradients of parameters that led to, or followed from, an image
    are complete and stay unchanged.
    """
    if mesh.size == 1:
        return
    found = [(p, p.grad) for p in parameters if p.grad is not None]
    totals = summed([grad.clone() for _, grad in found], [dense_strides(p) for p, _ in found], mesh.everyone)
    for (_, grad), total in zip(found, totals, strict=True):
        grad.copy_(total.div_(mesh.size))
