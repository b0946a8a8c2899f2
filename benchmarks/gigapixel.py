"""Training steps on one gigapixel image, in one process of limited memory, read from a zarr store.

    python benchmarks/gigapixel.py resnet18 22528 22528 --precision bfloat16
    python benchmarks/gigapixel.py unet 16000 64000 --steps 12

The image is a mosaic of phantom slides at 0.5 µm per pixel, made once in --store; the U-Net's target is where their
tissue is. A ResNet has frozen BatchNorm, or with `--norm batch` a trainable one; with `--disk FOLDER` images are kept
there that do not fit into memory. Prints the plan, progress, and for each step its loss, its seconds and the
most memory that the process has had so far, interpreter and libraries included. `--white 0.5` leaves the left half of
the image white, as masking glass does. With `--cold` the store is not in the page cache when a step begins; what the
same threads take to read it alone, each chunk once, is measured before, and how long the step took in comparison with
the larger of that and of its processor seconds over the threads.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from streaming import memory

from gigapipe.allocator import return_freed_tensors
from gigapipe.cli.arguments import size_in_bytes
from gigapipe.progress import Progress

CELL = 1024  # px a side of a phantom in the mosaic


def mosaic(folder: Path, rows: int, columns: int, white: float) -> None:
    """Image (3, rows, columns) and mask (1, rows, columns), uint8, in zarr arrays of `folder`."""
    import zarr

    from gigapipe.slides.phantom import MPP, WHITE, cohort, render
    from gigapipe.slides.tissue import tissue_outline

    tiles = []
    for phantom in cohort(patients=6):
        picture = np.full((CELL, CELL, 3), int(WHITE), np.uint8)
        rendered = render(phantom)[:CELL, :CELL]
        picture[: rendered.shape[0], : rendered.shape[1]] = rendered
        tiles.append((picture.transpose(2, 0, 1), tissue_outline(picture, MPP)[None].astype(np.uint8)))
    rng = np.random.default_rng(0)
    partial = folder.with_suffix(".partial")
    group = zarr.open_group(partial, mode="w", zarr_format=3)
    arrays = [
        group.create_array(name, shape=(n, rows, columns), chunks=(n, 512, 512), dtype="uint8", fill_value=fill)
        for name, n, fill in (("image", 3, 255), ("mask", 1, 0))
    ]
    for row in Progress(range(0, rows, CELL), what="mosaic", unit="rows of cells"):
        for column in range(0, columns, CELL):
            turn, flip = rng.integers(4), rng.integers(2)
            for array, tile in zip(arrays, tiles[rng.integers(len(tiles))], strict=True):
                tile = np.rot90(tile, turn, (1, 2))[:, :: 1 - 2 * flip]
                if column + CELL > white * columns:
                    array[:, row : row + CELL, column : column + CELL] = tile[:, : rows - row, : columns - column]
    partial.rename(folder)


def make_cold(folder: Path) -> None:
    """Have the system drop what it keeps in memory of the files in a folder."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def seconds_to_read(array, threads: int) -> float:
    """Of all its chunks, each once, by threads that read a row of chunks at a time."""
    _, high, _ = array.chunks
    begun = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda row: array[:, row : row + high].size, range(0, array.shape[1], high)):
            pass
    return time.perf_counter() - begun


def main(args: argparse.Namespace) -> None:
    return_freed_tensors()
    import torch
    import torch.nn.functional as F

    from gigapipe import models
    from gigapipe.cli.messages import log_to_stderr
    from gigapipe.pyramids.store import open_array
    from gigapipe.spatial import Mesh, decompose
    from gigapipe.training.inverted import inverted
    from gigapipe.training.losses import dice_and_cross_entropy
    from gigapipe.training.streaming import Memory, Streaming

    folder = args.store / f"{args.rows}x{args.columns}-{args.white:g}"
    if not folder.exists():
        mosaic(folder, args.rows, args.columns, args.white)
    arrays = {name: open_array(folder / name) for name in ("image", "mask")}  # read as a training reads them
    shape = (1, 3, args.rows, args.columns)

    def pixels_of(name, rectangle):
        array = arrays[name]

        def load(rows, columns):
            return np.asarray(array[:, slice(*rows), slice(*columns)])

        cache = streaming.cache
        return (cache.read(name, array.shape, array.chunks, load, *rectangle) if cache else load(*rectangle))[None]

    def image(rectangle, device):
        return inverted(pixels_of("image", rectangle), streaming.cache.memory)

    def mask(rectangle, device):
        return torch.from_numpy(pixels_of("mask", rectangle)).float()

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    mesh = Mesh()
    model = models.GigapixelUNet() if args.network == "unet" else getattr(models, args.network)(2, args.norm)
    decompose(model.to(memory_format=torch.channels_last), mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bfloat16")
    log_to_stderr()
    streaming = Streaming(Memory(args.memory, args.disk), mesh, model)
    print(f"{args.network}, {args.rows} × {args.columns} px, {args.precision}, {args.threads} threads", flush=True)

    def loss_of(output, pixels):
        if args.network != "unet":
            return F.cross_entropy(output.float(), torch.tensor([1]))
        return dice_and_cross_entropy(output, streaming.image(mask, (1, 1, *shape[2:]), pixels))

    reading = 0.0
    if args.cold:
        make_cold(folder)
        used = ("image", "mask") if args.network == "unet" else ("image",)
        reading = sum(seconds_to_read(arrays[name], args.threads) for name in used)
        print(f"reading alone: {reading:.1f} s", flush=True)
    for step in range(args.steps):
        if args.cold:
            make_cold(folder)
        begun, worked = time.perf_counter(), time.process_time()
        with autocast:
            streaming.prepare(model, shape, loss_of if args.network == "unet" else None)
            pixels = streaming.image(image, shape)
            loss = loss_of(model(pixels), pixels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        streaming.done()
        seconds, of_processors = time.perf_counter() - begun, time.process_time() - worked
        peak = memory("VmHWM") / 2**30
        line = f"step {step + 1}: loss {loss.item():.5f}, {seconds:.1f} s, peak {peak:.2f} GiB"
        line += f", {of_processors:.1f} s of processors"
        if args.cold:
            line += f", {seconds / max(reading, of_processors / args.threads):.3f} of the least"
        print(line, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=["resnet18", "resnet50", "unet"])
    parser.add_argument("rows", type=int)
    parser.add_argument("columns", type=int)
    parser.add_argument("--norm", choices=["frozen", "batch"], default="frozen", help="of a ResNet")
    parser.add_argument("--memory", type=size_in_bytes, default=8 * 2**30)
    parser.add_argument("--disk", type=Path)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--white", type=float, default=0.0)
    parser.add_argument("--cold", action="store_true", help="the store is not in the page cache")
    parser.add_argument("--store", type=Path, default=Path("results/gigapixel"))
    sys.exit(main(parser.parse_args()))
