"""The optimiser: torch's AdamW, started without torch's compiler."""

import torch


class AdamW(torch.optim.AdamW):
    """torch's own, to the bit. These methods of it import torch's compiler before they do their work.

    That is a third of what a rank's start takes, and some 1,500 files for each rank of a cluster to open; they are
    taken without what torch wraps around them for compiled code, of which there is none here.
    """

    step = torch.no_grad()(torch.optim.AdamW.step.__wrapped__)
    add_param_group = torch.optim.AdamW.add_param_group.__wrapped__
    zero_grad = torch.optim.AdamW.zero_grad.__wrapped__
    state_dict = torch.optim.AdamW.state_dict.__wrapped__
    load_state_dict = torch.optim.AdamW.load_state_dict.__wrapped__
