"""What of torch is used here though it is not documented, checked with torch 2.13; `CHECKED` names the versions.

Whoever moves to another torch looks here first.
"""

from collections.abc import Callable

import torch
from torch.utils.hooks import RemovableHandle

CHECKED = ("2.13",)


def first_of_hooks(x: torch.Tensor, hook: Callable[[torch.Tensor], torch.Tensor]) -> RemovableHandle:
    """`x.register_hook`, but the hook is called before those that are there."""
    before = list((x._backward_hooks or {}).items())
    handle = x.register_hook(hook)
    hooks = x._backward_hooks
    for key, other in before:  # autograd goes by the order of insertion alone
        del hooks[key]
        hooks[key] = other
    return handle
