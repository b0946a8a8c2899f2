"""What segmentation is trained on and measured by. Depends on torch alone: plans are made with it, too."""

import torch
import torch.nn.functional as F


def dice_and_cross_entropy(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy plus 1 − Dice, of logits and a mask (0 or 1), both (batch, 1, rows, columns).

    Dice is that of probabilities ("soft", Milletari et al., 3DV 2016, arXiv:1606.04797), over the whole batch; it is 1
    where there is nothing and nothing was found.
    """
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits
    each, found = F.binary_cross_entropy_with_logits(logits, mask, reduction="none"), logits.sigmoid()
    # One sum of all: a streamed image is gone through once.
    entropy, both, ours, theirs = torch.cat([each, found * mask, found, mask], 1).sum((0, 2, 3))
    return entropy / mask.numel() + 1 - (2 * both + 1) / (ours + theirs + 1)


def dice(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The same Dice of what is more likely than not."""
    found = (logits > 0).to(mask.dtype)
    both, ours, theirs = torch.cat([found * mask, found, mask], 1).sum((0, 2, 3))
    return (2 * both + 1) / (ours + theirs + 1)
