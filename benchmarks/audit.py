"""What libraries that divide an image over ranks make of networks that nobody chose.

    python benchmarks/audit.py [--libraries ours dtensor] [--cases 200] [--peer-cases 60] [--seed 0] [--json FILE]

Cases are drawn at random (audit_cases.py): images of 12 to 64 px a side, meshes of two to four ranks, up to six layers;
the first is no draw but the beginning of a ResNet. A case runs in float64 on CPU, forward and backward, and is compared
with undivided torch: loss, output, every weight's gradient and the image's, on every rank. The verdict is one of

- exact: all within 1e-10, relative to the largest value of each;
- wrong: not so, and no error;
- not divided: exact, but without a word a layer's output was left whole on a rank, in rows or in columns that the mesh
  should have divided and that were enough for all ranks (what the backward pass holds is not looked at);
- refused: every rank raised an error that the library means (by a `raise` or an `assert` in Python);
- crashed: any other error, or on some ranks only; or a process died, or gave no answer in time.

The libraries are ours; torch's DTensor, with rows and columns sharded and weights replicated; and JAX's `jit`, with the
same by NamedSharding, on devices that XLA makes of the CPU. JAX wants an interpreter of its own:

    python -m venv jax && jax/bin/pip install jax
    python benchmarks/audit.py --libraries jax --python jax/bin/python

(On a mesh of `jax.make_mesh`, whose axes are explicit, JAX refuses also the maps that it does not divide evenly.)
Not among them: physicsnemo's ShardTensor 2.2.2, which CPUs do not run unpatched, and distdl of 2022, which does not
import; the rest was not tried. exactness.py has what was measured of them.
"""

import argparse
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from audit_cases import Case, cases
from audit_reports import Failure, Found
from audit_torch import undivided

TOLERANCE = 1e-10
PROGRAMS = {"ours": "audit_torch.py", "dtensor": "audit_torch.py", "jax": "audit_jax.py"}
VERDICTS = ("exact", "wrong", "not divided", "refused", "crashed")
TIMEOUT = 90  # seconds for a case, compiling and the processes' start included
PATIENCE = 15  # seconds for the other ranks, once one has answered


class Verdict(NamedTuple):
    kind: str
    error: float = 0.0
    words: str = ""


def compare(found: Found, expected: Found) -> Verdict:
    """Exact or wrong, with the largest error. A weight's gradient near zero is measured against those of others."""
    floor = 1e-3 * max(np.abs(e).max() for name, e in expected.items() if name[0].isdigit())
    worst, wrong = 0.0, defaultdict(list)
    for name, e in expected.items():
        f = found.get(name)
        if f is None or f.shape != e.shape:
            error, how = np.inf, "missing" if f is None else "of another shape"
        else:
            scale = max(np.abs(e).max(), floor if name[0].isdigit() else 0.0) or 1.0
            times = np.vdot(f, e) / (np.vdot(e, e) or 1.0)
            error = np.nan_to_num(np.abs(f - e).max() / scale, nan=np.inf)
            how = f"× {times:.4g}" if np.abs(f - times * e).max() <= 1e-9 * scale else f"off by {error:.1e}"
        worst = max(worst, error)
        if error > TOLERANCE:
            wrong[how].append(name)
    words = [f"{how}: {', '.join(names)}" for how, names in wrong.items()]
    return Verdict("wrong" if wrong else "exact", worst, "; ".join(words))


def judge(case: Case, answers: list[tuple[Found, list[str]] | Failure]) -> Verdict:
    failures = [answer for answer in answers if isinstance(answer, Failure)]
    if failures:
        together = len(failures) == len(answers) and all(failure.kind == "refused" for failure in failures)
        return Verdict("refused" if together else "crashed", words=failures[0].words)
    expected = undivided(case)
    verdict = max((compare(found, expected) for found, _ in answers), key=lambda verdict: verdict.error)
    whole = [words for _, whole in answers for words in whole]
    if verdict.kind == "exact" and whole:
        return verdict._replace(kind="not divided", words=whole[0])
    return verdict


def audit(library: str, chosen: list[Case], python: str) -> Iterator[tuple[Case, Verdict]]:
    """The verdicts on all cases, those of one number of ranks together."""
    for _, alike in groupby(sorted(chosen, key=lambda case: case.ranks), key=lambda case: case.ranks):
        left = list(alike)
        while left:  # what comes after a case that failed runs in new processes
            for case, verdict in run(library, left, python):
                yield case, verdict
                left = left[1:]


