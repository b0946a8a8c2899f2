"""What is refused, and how: one line that names the layer, the operation and a way out."""

import functools
from collections.abc import Callable
from types import MethodWrapperType
from typing import ParamSpec

import torch

P = ParamSpec("P")

LAYERS: list[str] = []
"""Names of the decomposed model's layers that are running, outermost first (see `decompose.py`)."""


PACKAGE = "gigapipe.spatial: "


def where() -> str:
    """How a message begins: with the layer that is running, if one is."""
    return f"{PACKAGE}in layer {LAYERS[-1]}: " if LAYERS and LAYERS[-1] else PACKAGE


class NotDecomposed(NotImplementedError):
    """An operation that would be wrong on a shard; says which, in which layer, and what to do."""

    def __init__(self, what: str, instead: str, name_layer: bool = True):
        super().__init__(f"{where() if name_layer else PACKAGE}{what}; {instead}")


def name_of(function: Callable) -> str:
    """What a user knows a torch function by."""
    if isinstance(function, MethodWrapperType):  # __get__ or __set__ of a property of Tensor
        return f"Tensor.{getattr(function.__self__, '__name__', 'a property')}"
    if isinstance(function, torch.ScriptMethod | torch.ScriptFunction):
        return f"{function.name} of a scripted module (torch.jit; its module before that may have one)"
    name: str = getattr(function, "__qualname__", "") or getattr(function, "__name__", str(function))
    if name.endswith("<locals>.fn"):  # one of two by an argument: max_pool2d, with or without indices
        name = next(name for name, found in vars(torch.nn.functional).items() if found is function)
    return name.replace("TensorBase.", "Tensor.").replace("_VariableFunctionsClass.", "")


def changes_by_name(function: Callable) -> bool:
    """Whether a function's name says that it changes its first argument in place."""
    name = name_of(function).rpartition(".")[2]
    trailing = name.endswith("_") and not name.endswith("__")
    return trailing or name == "__setitem__" or (name.startswith("__i") and name != "__invert__")


class _Refused(torch.autograd.Function):
    """Gradients that have none of their own; the first input, which asks for one, keeps this in the graph."""

    @staticmethod
    def forward(ctx, anchor: torch.Tensor, *grads: torch.Tensor):
        return tuple(grad.view_as(grad) for grad in grads)

    @staticmethod
    def backward(ctx, *_):
        raise NotDecomposed(
            "a gradient of a gradient (create_graph=True) of a decomposed or streamed image",
            "use first-order gradients, or one rank and an image that is held",
        )


def once_differentiable(backward: Callable[P, object]) -> Callable[P, object]:
    """For the `backward` of a Function, as torch's decorator of this name; to differentiate it again is refused.

    torch's own lets gradients of gradients be lost where what arrives is a constant.
    """

    @functools.wraps(backward)
    def first_order(*args: P.args, **kwargs: P.kwargs) -> object:
        with torch.no_grad():
            results = backward(*args, **kwargs)
        if not torch.is_grad_enabled():
            return results
        results = list(results) if isinstance(results, tuple) else [results]
        found = [i for i, grad in enumerate(results) if grad is not None]
        if found:
            anchor = torch.zeros((), requires_grad=True)
            for i, grad in zip(found, _Refused.apply(anchor, *(results[i] for i in found)), strict=True):
                results[i] = grad
        return tuple(results)

    return first_order
