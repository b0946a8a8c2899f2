"""Run under mpiexec: each rank's rectangle of a canvas, under each symmetry, against the whole canvas. Prints JSON."""

import json
import sys

import pandas as pd
import torch
from mpi4py import MPI

from gigapipe.pyramids.canvas import read_canvas
from gigapipe.training.canvases import Canvases
from gigapipe.training.ranks import started

pyramids, slide, label = sys.argv[1:]
SIZE, MPP = 53, 8.0  # odd, so that the ranks' rectangles differ in shape

with started(1, 2, 2, threads=1) as mesh:
    table = pd.DataFrame({"slide": [slide], "label": [label]})
    canvases = Canvases(table, pyramids, MPP, SIZE, [label], mesh)
    whole = torch.from_numpy(read_canvas(canvases.pyramids[0], MPP, SIZE)).float()
    for symmetry in range(8):
        image, labels = canvases.batch([0], [symmetry])
        expected = whole
        if symmetry & 4:
            expected = expected.transpose(1, 2)
        if symmetry & 2:
            expected = expected.flip(1)
        if symmetry & 1:
            expected = expected.flip(2)
        rows, columns = mesh.rectangle((SIZE, SIZE))
        expected = (255 - expected[:, slice(*rows), slice(*columns)]) / 255
        worst = (image.local[0] - expected).abs().max().item()
        worst = MPI.COMM_WORLD.allreduce(worst, MPI.MAX)
        if mesh.rank == 0:
            print(json.dumps({"symmetry": symmetry, "difference": worst}), flush=True)
