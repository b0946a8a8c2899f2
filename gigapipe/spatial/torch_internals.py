"""What of torch is used in spatial/ though torch does not document it: in this file alone.

It was checked with the versions that `CHECKED` names. Whoever moves to another torch looks here first.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch.nn.modules.batchnorm import _BatchNorm as AnyBatchNorm  # noqa: F401
from torch.nn.modules.dropout import _DropoutNd as AnyDropout  # noqa: F401
from torch.utils._python_dispatch import _disable_current_modes as without_modes  # noqa: F401
from torch.utils._pytree import tree_flatten, tree_iter, tree_leaves, tree_map, tree_unflatten  # noqa: F401
from torch.utils.hooks import RemovableHandle

CHECKED = ("2.11", "2.13", "2.14")

OF_FULLY_SHARD = "RegisterPostBackwardFunctionBackward"
"""The name of the node through which FSDP2 hands on what enters a layer whose weights it shards."""

without_torch_function = torch._C.DisableTorchFunctionSubclass
"""The context in which torch's functions take tensors of any class for ordinary ones."""

make_stand_in = torch.Tensor._make_wrapper_subclass
"""Makes a tensor of a class that has a shape, a dtype and a device, and no memory."""


def memory_of(x: torch.Tensor) -> int:
    """The same number for tensors that share memory."""
    return x.untyped_storage()._cdata


def version_of(x: torch.Tensor) -> int:
    """How often a tensor has been changed in place."""
    return 0 if x.is_inference() else x._version


def fake_tensor_mode():
    """The mode in which torch makes tensors that have a shape, a dtype, a device and strides, and no memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # 2 s, which only who streams should wait for

    return FakeTensorMode(allow_non_fake_inputs=True)


def watched_by_modes() -> bool:
    """Whether modes see, or change, what this thread alone calls: other threads' operations would go past them."""
    return torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack() > 0


def counts_of_arithmetic() -> dict:
    """ATen's operation -> what counts its multiplications and additions, for those that torch counts."""
    from torch.utils.flop_counter import flop_registry  # imports Triton, where that is, which only planning needs

    return flop_registry


def fuses(x: torch.Tensor) -> bool:
    """Whether oneDNN can do more than a convolution of this in one call; modes do not know its operations."""
    if x.device.type != "cpu" or watched_by_modes():
        return False
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    if x.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return x.dtype == torch.float32


def fused_convolution(
    x, weight, bias, added, relu: bool, stride: list, padding: list, dilation: list, groups: int
) -> torch.Tensor:
    """A convolution with what is `added` to it, for which `x` must be channels_last, and with `relu` its ReLU."""
    call = torch.ops.mkldnn._convolution_pointwise
    options = padding, stride, dilation, groups
    after = ("relu" if relu else "none"), [], ""
    if added is None:
        return call(x, weight, bias, *options, *after)
    added = added.contiguous(memory_format=torch.channels_last)
    return call.binary(x, added, weight, bias, *options, "add", 1.0, *(after if relu else (None, [], None)))


def made_by(x: torch.Tensor, function: type[torch.autograd.Function]) -> bool:
    """Whether `x` is what a Function returned."""
    return isinstance(x.grad_fn, function._backward_cls)


def first_of_hooks(x: torch.Tensor, hook: Callable[[torch.Tensor], torch.Tensor]) -> RemovableHandle:
    """`x.register_hook`, but the hook is called before those that are there."""
    before = list((x._backward_hooks or {}).items())
    handle = x.register_hook(hook)
    hooks = x._backward_hooks or {}  # which now has one
    for key, other in before:  # autograd goes by the order of insertion alone
        del hooks[key]
        hooks[key] = other
    return handle


def set_hooks(x: torch.Tensor, hooks: "OrderedDict[int, Callable]") -> None:
    """Give a tensor without memory its hooks; `register_hook` would ask it things that its class answers otherwise."""
    with without_torch_function():
        x._backward_hooks = hooks


def has_memory_to_itself(x: torch.Tensor) -> bool:
    """Whether nobody else can see it if `x`, which autograd handed to a backward function, is changed in place.

    Of an expanded one, its own numbers can.
    """
    if any(stride == 0 for stride in x.stride()):
        return False
    if not hasattr(x, "_use_count"):  # of a torch that does not tell
        return False
    count = torch._C._storage_Use_Count
    return x._use_count() == 1 and count(memory_of(x)) <= 2  # one is of the storage's Python object


def number_of_backward_pass() -> int:
    """Which backward pass this thread is in, of all since the process began; -1: in none."""
    return torch._C._current_graph_task_id()


def give_way_to_compiler() -> None:
    """If torch.compile is looking at an image, tell it that this is not for it, so that what it has runs as it is."""
    if "torch._dynamo" in sys.modules and torch._guards.TracingContext.try_get() is not None:
        from torch._dynamo import trace_rules
        from torch._dynamo.exc import unimplemented

        trace_rules.add(str(__package__))
        unimplemented(
            gb_type="decomposed image",
            context="gigapipe.spatial",
            explanation="Operations on decomposed images are not compiled; they run as they are.",
            hints=[],
        )


def remove_forward_hooks(module: torch.nn.Module, which: Callable[[Callable], bool]) -> None:
    """Remove those of a module's forward hooks, before and after, that `which` says."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if which(hook)]:
            del hooks[key]
            module._forward_hooks_always_called.pop(key, None)