def run(library: str, chosen: list[Case], python: str) -> Iterator[tuple[Case, Verdict]]:
    """Cases of as many ranks each, in the same processes, up to the first that fails."""
    ranks = chosen[0].ranks
    with tempfile.TemporaryDirectory(prefix="audit-") as name, open(f"{name}/log", "w+", encoding="utf-8") as log:
        folder = Path(name)
        (folder / "cases").write_bytes(pickle.dumps(chosen))
        program = [python, str(Path(__file__).with_name(PROGRAMS[library])), library, name]
        processes = [
            subprocess.Popen([*program, str(rank), str(ranks)], stdout=log, stderr=log)
            for rank in range(1 if library == "jax" else ranks)
        ]
        try:
            for number, case in enumerate(chosen):
                paths = [folder / f"{number}-{rank}" for rank in range(len(processes))]
                if failure := wait(paths, processes):
                    log.seek(0)
                    last = (log.read().strip().splitlines() or [""])[-1]
                    yield case, Verdict("crashed", words=f"{failure}: {last}")
                    return
                verdict = judge(case, [pickle.loads(path.read_bytes()) for path in paths])
                yield case, verdict
                if verdict.kind in ("refused", "crashed"):
                    return
        finally:
            for process in processes:
                process.kill()
                process.wait()


def wait(paths: list[Path], processes: list[subprocess.Popen]) -> str:
    """Wait for an answer from every process. What failed, or nothing."""
    end = time.monotonic() + TIMEOUT
    answered = False
    while not all(path.exists() for path in paths):
        for rank, (process, path) in enumerate(zip(processes, paths, strict=True)):
            if process.poll() is not None and not path.exists():
                return f"rank {rank} died with {process.returncode}"
            if path.exists() and not answered:
                answered, end = True, min(end, time.monotonic() + PATIENCE)
        if time.monotonic() > end:
            return "not all ranks answered"
        time.sleep(0.002)
    return ""


def tell(library: str, verdicts: list[tuple[Case, Verdict]], seconds: float) -> None:
    """A row of the table."""
    count = Counter(verdict.kind for _, verdict in verdicts)
    wrong = max((verdict.error for _, verdict in verdicts if verdict.kind == "wrong"), default=0.0)
    worst = f" ({wrong:.1e})" if wrong else ""
    cells = [len(verdicts), count["exact"], f"{count['wrong']}{worst}", *(count[kind] for kind in VERDICTS[2:])]
    print(f"| {library} | {' | '.join(map(str, cells))} | {seconds:.0f} |", flush=True)


def tell_more(library: str, verdicts: list[tuple[Case, Verdict]]) -> None:
    """What was wrong, each by itself; and what was said otherwise, how often."""
    said = Counter()
    for case, verdict in verdicts:
        if verdict.kind == "wrong":
            print(f"- {library}, wrong, {verdict.words}; {case}")
        elif verdict.kind != "exact":
            said[verdict.kind, re.sub(r"\b\d+\b", "N", verdict.words.partition("\n")[0])[:160]] += 1
    for (kind, line), count in said.most_common():
        print(f"- {library}, {kind}, {count} ×: {line}")


def version(package: str, python: str) -> str:
    command = [python, "-c", f"import importlib.metadata as m; print('{package}', m.version('{package}'))"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{python} has no {package}: give one that has, with --python")
    return done.stdout.strip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", nargs="+", choices=list(PROGRAMS), default=["ours", "dtensor"])
    parser.add_argument("--cases", type=int, default=200, help="of ours")
    parser.add_argument("--peer-cases", type=int, default=60, help="of the others, the first of ours")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has JAX")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every case's verdict there")
    args = parser.parse_args()
    pythons = {library: args.python if library == "jax" else sys.executable for library in args.libraries}
    versions = {version("jax" if library == "jax" else "torch", python) for library, python in pythons.items()}
    print(f"seed {args.seed}; {', '.join(sorted(versions))}; {len(os.sched_getaffinity(0))} cores\n")
    print(f"| library | cases | {' | '.join(VERDICTS)} | s |\n|---|{'---:|' * 7}", flush=True)
    everything = {}
    for library, python in pythons.items():
        begun = time.monotonic()
        chosen = cases(args.cases if library == "ours" else args.peer_cases, args.seed)
        everything[library] = list(audit(library, chosen, python))
        tell(library, everything[library], time.monotonic() - begun)
    print()
    for library, verdicts in everything.items():
        tell_more(library, verdicts)
    if args.json:
        rows = [{"library": n, "case": str(c)} | v._asdict() for n, found in everything.items() for c, v in found]
        args.json.write_text(json.dumps(rows, indent=1))
