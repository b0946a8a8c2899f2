"""Run under mpiexec: the cases of contract_cases.py on meshes, against undivided. Prints one JSON object a case."""

import hashlib
import json

import torch
from contract_cases import CASES, REFUSED, STREAMED, Side
from mpi4py import MPI

from gigapipe.spatial import Mesh, NotDecomposed
from gigapipe.spatial.transports.mpi import MpiTransport

WORLD = MPI.COMM_WORLD


def error_of(found: dict, expected: dict) -> float:
    scale = max(e.abs().max().item() for e in expected.values() if e is not None)
    worst = 0.0
    for name, e in expected.items():
        f = found[name]
        if (f is None) != (e is None):
            return float("inf")
        worst = worst if e is None else max(worst, (f - e).abs().max().item() / scale)
    return worst


def alike(found: dict) -> bool:
    """Whether all ranks have the same bits."""
    bits = b"".join(t.detach().contiguous().numpy().tobytes() for t in found.values() if t is not None)
    return len(set(WORLD.allgather(hashlib.md5(bits).hexdigest()))) == 1


def main() -> None:
    torch.set_num_threads(1)
    transport = MpiTransport(WORLD, timeout=60)
    expected = {name: function(Side(None)) for name, function in CASES.items()}
    for shape in ((1, 2, 2), (2, 1, 2), (4, 1, 1)):
        mesh = Mesh(*shape, transport=transport)
        for name, function in CASES.items():
            for streamed in (False, True) if name in STREAMED and mesh.data == 2 else (False,):
                try:
                    found = function(Side(mesh, streamed))
                except Exception as error:
                    error.add_note(f"case: {name}, mesh {shape}{', streamed' * streamed}")
                    raise
                error = max(WORLD.allgather(error_of(found, expected[name])))
                row = {"mesh": shape, "case": name, "streamed": streamed, "error": error, "alike": alike(found)}
                if WORLD.rank == 0:
                    print(json.dumps(row), flush=True)
        for name, (function, message) in REFUSED.items():
            if (mesh.data == 1 and ("data rank" in name or "batches" in name or "forgot" in name)) or (
                mesh.image_ranks == 1 and "random" in name
            ):
                continue
            try:
                function(Side(mesh))
                said = "nothing"
            except NotDecomposed as error:
                said = str(error)
            row = {"mesh": shape, "refused": name, "said": WORLD.allgather(said), "message": message}
            if WORLD.rank == 0:
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
