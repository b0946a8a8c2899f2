"""Models that nobody here wrote: which are exact, which are refused and for what, and which are wrong.

    python benchmarks/zoo.py zoo.jsonl                            # all of zoo_models.py; some hours on 2 cores
    python benchmarks/zoo.py zoo.jsonl --again refused failed     # those that ended so, once more
    python benchmarks/zoo.py zoo.jsonl --libraries monai --only UNet ViT

Each model is run in float64 on 2 × 2, 1 × 2 or 2 × 1 real MPI ranks, in training mode, against itself undivided:
outputs, every gradient, the image's gradient and every buffer, within 1e-10 relative, or, where its rounding carries
further, within 100 times what a last-bit change of the image does to it undivided (ill-conditioned, which counts as
exact). What is exact is then streamed on one rank, in evaluation mode, by tiles of 48 or 64 px. Weights are random.

The file gets a line of JSON a model, the last of which counts; models that have one are left out, so that a sweep that
was stopped goes on. A model that crashes, or takes longer than `--timeout` seconds, has failed, and the next one gets
new ranks. In the end a table is printed, of all that is in the file.

The libraries go into an environment of their own. torchvision's kernels are for another build of torch than the CPU's
and are not needed; without `--no-deps` it would replace torch:

    python3 -m venv zoo
    zoo/bin/pip install --constraint envs/constraints.txt --editable '.[mpi,test]' einops huggingface_hub safetensors
    zoo/bin/pip install --no-deps timm==1.0.31 segmentation_models_pytorch==0.6.0 torchvision==0.28.0
    PATH=$PWD/zoo/bin:$PATH python benchmarks/zoo.py zoo.jsonl
"""

import argparse
import collections
import importlib.util
import json
import os
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from launching import Ranks  # noqa: E402  the tests' folder is not where Python looks
from zoo_models import LIBRARIES, Entry, entries  # noqa: E402

MESHES = (1, 2, 2), (1, 1, 2), (1, 2, 1)
"""Data × rows × columns: a family's first model has the first, its others the next two by turns."""
EXACT = "exact", "ill-conditioned"
ENDS = "refused", "unusable", "failed", "wrong"
"""What else may become of a model (see tests/ranks/zoo.py); `failed` is a crash, or no answer in time."""


class FourRanks(Ranks):
    SIZE = 4


def judge(ranks: Ranks, entry: Entry, mesh: tuple[int, int, int], timeout: float) -> dict:
    """What became of a model, held and then streamed."""
    begun = time.monotonic()
    row = {"library": entry.library, "family": entry.family, "name": entry.name, "mesh": mesh}
    row["held"] = compared(ranks, "zoo.held", entry, mesh, timeout)
    if row["held"]["end"] in EXACT:
        row["streamed"] = compared(ranks, "zoo.streamed", entry, (1, 1, 1), timeout)
    return row | {"seconds": round(time.monotonic() - begun, 1)}


def compared(ranks: Ranks, case: str, entry: Entry, mesh: tuple[int, int, int], timeout: float) -> dict:
    try:
        first, *others = ranks(case, entry.library, entry.name, mesh=mesh, timeout=timeout)
    except AssertionError as error:  # a rank raised, died, or gave no answer
        return {"end": "failed", "says": str(error).strip().splitlines()[-1]}
    if any(other != first for other in others):
        return {"end": "failed", "says": f"ranks do not end alike: {[first, *others]}"}
    return first


def verdict(row: dict) -> str:
    """The worse of a model's two ends."""
    ends = [row[how]["end"] for how in ("held", "streamed") if how in row]
    return next((end for end in ends if end not in EXACT), "exact")


REFUSAL = re.compile(r"gigapipe\.spatial: in layer (?P<layer>\S+): (?P<what>.+); (?P<instead>.+)", re.DOTALL)
UNKNOWN = re.compile(r"(.+) has no decomposed form, and would be wrong on a part of an image")


def refusal(says: str) -> tuple[str, str, str] | None:
    """The layer, the operation and the way out that a refusal names; None if it does not name all of them."""
    found = REFUSAL.fullmatch(says)
    if found is None:
        return None
    unknown = UNKNOWN.fullmatch(found["what"])
    operation = unknown[1] if unknown else re.sub(r"\([\d, ]*\)(, \([\d, ]*\))*", "(…)", found["what"])
    return found["layer"], operation, found["instead"]


def table(rows: list[dict]) -> str:
    """Models by family and end, what was refused by operation, and all that is at fault."""
    families = collections.defaultdict(list)
    for row in rows:
        families[row["family"]].append(row)
    lines = [
        "| family | models | exact held | exact streamed | refused | unusable | failed | wrong |",
        "|---|" + 7 * "---:|",
    ]
    for family, members in [*sorted(families.items()), ("all", rows)]:
        exact = [sum(row.get(how, {}).get("end") in EXACT for row in members) for how in ("held", "streamed")]
        ends = collections.Counter(map(verdict, members))
        lines.append(f"| {' | '.join(map(str, [family, len(members), *exact, *(ends[end] for end in ENDS)]))} |")
    operations, faults = collections.defaultdict(list), []
    for row in rows:
        for how in ("held", "streamed"):
            end, says = (row.get(how, {}).get(key, "") for key in ("end", "says"))
            name = f"{row['name']} ({row['library']}{', streamed' if how == 'streamed' else ''})"
            named = refusal(says) if end == "refused" else None
            if named:
                operations[named[1]].append(name)
            elif end and end not in EXACT:
                faults.append(f"{end}: {name}: {says}" + (f" {row[how]['error']:.1e}" if end == "wrong" else ""))
    lines += ["", "Refused, by the first operation that has no decomposed form:"]
    for operation, names in sorted(operations.items(), key=lambda item: -len(item[1])):
        lines.append(f"{len(names):4}  {operation}: {', '.join(names)}")
    lines += ["", "Unusable, failed, wrong, and refused without a layer, an operation or a way out:", *sorted(faults)]
    return "\n".join(lines)


def read(path: Path) -> dict[tuple[str, str], dict]:
    """The last line of each model, by library and name. A line that was cut off is none."""
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        if line.endswith("}"):
            row = json.loads(line)
            rows[row["library"], row["name"]] = row
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a file of JSON lines, which is added to")
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these models alone")
    parser.add_argument("--again", nargs="+", choices=["exact", *ENDS], default=[], help="also those that ended so")
    parser.add_argument("--timeout", type=float, default=900, help="seconds a comparison; default 900")
    args = parser.parse_args()
    lacking = [package for library in args.libraries if not importlib.util.find_spec(package := LIBRARIES[library])]
    if lacking:
        parser.error(f"not installed: {', '.join(lacking)}; --help says how, or choose among --libraries")
    os.environ |= {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # of the ranks

    rows, places = read(args.output), collections.Counter()
    todo = []
    for key, entry in entries().items():
        place = places[entry.family]
        places[entry.family] += 1
        mesh = MESHES[0 if place == 0 else 1 + place % 2]
        chosen = entry.library in args.libraries and (not args.only or entry.name in args.only)
        if chosen and (key not in rows or verdict(rows[key]) in args.again):
            todo.append((entry, mesh))
    with FourRanks() as ranks, args.output.open("a") as file:
        for i, (entry, mesh) in enumerate(todo, 1):
            row = judge(ranks, entry, mesh, args.timeout)
            print(json.dumps(row), file=file, flush=True)
            print(f"{i}/{len(todo)} {entry.family}: {entry.name}: {verdict(row)}, {row['seconds']} s", file=sys.stderr)
    print(table(list(read(args.output).values())))


if __name__ == "__main__":
    main()
