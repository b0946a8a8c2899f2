"""One call after which a model trains on images that are divided over a mesh."""

import functools
from collections.abc import Iterator

import torch
from torch import nn

from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.pooled import refuse_batch_norm
from gigapipe.spatial.recording import Recorded
from gigapipe.spatial.refusals import LAYERS
from gigapipe.spatial.tensor import SpatialTensor, refuse_lost_gradient
from gigapipe.spatial.torch_internals import AnyBatchNorm, remove_forward_hooks

MESSAGE = 2**26
"""Bytes that ranks are told at a time."""


def decompose(model: nn.Module, mesh: Mesh) -> nn.Module:
    """Prepare `model` for images divided over `mesh`, with the gradients of the undivided images; returns the model.

    The model's layers, parameters and `state_dict` stay the same. Weights and buffers of all ranks are set to those of
    rank 0. Apply the model, or any part of it, to `SpatialTensor`s (see `shard`). Gradients, however they are computed,
    are those of the mean loss over all images of the mesh (see `gradients.py`), so that with the same optimiser on
    every rank the weights stay equal. An operation without a decomposed form raises NotDecomposed, which names the
    layer.

    Random numbers of the model (stochastic depth, dropout of pooled features) must be the same on all ranks of an
    image: use the same seed, otherwise the backward pass raises NotDecomposed.
    """
    mesh.agree([(name, tuple(p.shape), p.dtype) for name, p in model.named_parameters()])
    _share([*model.parameters(), *model.buffers()], mesh)
    recompose(model)
    for name, module in model.named_modules():
        module.register_forward_pre_hook(functools.partial(_enter, name, mesh.data))
        module.register_forward_hook(_leave, always_call=True)
    synchronise_as_batch_norm(model)
    return model


def recompose(model: nn.Module) -> nn.Module:
    """Undo `decompose`: remove what it added to the layers, keep the weights; returns the model.

    The model can be applied to undivided images, and run without ranks, before and after.
    """
    for module in model.modules():
        remove_forward_hooks(module, lambda hook: getattr(hook, "func", hook) in (_enter, _leave))
        if isinstance(module, nn.SyncBatchNorm):
            vars(module).pop("forward", None)
    return model


def synchronise_as_batch_norm(model: nn.Module) -> None:
    """Let SyncBatchNorm run as BatchNorm, which over a mesh is the same: its own forward wants a GPU and all ranks."""
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            vars(module)["forward"] = functools.partial(AnyBatchNorm.forward, module)


@torch.no_grad()
def _share(tensors: list[torch.Tensor], mesh: Mesh) -> None:
    """Rank 0's values, to all: few sums in which the others are zero, so that no rounding comes in."""
    if mesh.size == 1:
        return
    for few in _together(tensors):
        # Byte by byte, so that any dtype may come. Those of long words first: each then begins at a whole word.
        few.sort(key=lambda tensor: -tensor.element_size())
        bytes_of = [tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in few]
        mine = torch.cat(bytes_of)
        mesh.everyone.sum_(mine if mesh.rank == 0 else mine.zero_())
        for tensor, part in zip(few, mine.split([len(own) for own in bytes_of]), strict=True):
            tensor.copy_(part.view(tensor.dtype).view(tensor.shape))


def _together(tensors: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Tensors of one device, as many at a time as make a message of `MESSAGE` bytes; none is empty."""
    for device in dict.fromkeys(tensor.device for tensor in tensors):
        few: list[torch.Tensor] = []
        for tensor in tensors:
            if tensor.device == device and tensor.numel():
                few.append(tensor)
                if sum(one.nbytes for one in few) >= MESSAGE:
                    yield few
                    few = []
        if few:
            yield few


def _enter(name: str, data_ranks: int, module: nn.Module, inputs: tuple) -> None:
    LAYERS.append(name or type(module).__name__)
    plain = inputs and isinstance(inputs[0], torch.Tensor) and not isinstance(inputs[0], SpatialTensor | Recorded)
    if plain and data_ranks > 1 and isinstance(module, AnyBatchNorm):
        refuse_batch_norm(inputs[0], None, None, training=module.training)


def _leave(module: nn.Module, inputs: tuple, output) -> None:
    try:
        if isinstance(output, SpatialTensor | Recorded):
            refuse_lost_gradient(output)
    finally:
        if LAYERS:  # another hook may have raised before ours was called
            LAYERS.pop()
