"""Run under mpiexec: train without end, until a rank is killed; or, with "hang", until rank 1 stops taking part.

Usage: forever.py TRANSPORT [hang] [FOLDER for failure records]
"""

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from mpi4py import MPI
from torch import nn

from gigapipe.cli.messages import log_to_stderr
from gigapipe.spatial import SpatialTensor, decompose
from gigapipe.training.ranks import TIMEOUT, started

timeout = timedelta(seconds=5) if "hang" in sys.argv else TIMEOUT

failure_records = Path(sys.argv[-1]) if "/" in sys.argv[-1] else None
log_to_stderr()
with started(1, MPI.COMM_WORLD.size, 1, 1, sys.argv[1], timeout, failure_records) as mesh:
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
