"""How many operations a rank's step starts on its GPU, beside the undivided step in plain torch; counted without a GPU.

    python benchmarks/launches.py [--networks resnet18 resnet50] [--mesh 1 8 8] [--precision bfloat16]

A step is forward, backward and AdamW, of one image of 22,528 × 22,528 px a data rank. Counted are the operations of
ATen that compute or copy on the device: an operation may be several kernels. Views, and memory that is only asked for,
are none. "With kernels" is with those of gigapipe/spatial/kernels.py, which are off unless GIGAPIPE_TRITON=1. Where the
counts come from: watch.py and fake_cuda.py. They are no times.
"""

import argparse
import json

from watch import traced  # before torch


def row(network: str, place: str, found: dict, kernels: int, alone: int) -> str:
    sums, messages = (found["collectives"].get(kind, 0) for kind in ("allreduce", "send"))
    counts = [cell for n in (found["operations"], kernels) for cell in (n, f"{n / alone:.1f}")]
    cells = network, place, *counts, sum(found["syncs"].values()), sums, messages
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--mesh", type=int, nargs=3, default=[1, 8, 8], metavar=("DATA", "ROWS", "COLUMNS"))
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    args = parser.parse_args()
    print(f"mesh {'×'.join(map(str, args.mesh))}, {args.precision}\n")
    print("| network | rank | operations | × undivided | with kernels | × | the host waits | sums | messages |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for network in args.networks:
        options = {"network": network, "precision": args.precision}
        (alone,) = traced("undivided", json.dumps(options))
        print(row(network, "undivided", alone, alone["operations"], alone["operations"]), flush=True)
        for place in ("corner", "edge", "interior"):
            found, kernels = traced("held", json.dumps(options | {"mesh": args.mesh, "place": place, "own": True}))
            print(row(network, place, found, kernels["operations"], alone["operations"]), flush=True)
