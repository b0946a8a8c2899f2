"""Losses of dense outputs: of every pixel of the whole image, the same number on every rank that shares it.

A target, or a weight for each pixel, is an image decomposed alike, or a plain whole one of which each rank takes its
rectangle.
"""

from collections.abc import Callable

import torch.nn.functional as F

from gigapipe.spatial.gradients import leave
from gigapipe.spatial.operators.pointwise import aligned, pointwise
from gigapipe.spatial.operators.reductions import returned, summing
from gigapipe.spatial.tensor import NotDecomposed, SpatialTensor, decomposes, name_of
from gigapipe.spatial.wide import narrow, sum_wide


def _reduced(losses: SpatialTensor, reduction: str, count=None):
    """The loss, from that of every pixel; `count` is what a mean divides by, if not their number."""
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f"{reduction} is not a valid value for reduction")  # as torch does
    if reduction == "none":
        return losses
    total = leave(losses.local.sum(dtype=summing(losses.dtype)), losses.mesh, losses.batch)
    if reduction == "mean":
        total = total / (losses.numel() if count is None else count)
    return returned(total, losses.dtype, losses.mesh)


def _elementwise(function: Callable) -> Callable:
    """The decomposed form of a loss that compares input and target entry by entry."""
    each = pointwise(function)

    def ours(*args, reduction="mean", size_average=None, reduce=None, **kwargs):
        if size_average is not None or reduce is not None:
            raise NotDecomposed(f"{name_of(function)} with size_average or reduce", "use reduction")
        if kwargs.get("weight") is not None and function in (F.mse_loss, F.l1_loss):
            raise NotDecomposed(f"{name_of(function)} with weight", "weight the images before they are compared")
        losses = each(*args, reduction="none", **kwargs)
        if reduction == "batchmean" and function is F.kl_div:
            return _reduced(losses, "sum") / losses.shape[0]
        return _reduced(losses, reduction)

    return ours


for _function in (
    F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, F.binary_cross_entropy, F.binary_cross_entropy_with_logits,
    F.kl_div,
):  # fmt: skip
    decomposes(_function)(_elementwise(_function))


def _classes(function: Callable) -> Callable:
    """The decomposed form of a loss of class scores (batch, classes, rows, columns).

    The target holds class indices (batch, rows, columns), or, for cross_entropy, probabilities shaped as the scores.
    """

    def ours(
        x, target, weight=None, size_average=None, ignore_index=-100, reduce=None, reduction="mean", label_smoothing=0.0
    ):
        if size_average is not None or reduce is not None or not isinstance(x, SpatialTensor) or x.axes != (2, 3):
            raise NotDecomposed(
                f"{name_of(function)} with these arguments", "give it decomposed scores (batch, classes, rows, columns)"
            )
        options = {"label_smoothing": label_smoothing} if function is F.cross_entropy else {}
        probabilities = target.is_floating_point()
        if not probabilities:
            options["ignore_index"] = ignore_index
        mine = aligned(x, target, name_of(function))
        losses = SpatialTensor(function(x.local, mine, weight, reduction="none", **options), x.image_size, x.mesh)
        count = None
        if not probabilities and reduction == "mean":
            valid = mine != ignore_index
            weights = valid if weight is None else weight[mine.clamp(0, x.shape[1] - 1)] * valid
            count = narrow(leave(sum_wide(weights), x.mesh, x.batch), x.local)
        return _reduced(losses, reduction, count)

    return ours


decomposes(F.cross_entropy)(_classes(F.cross_entropy))
decomposes(F.nll_loss)(_classes(F.nll_loss))
