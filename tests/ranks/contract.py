"""Run under mpiexec: the cases of contract_cases.py on meshes, against undivided. Prints one JSON object a case."""

import gc
import hashlib
import json
import weakref

import torch
from contract_cases import CASES, IN_PLACE, INVALID, REFUSED, STREAMED, Side, classifier
from mpi4py import MPI

from gigapipe.spatial import Mesh, NotDecomposed, Plan, gather, shard, stream
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
    spatial = Mesh(1, 4, 1, transport)
    for name, function in IN_PLACE.items():
        row = {
            "in place": name,
            **{h: changed_in_place(function, spatial, h == "streamed") for h in ("held", "streamed")},
        }
        if WORLD.rank == 0:
            print(json.dumps(row), flush=True)
    kept = [weakref.ref(Mesh(2, 1, 2, transport)) for _ in range(2100)]  # more than MPI has communicators
    for streamed in (False, True):
        mesh = Mesh(2, 1, 2, transport)
        Side(mesh, streamed).model(classifier())(Side(mesh, streamed).image()).sum().backward()
        kept.append(weakref.ref(mesh))
    del mesh
    gc.collect()
    if WORLD.rank == 0:
        print(json.dumps({"meshes": sum(mesh() is not None for mesh in kept)}), flush=True)
    for name, function in INVALID.items():
        row = {"invalid": name, "said": WORLD.allgather(said_of(function, spatial))}
        if WORLD.rank == 0:
            print(json.dumps(row), flush=True)
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
        for name, (function, message, several) in REFUSED.items():
            if getattr(mesh, several) == 1:
                continue
            try:
                function(Side(mesh))
                said = "nothing"
            except NotDecomposed as error:
                said = str(error)
            row = {"mesh": shape, "refused": name, "said": WORLD.allgather(said), "message": message}
            if WORLD.rank == 0:
                print(json.dumps(row), flush=True)


def changed_in_place(function, mesh: Mesh, streamed: bool) -> float | str:
    """How far an image, and what `function` returned of it, are from torch's, on the worst rank."""
    whole = torch.rand(2, 8, 9, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = whole * 1
    returned = function(expected)
    image = shard(whole, mesh)
    image = (stream(image, Plan(tile=4)) if streamed else image) * 1
    try:
        found = function(image)
    except NotDecomposed:
        return "refused"
    pairs = [(x.computed() if streamed else x, e) for x, e in ((image, expected), (found, returned))]
    return max(WORLD.allgather(max((gather(x) - e).abs().max().item() for x, e in pairs)))


def said_of(function, mesh: Mesh) -> str:
    try:
        function(shard(torch.rand(1, 8, 3, 2, dtype=torch.float64), mesh))  # some ranks have none of it
    except (RuntimeError, ValueError, IndexError) as error:
        return type(error).__name__
    return "nothing"


if __name__ == "__main__":
    main()
