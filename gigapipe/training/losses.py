"""What segmentation is trained on and measured by. Plans are made with it, too."""

import torch
import torch.nn.functional as F
from torch.overrides import wrap_torch_function

from gigapipe.spatial import decomposes
from gigapipe.spatial.gradients import leave
from gigapipe.spatial.operators.pointwise import aligned
from gigapipe.spatial.recording import sums_over_image
from gigapipe.spatial.refusals import once_differentiable


def dice_and_cross_entropy(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy plus 1 − Dice, of logits and a mask (0 or 1), both (batch, 1, rows, columns).

    Dice is that of probabilities ("soft", Milletari et al., 3DV 2016, arXiv:1606.04797), over the whole batch; it is 1
    where there is nothing and nothing was found. ValueError if the mask asks for a gradient: there is none of it.
    """
    if mask.requires_grad:
        raise ValueError("a mask that asks for a gradient: dice_and_cross_entropy has none of it; detach it")
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    entropy, both, ours, theirs = _sums(logits, mask)
    return entropy / mask.numel() + 1 - (2 * both + 1) / (ours + theirs + 1)


@wrap_torch_function(lambda logits, mask: (logits, mask))  # so that torch asks images what it means
def _sums(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sums over all pixels (4,), in the logits' dtype: binary cross-entropy, probability × mask, probability, mask.

    Logits and mask are as in `dice_and_cross_entropy`.
    """
    return _Sums.apply(logits, mask, True)


@decomposes(_sums)
def _(logits, mask, valued=True):
    mine = aligned(logits, mask, "dice_and_cross_entropy")
    return leave(_Sums.apply(logits.local, mine, valued), logits.mesh, logits.batch)


sums_over_image(_sums, takes_valued=True)


class _Sums(torch.autograd.Function):
    """Its gradient is five operations on the logits, and nothing of the sums is computed again for it."""

    @staticmethod
    def forward(ctx, logits: torch.Tensor, mask: torch.Tensor, valued: bool) -> torch.Tensor:
        ctx.save_for_backward(logits, mask)
        if not valued:  # for its gradient alone
            return logits.new_zeros(4)
        each, found = F.binary_cross_entropy_with_logits(logits, mask, reduction="none"), logits.sigmoid()
        sums = logits.new_empty(4)  # of each image by itself: to join them first would write them again
        for i, image in enumerate((each, found * mask, found, mask)):
            torch.sum(image, (0, 1, 2, 3), out=sums[i])
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: torch.Tensor):
        logits, mask = ctx.saved_tensors
        entropy, both, ours, _ = grads[0]
        found = logits.sigmoid()
        of_found = torch.addcmul(ours, mask, both)
        of_logits = torch.ops.aten.sigmoid_backward(of_found, found)
        return of_logits.addcmul_(found.sub_(mask), entropy), None, None


def dice(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The same Dice of what is more likely than not."""
    found = (logits > 0).to(mask.dtype)
    both, ours, theirs = torch.cat([found * mask, found, mask], 1).sum((0, 2, 3))
    return (2 * both + 1) / (ours + theirs + 1)


def dice_and_cross_entropy_of_classes(logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy plus 1 − the mean Dice of the classes but the first, which is what is none of the others.

    Of logits (batch, classes, rows, columns) and the classes' numbers (batch, 1, rows, columns); each class's Dice is
    that of probabilities, as of two classes.
    """
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    truth, log = one_hot(values, logits.shape[1], logits.dtype), F.log_softmax(logits, 1)
    each, found = -(truth * log).sum(1, keepdim=True), log.exp()
    # One sum of all: a streamed image is gone through once.
    sums = torch.cat([each, found * truth, found, truth], 1).sum((0, 2, 3))
    return sums[0] / values.numel() + 1 - _dice(sums[1:])


def dice_of_classes(logits: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The same mean Dice of what is most likely."""
    truth = one_hot(values, logits.shape[1], torch.float32)
    found = one_hot(logits.argmax(1, keepdim=True), logits.shape[1], torch.float32)
    return _dice(torch.cat([found * truth, found, truth], 1).sum((0, 2, 3)))


def one_hot(values: torch.Tensor, classes: int, dtype: torch.dtype) -> torch.Tensor:
    """1 where an image of numbers (batch, 1, rows, columns) has that of the channel: (batch, classes, …)."""
    numbers = torch.arange(classes, device=values.device, dtype=values.dtype).view(1, classes, 1, 1)
    return (values == numbers).to(dtype)


def _dice(sums: torch.Tensor) -> torch.Tensor:
    """The mean Dice of the classes but the first, of sums over what both are, we found, and is true, for each class."""
    both, ours, theirs = sums.view(3, -1)[:, 1:]
    return ((2 * both + 1) / (ours + theirs + 1)).mean()
