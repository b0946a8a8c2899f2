"""Loss scaling: float16 rounds what is smaller than 6e-8 to zero, and a gigapixel image's gradients are.

As torch.amp.GradScaler has it (Micikevicius et al., ICLR 2018, arXiv:1710.03740), with its factors, but decided by all
ranks together, and known on the host: a step with a gradient that is not finite on one rank is skipped on all.
"""

import torch

from gigapipe.errors import InputError
from gigapipe.spatial import Mesh

BEGINNING = 2.0**16
LEAST = 2.0**-16
"""A factor below which it is not for float16 that gradients are not finite."""
GROWS_AFTER = 2000
"""Steps without an overflow after which the factor is doubled."""


class LossScale:
    """The factor of a training's losses, by which gradients are divided before the optimiser sees them.

    It is in `held`, which goes into checkpoints, with how many steps were made since it changed, and how many were
    skipped in all; an empty dictionary is filled. Powers of two round nothing.
    """

    def __init__(self, held: dict[str, float]):
        self.held = held
        if not held:
            held |= {"factor": BEGINNING, "steps_since_change": 0, "steps_skipped": 0}

    @property
    def factor(self) -> float:
        return self.held["factor"]

    def unscale(self, gradients: list[torch.Tensor], overflow: bool) -> bool:
        """Whether the step is to be made; then `gradients` are those of the loss. The factor of the next one is set.

        Raises InputError if the factor has come down to `LEAST`.
        """
        if overflow:
            if self.factor <= LEAST:
                raise InputError(
                    f"precision float16: gradients are not finite, though the loss is scaled by {self.factor:g}; lower "
                    "the learning rate, or use precision float32"
                )
            self.held |= {"factor": self.factor / 2, "steps_since_change": 0}
            self.held["steps_skipped"] += 1
            return False
        torch._foreach_div_(gradients, self.factor)
        self.held["steps_since_change"] += 1
        if self.held["steps_since_change"] == GROWS_AFTER:
            self.held |= {"factor": 2 * self.factor, "steps_since_change": 0}
        return True


def overflow(gradients: list[torch.Tensor], mesh: Mesh) -> bool:
    """Whether a gradient of one of the ranks is not finite. The host waits for its GPU."""
    mine = ~torch.nn.utils.get_total_norm(gradients).isfinite()
    return mesh.everyone.sum_(mine.to(mesh.device, torch.float32)).item() > 0
