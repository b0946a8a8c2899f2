"""Gradients of images and for images, asked for by torch's own functions: an image's are those of the mean loss."""

import torch

from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.pooled import averaging
from gigapipe.spatial.tensor import SpatialTensor, decomposes
from gigapipe.spatial.torch_internals import tree_map


def _tuple(x) -> tuple:
    return tuple(x) if isinstance(x, tuple | list) else () if x is None else (x,)


def _shards(x):
    return tree_map(lambda a: a.local if isinstance(a, SpatialTensor) else a, x)


def _beginning_at(outputs, inputs):
    """The context of a backward pass: one that begins at plain tensors sees to itself."""
    images = [x for x in _tuple(outputs) if isinstance(x, SpatialTensor)]
    mesh = next(x.mesh for x in (*images, *_tuple(inputs)) if isinstance(x, SpatialTensor))
    assert isinstance(mesh, Mesh)  # images over tiles do not leave their segment
    return averaging([x.local for x in images], mesh, images=True)


@decomposes(torch.autograd.grad, enters_itself=True)
def grad(outputs, inputs, grad_outputs=None, **kwargs):
    with _beginning_at(outputs, inputs):
        found = torch.autograd.grad(_shards(outputs), _shards(_tuple(inputs)), _shards(grad_outputs), **kwargs)
    pairs = zip(_tuple(inputs), found, strict=True)
    return tuple(x.with_local(g) if isinstance(x, SpatialTensor) and g is not None else g for x, g in pairs)


@decomposes(torch.autograd.backward, enters_itself=True)
def backward(
    tensors, grad_tensors=None, retain_graph=None, create_graph=False, grad_variables=None, inputs=None
) -> None:
    given = None if inputs is None else _shards(_tuple(inputs))
    with _beginning_at(tensors, inputs):
        torch.autograd.backward(_shards(tensors), _shards(grad_tensors), retain_graph, create_graph, inputs=given)


@decomposes(torch.Tensor.backward, enters_itself=True)
def backward_of_one(x, gradient=None, retain_graph=None, create_graph=False, inputs=None) -> None:
    backward(x, gradient, retain_graph, create_graph, inputs=inputs)
