"""Fetching one large file over loopback: gigapipe's client beside curl, and what a resumption costs.

The server sends with sendfile, from the page cache; both clients write to the same folder. Fetching alone is compared
with curl, and fetching with an md5, which is computed as the bytes arrive, with curl and md5sum after it. Commands are
timed whole: gigapipe's begins with Python's imports, and ends when the disk has the file (fsync), which curl does not
wait for; `its transfer` is what lies between. Rounds alternate; the best of each is compared.

    python benchmarks/download.py [--gigabytes 1] [--rounds 5]
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import requests

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from gdc_server import Archive, Fault, serving  # noqa: E402

from gigapipe.slides.download import Arrived, fetch_rest  # noqa: E402

GIGAPIPE = Path(sys.executable).with_name("gigapipe")


def big_slide(path: Path, size: int) -> str:
    """A file that OpenSlide takes for a slide, and its md5."""
    from gigapipe.slides.phantom import cohort, render, write_slide

    write_slide(path, render(cohort(patients=6)[0]))
    with open(path, "ab") as file:
        while file.tell() < size:
            file.write(os.urandom(min(1 << 24, size - file.tell())))
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def serve(folder: str, size: int):
    """The server, in a process of its own."""
    program = Path(__file__).parent.parent / "tests/gdc_server.py"
    process = subprocess.Popen([sys.executable, program, folder], stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


def transfer(address: str, path: Path) -> float:
    """Seconds of gigapipe's transfer, from the request to the last byte."""
    with open(path, "w+b", buffering=0) as file:
        arrived = Arrived(file, path.name, None, None)
        begin = time.perf_counter()
        with arrived.progress:
            fetch_rest(requests.Session(), address, arrived, timeout=60)
        return time.perf_counter() - begin


def timed(*command) -> float:
    begin = time.perf_counter()
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--gigabytes", type=float, default=1)
    options.add_argument("--rounds", type=int, default=5)
    args = options.parse_args()
    size = int(args.gigabytes * (1 << 30))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (held := folder / "held").mkdir()
        name = "TCGA-05-4244-01Z-00-DX1.svs"
        md5 = big_slide(held / name, size)
        process, url = serve(held, size)
        file_id = requests.get(f"{url}/files", params={"fields": "file_id"}).json()["data"]["hits"][0]["id"]
        address = f"{url}/{file_id}/{name}"  # the bucket, which says no md5
        ours, theirs = folder / "ours.svs", folder / "curl.svs"
        start = min(timed(GIGAPIPE, "download", "--help") for _ in range(3))
        seconds = {
            "curl": [],
            "gigapipe download": [],
            "its transfer": [],
            "curl, then md5sum": [],
            "gigapipe download --md5": [],
        }
        for _ in range(args.rounds):
            for path in (ours, theirs):
                path.unlink(missing_ok=True)
            seconds["curl"].append(timed("curl", "-sS", "-o", theirs, address))
            seconds["curl, then md5sum"].append(seconds["curl"][-1] + timed("md5sum", theirs))
            seconds["gigapipe download"].append(timed(GIGAPIPE, "download", address, ours))
            ours.unlink()
            seconds["its transfer"].append(transfer(address, ours))
            ours.unlink()
            seconds["gigapipe download --md5"].append(timed(GIGAPIPE, "download", address, ours, "--md5", md5))
        process.terminate()
        best = {what: min(taken) for what, taken in seconds.items()}
        print(f"{size / 1e9:.2f} GB, best of {args.rounds}; starting gigapipe is {start:.2f} s of its time\n")
        print("| | s | MB/s | throughput against curl's |\n|---|---|---|---|")
        for what, taken in best.items():
            print(f"| {what} | {taken:.2f} | {size / taken / 1e6:.0f} | {best['curl'] / taken:.2f} |")
        archive = Archive()
        file_id = archive.add(held / name, name, md5=md5)
        archive.faults[file_id] = [Fault("cut", 0.6)]
        ours.unlink()
        with serving(archive) as url:
            subprocess.run([GIGAPIPE, "download", f"{url}/data/{file_id}", ours, "--md5", md5], check=True)
        sent = [record.sent for record in archive.requests]
        print(
            f"\nCut at 60 %: the second request fetched {sent[1] / size:.2%} of the file, {len(sent)} requests in all."
        )


if __name__ == "__main__":
    main()
