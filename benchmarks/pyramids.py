"""From a slide to 0.5, 1 and 2 µm per pixel: gigapipe, what bounds it, and other ways to do it that are installed.

    python benchmarks/pyramids.py [--size 20000] [--threads 2] [--rounds 2] [--only ours decode …] [--store FOLDER]

The slide is generated once: an Aperio JPEG (4:2:2, quality 80, tiles of 256 px, 0.2527 µm per pixel, levels of a
quarter and a sixteenth), a mosaic of phantoms of which about half is tissue. Everybody writes zarr or TIFF into the
same folder, in a process of its own, in turns; seconds are per gigapixel of level 0, after imports, median of the
rounds; memory is the most that a process had. The limits are what decoding every tile, the area means of all
resolutions of pixels in memory, and compressing the results take, each by itself with as many threads: in one pass they
add up. Errors are against the exact area mean of the same pixels, in grey levels, over rectangles of 1 µm per pixel.
"""

import argparse
import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from streaming import memory

MPP, RESOLUTIONS, CELL, TILE = 0.2527, (0.5, 1.0, 2.0), 2048, 256
CHUNK = 512


def generated(folder: Path, size: int) -> Path:
    """The slide, `size` px a side and a little."""
    import tifffile

    from gigapipe.slides.phantom import WHITE, cohort, render

    path = folder / f"{size}.svs"
    if path.exists():
        return path
    print(f"making a slide of {size} px a side …", file=sys.stderr, flush=True)
    rows, columns = size + 11, size - 3
    rng = np.random.default_rng(0)
    pictures = [np.repeat(np.repeat(render(phantom), 2, 0), 2, 1) for phantom in cohort(patients=6)]
    cells = []
    for _ in range(4):
        cell = np.full((CELL, CELL, 3), int(WHITE), np.int16)
        for top in range(0, CELL - 512, 512):
            for left in range(0, CELL - 512, 512):
                picture = pictures[rng.integers(len(pictures))][:512, :512]
                cell[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        cell += np.rint(rng.normal(0, 7, cell.shape)).astype(np.int16)  # a camera's noise
        cells.append(np.clip(cell, 0, 255).astype(np.uint8))
    order = rng.integers(len(cells), size=(rows // CELL + 1, columns // CELL + 1))
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with tifffile.TiffWriter(partial, bigtiff=True) as file:
        for level, d in enumerate((1, 4, 16)):
            small = [c.reshape(CELL // d, d, CELL // d, d, 3).mean((1, 3)).round().astype(np.uint8) for c in cells]
            edge, shape = CELL // d, (rows // d, columns // d, 3)

            def tiles(small=small, edge=edge, shape=shape):
                for top in range(0, shape[0], TILE):
                    strip = np.concatenate([np.concatenate([small[k] for k in order[i]], 1)[
                        max(0, top - i * edge) : top + TILE - i * edge] for i in range(top // edge, min(
                            len(order), -(-(top + TILE) // edge)))])  # fmt: skip
                    strip = strip[: min(TILE, shape[0] - top), : shape[1]]
                    for left in range(0, shape[1], TILE):
                        tile = np.zeros((TILE, TILE, 3), np.uint8)
                        part = strip[:, left : left + TILE]
                        tile[: part.shape[0], : part.shape[1]] = part
                        yield tile

            header = f"Aperio Image Library v12.0.0\r\n{columns}x{rows} [0,0 {columns}x{rows}] ({TILE}x{TILE})"
            arrow = f" -> {shape[1]}x{shape[0]}" if level else ""
            file.write(
                tiles(),
                shape=shape,
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="ycbcr",
                subsampling=(2, 1),
                compression="jpeg",
                compressionargs={"level": 80},
                subfiletype=int(level > 0),
                description=f"{header}{arrow} JPEG/YCC Q=80|AppMag = 40|MPP = {MPP}",
                metadata=None,
                software=False,
            )
    partial.rename(path)
    return path


def ours(slide: Path, out: Path, threads: int) -> None:
    from gigapipe.pyramids.build import build_pyramid

    build_pyramid(slide, out, RESOLUTIONS, threads=threads)


def through_openslide(slide: Path, out: Path, threads: int) -> None:
    """The same, for a slide whose tiles cannot be decoded directly."""
    from gigapipe.pyramids import build
    from gigapipe.slides.levels import OpenSlideLevel

    build.open_level = OpenSlideLevel
    build.build_pyramid(slide, out, RESOLUTIONS, threads=threads)


def decode(slide: Path, out: Path, threads: int) -> None:
    from gigapipe.slides.levels import TiffLevel
    from gigapipe.slides.reader import Slide

    level = TiffLevel(Slide(slide))

    def row(top: int) -> None:
        for left in range(0, level.shape[1], TILE):
            level.read(top, left, min(TILE, level.shape[0] - top), min(TILE, level.shape[1] - left))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(row, range(0, level.shape[0], TILE)))


def area_mean(slide: Path, out: Path, threads: int) -> float:
    """All means of as many pixels as the slide has, without decoding them; returns its seconds."""
    from gigapipe.pyramids.area import AreaMean, Axis
    from gigapipe.slides.levels import TiffLevel
    from gigapipe.slides.reader import Slide

    shape = Slide(slide).shape
    piece = TiffLevel(Slide(slide)).read(0, 0, 4096, 4096)

    def run(_) -> None:
        for mpp in RESOLUTIONS:
            axis = Axis.of(4096, mpp / MPP)
            mean = AreaMean(axis, axis, (0, axis.size), (0, axis.size))
            for row in range(0, 4096, TILE):
                mean.feed(piece[row : row + TILE], row, 0)

    run(0)  # is compiled
    pieces = round(shape[0] * shape[1] / 4096**2)
    begun = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, range(pieces)))
    return time.perf_counter() - begun


def compress(slide: Path, out: Path, threads: int) -> float:
    """All chunks of what gigapipe makes, compressed and written to one file; returns its seconds."""
    import numcodecs

    from gigapipe.pyramids import Pyramid
    from gigapipe.pyramids.build import build_pyramid

    build_pyramid(slide, out, RESOLUTIONS, threads=threads)
    pyramid, codec = Pyramid(out), numcodecs.Zstd(level=1, checksum=True)
    arrays = [pyramid.array(mpp)[:] for mpp in RESOLUTIONS]
    chunks = [
        array[:, top : top + CHUNK, left : left + CHUNK]
        for array in arrays
        for top in range(0, array.shape[1], CHUNK)
        for left in range(0, array.shape[2], CHUNK)
    ]
    begun = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool, open(out / "chunks", "wb") as file:
        for data in pool.map(lambda chunk: codec.encode(np.ascontiguousarray(chunk)), chunks):
            file.write(data)
    return time.perf_counter() - begun


def _zarrs(out: Path, shape: tuple[int, int]) -> list:
    """Empty arrays for those who write chunk by chunk."""
    import zarr

    group = zarr.open_group(out, mode="w", zarr_format=3)
    sizes = [tuple(round(n * MPP / mpp) for n in shape) for mpp in RESOLUTIONS]
    codec = zarr.codecs.ZstdCodec(level=1)
    return [
        group.create_array(str(i), shape=(3, *size), chunks=(3, CHUNK, CHUNK), dtype="uint8", compressors=codec)
        for i, size in enumerate(sizes)
    ]


def _chunk_by_chunk(read, array, mpp: float, threads: int) -> None:
    """`read(row, column, rows, columns, of level 0, rows, columns of the output)` fills every chunk."""
    ratio = mpp / MPP

    def fill(place: tuple[int, int]) -> None:
        row, column = place
        rows, columns = min(CHUNK, array.shape[1] - row), min(CHUNK, array.shape[2] - column)
        source = int(row * ratio), int(column * ratio), int(rows * ratio), int(columns * ratio)
        array[:, row : row + rows, column : column + columns] = read(*source, rows, columns).transpose(2, 0, 1)

    places = [(r, c) for r in range(0, array.shape[1], CHUNK) for c in range(0, array.shape[2], CHUNK)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, places))


def openslide_loop(slide: Path, out: Path, threads: int) -> None:
    """read_region and Pillow's reducing, chunk by chunk, resolution by resolution."""
    import openslide
    from PIL import Image

    file = openslide.OpenSlide(slide)
    for mpp, array in zip(RESOLUTIONS, _zarrs(out, file.dimensions[::-1]), strict=True):

        def read(row, column, high, wide, rows, columns):
            region = file.read_region((column, row), 0, (wide, high)).convert("RGB")
            return np.asarray(region.resize((columns, rows), Image.Resampling.BOX))

        _chunk_by_chunk(read, array, mpp, threads)


def dask_openslide(slide: Path, out: Path, threads: int) -> None:
    """A Dask array of read_region at level 0, reduced by map_blocks and stored, resolution by resolution."""
    import dask
    import dask.array as da
    import openslide
    from PIL import Image

    file = openslide.OpenSlide(slide)
    for mpp, array in zip(RESOLUTIONS, _zarrs(out, file.dimensions[::-1]), strict=True):
        ratio = mpp / MPP

        def block(block_info=None, ratio=ratio):
            (_, _), (top, bottom), (left, right) = block_info[None]["array-location"]
            corner, size = (
                (int(left * ratio), int(top * ratio)),
                (int((right - left) * ratio), int((bottom - top) * ratio)),
            )
            region = file.read_region(corner, 0, size).convert("RGB")
            return np.asarray(region.resize((right - left, bottom - top), Image.Resampling.BOX)).transpose(2, 0, 1)

        chunks = da.core.normalize_chunks(array.chunks, array.shape)
        lazy = da.map_blocks(block, chunks=chunks, dtype="uint8", meta=np.empty((0, 0, 0), "uint8"))
        with dask.config.set(scheduler="threads", num_workers=threads):
            da.store(lazy, array, lock=False)


def pyvips(slide: Path, out: Path, threads: int) -> None:
    """libvips' resize of a sequential read, to tiled TIFF without compression, resolution by resolution."""
    import os

    os.environ["VIPS_CONCURRENCY"] = str(threads)
    import pyvips

    out.mkdir()
    for mpp in RESOLUTIONS:
        image = pyvips.Image.tiffload(str(slide), page=0, access="sequential")
        image = image.resize(MPP / mpp, kernel="lanczos3")
        image.tiffsave(str(out / f"{mpp}.tif"), tile=True, tile_width=CHUNK, tile_height=CHUNK)


def cucim(slide: Path, out: Path, threads: int) -> None:
    """cuCIM's read_region on the CPU and Pillow's reducing, chunk by chunk, resolution by resolution."""
    from cucim import CuImage
    from PIL import Image

    file = CuImage(str(slide))
    shape = file.resolutions["level_dimensions"][0][::-1]
    for mpp, array in zip(RESOLUTIONS, _zarrs(out, shape), strict=True):

        def read(row, column, high, wide, rows, columns):
            region = Image.fromarray(np.asarray(file.read_region((column, row), (wide, high), level=0)))
            return np.asarray(region.resize((columns, rows), Image.Resampling.BOX))

        _chunk_by_chunk(read, array, mpp, threads)


def tiatoolbox(slide: Path, out: Path, threads: int) -> None:
    """WSIReader.read_rect at a resolution, chunk by chunk."""
    from tiatoolbox.wsicore.wsireader import WSIReader

    reader = WSIReader.open(slide)
    shape = tuple(reader.info.slide_dimensions[::-1])
    for mpp, array in zip(RESOLUTIONS, _zarrs(out, shape), strict=True):

        def read(row, column, high, wide, rows, columns, mpp=mpp):
            return reader.read_rect((column, row), (columns, rows), resolution=mpp, units="mpp")

        _chunk_by_chunk(read, array, mpp, threads)


LIMITS = {"decode": decode, "area mean": area_mean, "zstd": compress}
OURS = {"ours": ours, "ours, OpenSlide": through_openslide}
PEERS = {
    "openslide loop": openslide_loop,
    "dask over openslide": dask_openslide,
    "pyvips": pyvips,
    "cucim": cucim,
    "tiatoolbox": tiatoolbox,
}
ALL = LIMITS | OURS | PEERS
PACKAGES = {"pyvips", "cucim", "tiatoolbox"}  # that may not be installed


def worker(name: str, slide: Path, threads: int, out: Path) -> None:
    """One process; prints seconds and the most bytes."""
    import gigapipe.pyramids.build  # noqa: F401  imports, of most packages here, are no work of anybody's

    shutil.rmtree(out, ignore_errors=True)
    begun = time.perf_counter()
    own = ALL[name](slide, out, threads)
    seconds = time.perf_counter() - begun
    print(json.dumps({"seconds": own or seconds, "peak": memory("VmHWM"), "error": error(slide, out, name)}))


def error(slide: Path, out: Path, name: str) -> float | None:
    """Mean difference from the exact area mean at 1 µm per pixel."""
    if name in LIMITS:
        return None
    import zarr

    from gigapipe.pyramids.build import output_of
    from gigapipe.pyramids.settings import Settings
    from gigapipe.slides.reader import Slide

    if name == "pyvips":
        import tifffile

        array = tifffile.imread(out / "1.0.tif").transpose(2, 0, 1)
    else:
        array = zarr.open_array(out / ("image.zarr/1" if name in OURS else "1"), mode="r")
    with Slide(slide) as file:
        differences = []
        for share in (0.1, 0.45, 0.8):
            (rows, columns) = ((int(share * n), int(share * n) + 300) for n in array.shape[1:])
            exact = output_of(file, 1.0, rows, columns, Settings())
            differences.append(abs(array[:, slice(*rows), slice(*columns)].astype(int) - exact).mean())
    return float(np.mean(differences))


def main(args: argparse.Namespace) -> None:
    slide = generated(args.store, args.size)
    gigapixels = (args.size + 11) * (args.size - 3) / 1e9
    names = [name for name in args.only if name not in PACKAGES or importlib.util.find_spec(name)]
    print(f"{args.size} px, {gigapixels:.2f} Gpx, {slide.stat().st_size / 1e6:.0f} MB, {args.threads} threads")
    for name in set(args.only) - set(names):
        print(f"{name}: not installed")
    found: dict[str, list[dict]] = {name: [] for name in names}
    for _ in range(args.rounds):
        for name in names:
            command = [sys.executable, __file__, "--worker", name, "--size", str(args.size)]
            command += ["--threads", str(args.threads), "--store", str(args.store)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                print(f"{name}: failed", flush=True)
                continue
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    seconds = {n: statistics.median(r["seconds"] for r in runs) / gigapixels for n, runs in found.items() if runs}
    limits = sum(seconds.get(name, float("nan")) for name in LIMITS)
    print("\n                       s/Gpx   × limits   peak, MB   mean error")
    for name, each in seconds.items():
        runs = found[name]
        error = "" if runs[0]["error"] is None else f"{runs[0]['error']:12.3f}"
        print(f"{name:20} {each:8.2f} {each / limits:10.2f} {max(r['peak'] for r in runs) / 1e6:10.0f} {error}")
    print(f"{'limits together':20} {limits:8.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=20000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=ALL, default=list(ALL))
    parser.add_argument("--store", type=Path, default=Path("results/pyramids-benchmark"))
    parser.add_argument("--worker", choices=ALL, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name = args.worker
        worker(
            name, generated(args.store, args.size), args.threads, args.store / name.replace(", ", "-").replace(" ", "-")
        )
    else:
        main(args)
