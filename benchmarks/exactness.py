"""What other libraries get wrong, and what this one makes of the same cases.

    python benchmarks/exactness.py

Ours is measured now: each case undivided against 1 × 2 and 2 × 2 ranks in float64, the worst of output, every gradient
and running statistics, relative. The other columns were measured in November 2026 on 2 ranks with the image cut along
its columns: torch's DTensor 2.13, LBANN DistConv (commit of 2026-05-26), NVIDIA physicsnemo's ShardTensor 2.2.2, MPI4DL
0.6 (patched to run on CPUs), distdl (2022-01-29, patched to import) and lightstream 1.0.7 (tiles on one device). "=" is
exact, "wrong" is wrong numbers without an error, "error" is a refusal or a crash, "frozen" is in evaluation mode
only, "-" was not tried.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent / "tests"
PEERS = ("DTensor", "DistConv", "ShardTensor", "MPI4DL", "distdl", "lightstream")
CASES = {
    "3x3 convolution": ("wrong", "=", "=", "wrong", "=", "="),
    "two 3x3 convolutions": ("wrong", "=", "=", "wrong", "=", "="),
    "3x3 stride 2": ("wrong", "=", "=", "wrong", "=", "="),
    "7x7 stride 2": ("wrong", "=", "=", "wrong", "=", "="),
    "3x3 stride 2, 62 columns": ("wrong", "error", "wrong", "-", "=", "wrong"),
    "3x3, 63 columns": ("wrong", "error", "=", "-", "=", "-"),
    "4x4 stride 2": ("wrong", "error", "error", "error", "=", "-"),
    "3x3 dilation 2": ("wrong", "error", "=", "wrong", "=", "error"),
    "MaxPool 3/2/1": ("wrong", "wrong", "error", "wrong", "=", "="),
    "BatchNorm": ("wrong", "wrong", "error", "wrong", "-", "frozen"),
    "GroupNorm": ("error", "wrong", "=", "-", "-", "wrong"),
    "3x3 + 1x1 projection": ("-", "error", "=", "-", "-", "-"),
    "reflect": ("-", "error", "=", "-", "-", "error"),
    "circular": ("-", "=", "error", "-", "-", "-"),
    "AvgPool": ("error", "wrong", "error", "-", "-", "="),
    "transposed 3x3 stride 2": ("error", "wrong", "-", "-", "-", "-"),
    "bilinear x2": ("-", "wrong", "=", "-", "-", "-"),
}


def ours(ranks: int) -> dict[str, float]:
    """Each case's error on the meshes of so many ranks; of several meshes the worst."""
    command = ["mpiexec", "-n", str(ranks), sys.executable, "-W", "ignore", str(TESTS / "ranks_operators.py"), "mpi"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    output = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}
    ).stdout
    errors = {}
    for row in map(json.loads, output.splitlines()):
        errors[row["case"]] = max(row["error"], errors.get(row["case"], 0.0))
    return errors


if __name__ == "__main__":
    two, four = ours(2), ours(4)
    print(f"{'':26}{'ours 1 × 2':>12}{'2 × 2':>9} " + "".join(f"{peer:>12}" for peer in PEERS))
    for case, peers in CASES.items():
        print(f"{case:26}{two[case]:12.0e}{four[case]:9.0e} " + "".join(f"{verdict:>12}" for verdict in peers))
    others = [name for name in two if name not in CASES]
    worst = max(max(two[name], four[name]) for name in others)
    print(f"\nand {len(others)} more cases of tests/spatial_models.py, the worst of them {worst:.0e}")
