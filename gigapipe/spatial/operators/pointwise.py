"""Pixelwise operations: a rank needs only its own shard."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from gigapipe.spatial.refusals import changes_by_name
from gigapipe.spatial.tensor import DECOMPOSED, NotDecomposed, SpatialTensor, name_of


def aligned(x: SpatialTensor, other: torch.Tensor, name: str) -> torch.Tensor:
    """What of `other` meets this rank's shard of `x` when torch broadcasts the two.

    A plain tensor is the same on every rank: where it is as large as the image, this rank takes its rectangle.
    """
    places = [axis - x.dim() for axis in x.axes]  # broadcasting counts from the last dimension
    if isinstance(other, SpatialTensor):
        if other.image_size != x.image_size or [axis - other.dim() for axis in other.axes] != places:
            raise NotDecomposed(
                f"{name} of images of {tuple(x.shape)} and {tuple(other.shape)}", "bring them to one size"
            )
        return other.local
    for place, size, owned in zip(places, x.image_size, x.rectangle, strict=True):
        if other.dim() < -place or other.shape[place] == 1:
            continue
        if other.shape[place] != size:
            raise NotDecomposed(
                f"{name} of an image of {tuple(x.shape)} and a plain tensor of {tuple(other.shape)}",
                "a plain tensor must be as large as the image, or of size 1, along rows and columns",
            )
        other = other.narrow(place, owned.start, owned.size)
    return other


def pointwise(function: Callable) -> Callable:
    """The decomposed form of a pixelwise function of tensors that broadcast."""
    name = name_of(function)
    always = changes_by_name(function) and name != "Tensor.requires_grad_"

    def ours(*args, **kwargs):
        everything = (*args, *kwargs.values())
        if kwargs.get("out") is not None:
            raise NotDecomposed(f"{name} with out", "take what it returns")
        if always or kwargs.get("inplace"):
            if not isinstance(args[0], SpatialTensor):
                raise NotDecomposed(f"{name} of an image, into a plain tensor", "use it without in-place")
            args[0].refuse_change(name)
        image = max((a for a in everything if isinstance(a, SpatialTensor)), key=lambda a: a.dim())

        def local(a):
            if a is image:
                return a.local
            return aligned(image, a, name) if isinstance(a, torch.Tensor) and a.dim() else a

        result = function(*map(local, args), **{key: local(value) for key, value in kwargs.items()})
        if not isinstance(result, torch.Tensor):  # of `x == None`, say
            return result
        grown = result.dim() - image.local.dim()
        return image.with_local(result, (image.axes[0] + grown, image.axes[1] + grown))

    return ours


_ACTIVATIONS = (
    F.relu, F.relu_, F.relu6, F.leaky_relu, F.leaky_relu_, F.elu, F.elu_, F.selu, F.celu, F.gelu, F.silu, F.mish,
    F.hardtanh, F.hardtanh_, F.hardswish, F.hardsigmoid, F.sigmoid, F.logsigmoid, F.softplus, F.softsign, F.tanh,
    F.tanhshrink, F.hardshrink, F.softshrink, F.threshold,
)  # fmt: skip
# Both as torch.NAME and as Tensor.NAME, where there are both.
_FUNCTIONS = (
    "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "exp", "exp_", "log", "log_", "log1p", "expm1", "sqrt",
    "sqrt_", "rsqrt", "abs", "abs_", "neg", "neg_", "square", "sign", "sin", "cos", "erf", "reciprocal", "clamp",
    "clamp_", "clip", "pow", "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "maximum", "minimum", "where",
    "lerp", "addcmul", "addcdiv", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_not",
    "isnan", "isfinite", "floor", "ceil", "round", "zeros_like", "ones_like", "full_like", "clone", "detach",
    "nan_to_num", "masked_fill", "fill_", "zero_",
)  # fmt: skip
_METHODS = (
    "__add__", "__radd__", "__iadd__", "__sub__", "__rsub__", "__isub__", "__mul__", "__rmul__", "__imul__",
    "__truediv__", "__rtruediv__", "__itruediv__", "__pow__", "__rpow__", "__neg__", "__abs__", "__eq__", "__ne__",
    "__lt__", "__le__", "__gt__", "__ge__", "__and__", "__or__", "__invert__", "float", "double", "half", "bfloat16",
    "bool", "int", "long", "contiguous", "requires_grad_",
)  # fmt: skip

for _function in (
    *_ACTIVATIONS,
    *(getattr(torch, name) for name in _FUNCTIONS if hasattr(torch, name)),
    *(getattr(torch.Tensor, name) for name in _FUNCTIONS + _METHODS if hasattr(torch.Tensor, name)),
):
    DECOMPOSED[_function] = pointwise(_function)


def _to(x, *args, **kwargs):
    def plain(a):  # what another tensor stands for here is its dtype and device
        return torch.empty(0, dtype=a.dtype, device=a.device) if isinstance(a, SpatialTensor) else a

    given, options = [plain(a) for a in args], {name: plain(a) for name, a in kwargs.items()}
    return x.with_local(x.local.to(*given, **options)) if isinstance(x, SpatialTensor) else x.to(*given, **options)


DECOMPOSED[torch.Tensor.to] = DECOMPOSED[torch.Tensor.type_as] = _to


def _prelu(x, weight):
    if 1 in x.axes:
        raise NotDecomposed("prelu of an image whose channels are not its second dimension", "permute it back")
    return x.with_local(F.prelu(x.local, weight))


DECOMPOSED[F.prelu] = DECOMPOSED[torch.prelu] = _prelu
