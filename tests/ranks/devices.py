"""Where ranks compute on a host whose ranks all see one GPU, of which torch tells and which is not there."""

import json
import sys
import time
import types

import torch

from gigapipe.cli.messages import log_to_stderr
from gigapipe.training.ranks import started

torch.cuda.device_count = lambda: 1
torch.cuda.set_device = lambda device: None
torch.cuda.get_device_name = lambda device: "a GPU"
torch.cuda.get_device_properties = lambda device: types.SimpleNamespace(uuid="the only one")

log_to_stderr()
with started(1, 2, 1, device=sys.argv[1]) as mesh:
    if mesh.rank == 0:
        carriers = getattr(mesh.everyone, "carriers", {})
        print(json.dumps({"device": str(mesh.device), "carrier": carriers.get("cuda", "mpi")}))
time.sleep(0.5)  # gloo's threads are still ending: a process that ends before them aborts
