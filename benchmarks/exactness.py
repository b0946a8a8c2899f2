"""What other libraries get wrong, and what this one makes of the same cases.

    python benchmarks/exactness.py

Ours is measured now: each case undivided against 1 × 2 and 2 × 2 ranks in float64, the worst of output, every gradient
and running statistics, relative. The other columns were measured in November 2026 on 2 ranks with the image cut along
its columns: torch's DTensor 2.13, LBANN DistConv (commit of 2026-05-26), NVIDIA physicsnemo's ShardTensor 2.2.2, MPI4DL
0.6 (patched to run on CPUs), distdl (2022-01-29, patched to import) and lightstream 1.0.7 (tiles on one device). "=" is
exact, "wrong" is wrong numbers without an error, "error" is a refusal or a crash, "frozen" is in evaluation mode
only, "-" was not tried.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from launching import Ranks  # noqa: E402  the tests' folder is not where Python looks
from spatial_cases import ALL_CASES  # noqa: E402

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


def ours(ranks: Ranks, case: str, mesh: tuple[int, int, int]) -> float:
    """A case's error on a mesh; of several ranks' the worst."""
    return max(error for error, _ in ranks("operators.case", case, mesh=mesh))


if __name__ == "__main__":
    with Ranks() as ranks:
        found = {name: (ours(ranks, name, (1, 1, 2)), ours(ranks, name, (1, 2, 2))) for name in ALL_CASES}
    print(f"{'':26}{'ours 1 × 2':>12}{'2 × 2':>9} " + "".join(f"{peer:>12}" for peer in PEERS))
    for case, peers in CASES.items():
        two, four = found[case]
        print(f"{case:26}{two:12.0e}{four:9.0e} " + "".join(f"{verdict:>12}" for verdict in peers))
    others = [name for name in found if name not in CASES]
    worst = max(max(found[name]) for name in others)
    print(f"\nand {len(others)} more cases of tests/spatial_cases.py, the worst of them {worst:.0e}")
