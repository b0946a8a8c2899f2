"""Run under mpiexec: train without end, until a rank is killed; or, with "hang", until rank 1 stops taking part.

Usage: forever.py TRANSPORT [hang] [OUTPUT, beside which they leave word]
"""

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import nn

from gigapipe.attempts import Attempts
from gigapipe.cli.messages import log_to_stderr
from gigapipe.spatial import SpatialTensor, decompose
from gigapipe.training.launched import launched
from gigapipe.training.ranks import TIMEOUT, started
from gigapipe.training.stopping import Stop

timeout = timedelta(seconds=5) if "hang" in sys.argv else TIMEOUT

attempts = Attempts(Path(sys.argv[-1])) if "/" in sys.argv[-1] else None
log_to_stderr()
Stop()  # as trainings do, which SIGTERM ends after a step, and so not at all if a rank is waited for that is dead
with started(1, launched(), 1, 1, sys.argv[1], timeout, attempts) as mesh:
    from mpi4py import MPI  # which is initialised by now

    model = decompose(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1)), mesh)
    rows, columns = mesh.rectangle((60, 20))
    for step in range(10**9):
        mesh.phase = f"step {step}"
        if "hang" in sys.argv and mesh.rank == 1 and step == 5:
            time.sleep(60)
        model(SpatialTensor(torch.rand(1, 3, rows.size, columns.size), (60, 20), mesh)).sum().backward()
        if step == 5 and "hang" not in sys.argv:
            pids = MPI.COMM_WORLD.gather(os.getpid())
            if mesh.rank == 0:
                print(json.dumps(pids), flush=True)
