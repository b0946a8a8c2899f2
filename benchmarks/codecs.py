"""What each codec of a pyramid costs: bytes and seconds a gigapixel of level 0, and grey levels.

    python benchmarks/codecs.py [--slide FILE …] [--size 10000] [--threads 2] [--rounds 3] [--store FOLDER]

The slides are those given, beside the one that `benchmarks/pyramids.py` generates. Each is made into a pyramid of 0.5,
1 and 2 µm per pixel with each codec, in turns; all its pixels are then read again from the page cache, 2048 rows at a
time. Seconds are those of the CPU, of all threads, so that a busy machine matters less: medians of the rounds. The
first pyramid, which loads what is compiled, is not counted. What `gigapipe sizes` says is a share of the bytes.
"""

import argparse
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
from pyramids import RESOLUTIONS, generated

from gigapipe.pyramids import Pyramid
from gigapipe.pyramids.build import build_pyramid
from gigapipe.pyramids.settings import Settings
from gigapipe.pyramids.sizes import estimate

WAYS = {
    "zstd": Settings(),
    "zstd, clean background": Settings(clean_background=True),
    "zstd, OME-Zarr 0.4": Settings(ome_zarr="0.4"),
    "rounded": Settings(codec="rounded"),
    "rounded, clean background": Settings(codec="rounded", clean_background=True),
    "jpeg": Settings(codec="jpeg", ome_zarr="0.4"),
    "jpeg, clean background": Settings(codec="jpeg", ome_zarr="0.4", clean_background=True),
}


def read(pyramid: Pyramid) -> float:
    """MB of pixels a second."""
    begun, total = time.process_time(), 0
    for mpp in pyramid.resolutions:
        array = pyramid.array(mpp)
        for row in range(0, array.shape[1], 2048):
            total += np.asarray(array[:, row : row + 2048]).nbytes
    return total / 1e6 / (time.process_time() - begun)


def main(args: argparse.Namespace) -> None:
    for slide in [generated(args.store, args.size), *args.slide]:
        out = args.store / "codecs"
        seconds: dict[str, list[float]] = {name: [] for name in WAYS}
        speeds: dict[str, list[float]] = {name: [] for name in WAYS}
        rows = {}
        for number in range(-1, args.rounds):
            for name, settings in list(WAYS.items())[: 1 if number < 0 else None]:
                shutil.rmtree(out, ignore_errors=True)
                begun = time.process_time()
                build_pyramid(slide, out, list(RESOLUTIONS), settings, args.threads)
                took, pyramid = time.process_time() - begun, Pyramid(out)
                speed = read(pyramid)
                if number < 0:
                    continue
                seconds[name].append(took)
                speeds[name].append(speed)
                files = [path for path in (out / "image.zarr").rglob("*") if path.is_file()]
                rows[name] = (
                    sum(path.stat().st_size for path in files),
                    sum(estimate(slide, RESOLUTIONS, settings).pyramid),
                    len(files),
                    pyramid.codec,
                )
        source = pyramid.source
        gigapixels = source["shape"][0] * source["shape"][1] / 1e9
        size = source["bytes"] / 1e6
        print(f"\n{source['name']}: {gigapixels:.3f} Gpx, {size:.1f} MB, {args.threads} threads")
        print(
            "codec                       MB/Gpx  × slide   said  files   CPU s/Gpx  read, MB/CPU s  mean error  largest"
        )
        for name, (stored, said, files, codec) in rows.items():
            print(
                f"{name:26} {stored / 1e6 / gigapixels:7.0f} {stored / 1e6 / size:8.2f} {said / stored:6.2f} {files:6}"
                f" {statistics.median(seconds[name]) / gigapixels:11.2f} {statistics.median(speeds[name]):15.0f}"
                f" {codec['mean_error'][0]:11.2f} {codec['largest_error'][0]:8}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide", type=Path, nargs="+", default=[])
    parser.add_argument("--size", type=int, default=10000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", type=Path, default=Path("results/pyramids-benchmark"))
    main(parser.parse_args())
