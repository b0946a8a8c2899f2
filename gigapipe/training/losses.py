"""What segmentation is trained on and measured by. Depends on torch alone: plans are made with it, too."""

import torch
import torch.nn.functional as F


def dice_and_cross_entropy(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy plus 1 − Dice, of logits and a mask (0 or 1), both (batch, 1, rows, columns).

    Dice is that of probabilities ("soft", Milletari et al., 3DV 2016, arXiv:1606.04797), over the whole batch; it is 1
    where there is nothing and nothing was found.
    """
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    each, found = F.binary_cross_entropy_with_logits(logits, mask, reduction="none"), logits.sigmoid()
    # One sum of all: a streamed image is gone through once.
    entropy, both, ours, theirs = torch.cat([each, found * mask, found, mask], 1).sum((0, 2, 3))
    return entropy / mask.numel() + 1 - (2 * both + 1) / (ours + theirs + 1)


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
