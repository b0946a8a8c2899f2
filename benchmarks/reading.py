"""How fast a rank reads its rectangle of a pyramid, by size of chunks and shards; and how fast codecs are.

    python benchmarks/reading.py [--size 6144] [--rounds 3]

One picture, a mosaic of phantoms, is stored in every way; each store is then read as by 4 ranks in strips and by 2 × 4
ranks, each with 64 px more at every side, one rank after another in this process, in turns. MB of pixels that were
asked for, a second: median of the rounds, from the page cache. Files are what a parallel file system has to look after.
Codecs are measured on chunks of 512 px, one thread, MB of pixels a second.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numcodecs
import numpy as np

from gigapipe.pyramids import store
from gigapipe.slides.phantom import cohort, render

CHOICES = [(128, None), (256, None), (512, None), (1024, None), (256, 2048), (512, 2048), (1024, 2048)]
MESHES = [(4, 1), (2, 4)]
HALO = 64
CODECS = {
    "zstd 1": numcodecs.Zstd(level=1, checksum=True),
    "zstd 3": numcodecs.Zstd(level=3, checksum=True),
    "zstd 5": numcodecs.Zstd(level=5, checksum=True),
    "blosc lz4": numcodecs.Blosc("lz4", clevel=5, shuffle=numcodecs.Blosc.NOSHUFFLE),
    "blosc zstd 1": numcodecs.Blosc("zstd", clevel=1, shuffle=numcodecs.Blosc.NOSHUFFLE),
    "zlib 1": numcodecs.Zlib(level=1),
}


def rectangles(size: int, mesh: tuple[int, int]) -> list[tuple[slice, slice]]:
    """What each rank reads."""
    rows, columns = (
        [slice(max(0, i * size // n - HALO), min(size, (i + 1) * size // n + HALO)) for i in range(n)] for n in mesh
    )
    return [(r, c) for r in rows for c in columns]


def codecs(picture: np.ndarray, rounds: int) -> None:
    """Print a table of what each makes of the picture's chunks."""
    starts = range(0, picture.shape[1] - 511, 512)
    chunks = [np.ascontiguousarray(picture[:, r : r + 512, c : c + 512]) for r in starts for c in starts]
    pixels = sum(chunk.nbytes for chunk in chunks) / 1e6
    print("codec           ratio   writes, MB/s   reads, MB/s")
    numcodecs.blosc.use_threads = False
    for name, codec in CODECS.items():
        writes, reads = [], []
        for _ in range(rounds):
            begun = time.perf_counter()
            encoded = [codec.encode(chunk) for chunk in chunks]
            written = time.perf_counter()
            for data in encoded:
                codec.decode(data)
            writes.append(pixels / (written - begun))
            reads.append(pixels / (time.perf_counter() - written))
        ratio = pixels * 1e6 / sum(len(data) for data in encoded)
        print(f"{name:14} {ratio:6.2f} {statistics.median(writes):14.0f} {statistics.median(reads):13.0f}", flush=True)


def main(args: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    pictures = [render(phantom) for phantom in cohort(patients=6)]
    edge = min(min(p.shape[:2]) for p in pictures)
    n = -(-args.size // edge)
    pieces = np.stack([picture[:edge, :edge] for picture in pictures])[rng.integers(len(pictures), size=(n, n))]
    mosaic = pieces.swapaxes(1, 2).reshape(n * edge, n * edge, 3)[: args.size, : args.size]
    picture = np.ascontiguousarray(mosaic.transpose(2, 0, 1))
    with tempfile.TemporaryDirectory() as folder:
        arrays = {}
        for chunk, shard in CHOICES:
            where = Path(folder, f"{chunk}-{shard}")
            store.create(where, "0.5", "picture", [1.0], [picture.shape[1:]], (1.0, 1.0), chunk, shard)
            (array,) = store.arrays(where)
            array[:] = picture
            arrays[chunk, shard] = array
        found = {(choice, mesh): [] for choice in CHOICES for mesh in MESHES}
        for _ in range(args.rounds):
            for choice, mesh in found:
                begun, read = time.perf_counter(), 0
                for place in rectangles(args.size, mesh):
                    read += arrays[choice][:, *place].nbytes
                found[choice, mesh].append(read / 1e6 / (time.perf_counter() - begun))
        print(f"{args.size} px a side, {picture.nbytes / 1e6:.0f} MB of pixels\n")
        print("chunk   shard   files      MB   " + "".join(f"{r} × {c} ranks, MB/s   " for r, c in MESHES))
        for chunk, shard in CHOICES:
            files = [p for p in Path(folder, f"{chunk}-{shard}", store.NAME, "0", "c").rglob("*") if p.is_file()]
            size = sum(p.stat().st_size for p in files) / 1e6
            speeds = "".join(f"{statistics.median(found[(chunk, shard), mesh]):17.0f}   " for mesh in MESHES)
            print(f"{chunk:5} {shard or '–':>7} {len(files):7} {size:7.0f}   {speeds}")
    print()
    codecs(picture, args.rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=6144)
    parser.add_argument("--rounds", type=int, default=3)
    main(parser.parse_args())
