"""The optimiser: torch's AdamW, started without torch's compiler."""

from typing import Any

import torch


def _unwrapped(method: Any) -> Any:
    return method.__wrapped__


class AdamW(torch.optim.AdamW):
    """torch's own, to the bit. These methods of it import torch's compiler before they do their work.

    That is a third of what a rank's start takes, and some 1,500 files for each rank of a cluster to open; they are
    taken without what torch wraps around them for compiled code, of which there is none here.
    """

    step = torch.no_grad()(_unwrapped(torch.optim.AdamW.step))
    add_param_group = _unwrapped(torch.optim.AdamW.add_param_group)
    zero_grad = _unwrapped(torch.optim.AdamW.zero_grad)
    state_dict = _unwrapped(torch.optim.AdamW.state_dict)
    load_state_dict = _unwrapped(torch.optim.AdamW.load_state_dict)
