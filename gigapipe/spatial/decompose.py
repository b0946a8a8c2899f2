"""One call that makes an untouched model train on images decomposed over a mesh."""

import functools

import torch
from torch import nn

from gigapipe.spatial.gradients import average_gradients
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.recording import Recorded
from gigapipe.spatial.tensor import LAYERS, NotDecomposed, SpatialTensor, refuse_lost_gradient


def decompose(model: nn.Module, mesh: Mesh) -> nn.Module:
    """Make `model` run on images decomposed over `mesh`, with the gradients of the undivided images; returns it.

    The model's layers, parameters and `state_dict` stay what they are. On every rank its weights and buffers become
    those of rank 0; give it `SpatialTensor`s (see `shard`); and when `loss.backward()` returns, every `.grad` is that
    of the mean loss over all images of the mesh, so any optimiser on every rank keeps the weights equal. Gradients
    may be accumulated over several backward passes. `torch.utils.checkpoint` and autocast work as they do on a whole
    image. An operation that has no decomposed form raises NotDecomposed, which names the layer.

    Random numbers that a model draws itself (stochastic depth, dropout of pooled features) are the undivided model's
    only if the ranks of an image have drawn alike: seed them alike.
    """
    parameters = list(model.parameters())
    for tensor in (*parameters, *model.buffers()):
        _share(tensor, mesh)
    for name, module in model.named_modules():
        module.register_forward_pre_hook(functools.partial(_enter, name, mesh))
        module.register_forward_hook(_leave, always_call=True)
    synchronise_as_batch_norm(model)
    if mesh.size > 1:
        averaging = _Averaging(parameters, mesh)
        model.register_forward_pre_hook(averaging.watch)
    return model


def synchronise_as_batch_norm(model: nn.Module) -> None:
    """Let SyncBatchNorm run as BatchNorm, which over a mesh is the same: its own forward wants a GPU and all ranks."""
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.forward = functools.partial(nn.BatchNorm2d.forward, module)


@torch.no_grad()
def _share(tensor: torch.Tensor, mesh: Mesh) -> None:
    """Rank 0's values, to all: a sum in which the others are zero, so that no rounding comes in."""
    if mesh.size > 1:
        mine = tensor.detach().contiguous().clone() if mesh.rank == 0 else torch.zeros_like(tensor).contiguous()
        mesh.everyone.sum_(mine.view(-1).view(torch.uint8))  # byte by byte, so that any dtype may come
        tensor.copy_(mine)


class _Averaging:
    """Called for each gradient as it is complete; averages them all once, when the backward pass ends."""

    def __init__(self, parameters: list[nn.Parameter], mesh: Mesh):
        self.parameters, self.mesh, self.awaited = parameters, mesh, False
        self.watched: set[nn.Parameter] = set()

    def watch(self, module: nn.Module, inputs: tuple) -> None:
        """Before each forward pass: parameters may have been unfrozen."""
        for parameter in self.parameters:
            if parameter.requires_grad and parameter not in self.watched:
                parameter.register_post_accumulate_grad_hook(self)
                self.watched.add(parameter)

    def __call__(self, _: torch.Tensor) -> None:
        if not self.awaited:
            self.awaited = True
            torch.autograd.Variable._execution_engine.queue_callback(self._average)

    def _average(self) -> None:
        self.awaited = False
        average_gradients(self.parameters, self.mesh)


def _enter(name: str, mesh: Mesh, module: nn.Module, inputs: tuple) -> None:
    LAYERS.append(name or type(module).__name__)
    plain = inputs and isinstance(inputs[0], torch.Tensor) and not isinstance(inputs[0], SpatialTensor | Recorded)
    if plain and mesh.data > 1 and module.training and isinstance(module, nn.modules.batchnorm._BatchNorm):
        raise NotDecomposed(
            "BatchNorm of pooled features over several data ranks would see one rank's batch alone",
            "normalise before pooling, or use a mesh with data = 1",
        )


def _leave(module: nn.Module, inputs: tuple, output) -> None:
    try:
        if isinstance(output, SpatialTensor | Recorded):
            refuse_lost_gradient(output)
    finally:
        LAYERS.pop()
