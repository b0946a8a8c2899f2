"""From a slide to its pyramid: every resolution by exact area mean, in one pass over the slide's pixels, with Dask.

A task is a block of the slide: its tiles are decoded once, band by band, for all resolutions. What a block makes of
the finest is whole chunks, which it writes; of coarser ones it is pieces of chunks, left aside until their last
neighbour is there. A task that is done leaves a mark, so that a run that was killed goes on from there.
"""

import contextlib
import functools
import hashlib
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import dask
import dask.threaded
import numpy as np
import zarr
from dask.tokenize import tokenize
from PIL import Image, ImageCms
from tqdm.dask import TqdmCallback

import gigapipe
from gigapipe.atomic import atomic_file, resumable_folder
from gigapipe.configuration.configuration import PyramidPixels
from gigapipe.configuration.values import Micrometres
from gigapipe.errors import InputError
from gigapipe.progress import Progress
from gigapipe.pyramids import store
from gigapipe.pyramids.area import AreaMean, Axis
from gigapipe.pyramids.blocks import Blocks, Range
from gigapipe.slides.levels import Level, Mended, open_level
from gigapipe.slides.reader import Slide
from gigapipe.slides.tissue import Tissue, find_tissue

OVERVIEW = 1024  # px of the longest side, at most, of the picture in which tissue is found
QUEUES = {"slurm": "SLURMCluster", "lsf": "LSFCluster", "pbs": "PBSCluster", "sge": "SGECluster"}  # of dask-jobqueue
# What a build needs until it ends, in the folder of the store.
WORK = Path("work")
BEGUN, DONE, PIECES, TISSUE = (WORK / name for name in ("begun", "done", "pieces", "tissue.npz"))


class Settings(PyramidPixels):
    """How a pyramid is made, beside its resolutions."""

    mpp: Micrometres | None = None
    """Of the slide, against what its file says."""


DEFAULT = Settings()


def build_pyramid(
    slide_path: str | Path,
    folder: str | Path,
    resolutions: list[float],
    settings: Settings = DEFAULT,
    threads: int = 2,
    scheduler: str = "threads",
) -> None:
    """Write the slide at each of `resolutions` (µm per pixel) into a new store in `folder`.

    The store is written under another name and renamed when whole; what was in `folder` before is replaced only then.
    A build that was killed goes on from what it has if it is started again in the same way. `scheduler` is Dask's:
    `threads`, `processes`, the address of a distributed one, or one of `QUEUES`, to which as many jobs are
    submitted as there are `threads`.

    Raises InputError, naming the slide, if it cannot be read or is coarser than one of `resolutions`.
    """
    slide_path, folder, resolutions = Path(slide_path), Path(folder), sorted(resolutions)
    with Slide(slide_path, settings.mpp, settings.assume_mpp) as slide:
        slide.refuse_finer(resolutions[0])
        status = slide_path.stat()
        made_of = [slide_path.name, status.st_size, status.st_mtime_ns, slide.quickhash]
        identity = json.dumps([made_of, resolutions, settings.model_dump(), gigapipe.__version__])
        with resumable_folder(folder, identity) as partial:
            job = Job(slide_path.absolute(), partial.absolute(), tuple(resolutions), settings, identity)
            passes = _passes(slide, resolutions, settings)
            if not (partial / BEGUN).exists():
                _begin(job, slide, passes)
            _finish(job, slide, md5=_run(job, passes, threads, scheduler))


@dataclass(frozen=True)
class Job:
    """What a task is told. `folder` is where the store is being made."""

    slide: Path
    folder: Path
    resolutions: tuple[float, ...]
    settings: Settings
    identity: str
    """Of this very slide file: a worker that lives on must not take another for it."""


def _passes(slide: Slide, resolutions: list[float], settings: Settings) -> list[Blocks]:
    """One for each level of the file that is read."""
    outputs: dict[int, dict[int, tuple[Axis, Axis]]] = {}
    for i, mpp in enumerate(resolutions):
        ratio = [max(1.0, mpp / own) for own in slide.mpp]
        level = _nearest_level(slide, min(ratio)) if settings.source_level == "fast" else 0
        outputs.setdefault(level, {})[i] = _axes(slide, ratio, level)
    return [Blocks.of(level, axes, settings.shard or settings.chunk) for level, axes in outputs.items()]


def _nearest_level(slide: Slide, ratio: float) -> int:
    """The coarsest level of the file that is not coarser than level 0 by more than `ratio`."""
    fine_enough = [i for i, d in enumerate(slide.level_downsamples) if d <= ratio * (1 + 1e-6)]
    return max(fine_enough, key=lambda i: slide.level_downsamples[i])


def _axes(slide: Slide, ratio: list[float], level: int) -> tuple[Axis, Axis]:
    """Rows and columns of an output, from a level, that have the size that they have from level 0."""
    downsample = slide.level_downsamples[level]
    sizes = [Axis.of(n, r).size for n, r in zip(slide.shape, ratio, strict=True)]
    parts = zip(slide.level_shapes[level], ratio, sizes, strict=True)
    rows, columns = (Axis.of(n, r / downsample, size) for n, r, size in parts)
    return rows, columns


def _begin(job: Job, slide: Slide, passes: list[Blocks]) -> None:
    """What is there before the first task: an empty store."""
    shutil.rmtree(job.folder / WORK, ignore_errors=True)
    (job.folder / DONE).mkdir(parents=True)
    (job.folder / PIECES).mkdir()
    outputs = {i: (rows.size, columns.size) for blocks in passes for i, (rows, columns) in blocks.outputs.items()}
    shapes = [outputs[i] for i in range(len(outputs))]
    settings = job.settings
    store.create(
        job.folder,
        settings.ome_zarr,
        slide.path.name,
        list(job.resolutions),
        shapes,
        slide.mpp,
        settings.chunk,
        settings.shard,
    )
    (job.folder / BEGUN).touch()


def output_of(
    slide: Slide, mpp: float, rows: tuple[int, int], columns: tuple[int, int], settings: Settings
) -> np.ndarray:
    """Some rows and columns (half-open) of a slide at `mpp` µm per pixel: (channel, row, column), uint8.

    The background is as it is in the slide, whatever `settings` say.

    Raises InputError if the slide is damaged there.
    """
    (blocks,) = _passes(slide, [mpp], settings)
    mean = AreaMean(*blocks.outputs[0], rows, columns)
    _feed(_read_as(open_level(slide, blocks.level), settings), [mean], settings)
    return mean.mean


def _read_as(level: Level, settings: Settings) -> Level:
    return Mended(level) if settings.damaged == "white" else level


def _feed(level: Level, means: list[AreaMean], settings: Settings) -> None:
    """Read what is needed for all `means` once, from tile row to tile row."""
    (top, bottom), (left, right) = (
        (min(start for start, _ in ranges), max(stop for _, stop in ranges))
        for ranges in ([mean.rows for mean in means], [mean.columns for mean in means])
    )
    while top < bottom:
        stop = min(bottom, (top // level.tile[0] + 1) * level.tile[0])
        band = _coloured(level.read(top, left, stop - top, right - left), level.slide, settings)
        for mean in means:
            mean.feed(band, top, left)
        top = stop


def _coloured(band: np.ndarray, slide: Slide, settings: Settings) -> np.ndarray:
    """Pixels (rows, columns, 3), uint8, in the colours that are asked for."""
    if settings.colours == "scanner" or slide.to_srgb is None:
        return band
    return np.asarray(ImageCms.applyTransform(Image.fromarray(band), slide.to_srgb))


def _run(job: Job, passes: list[Blocks], threads: int, scheduler: str) -> str:
    """Do what is not done; the slide file's MD5."""
    tissue = _unless_done(job, "tissue", _make_overview)
    tasks = {"tissue": tissue}
    for number, blocks in enumerate(passes):
        for block in np.ndindex(blocks.grid):
            key = f"block-{number}-{block[0]}-{block[1]}"
            outline = tissue if job.settings.clean_background else None
            tasks[key] = _unless_done(job, key, _make_block, blocks, block, after=outline)
        for i in blocks.outputs:
            for at, unit in enumerate([] if blocks.is_whole(i) else blocks.units(i)):
                makers = blocks.makers(i, *unit)
                after = [tasks[f"block-{number}-{row}-{column}"] for row, column in makers]
                key = f"chunk-{i}-{at}"
                after = [task for task in after if task is not None]
                tasks[key] = _unless_done(job, key, _join_pieces, blocks, i, unit, after=after)
    md5 = dask.delayed(_md5)(job.slide)
    progress = TqdmCallback(tqdm_class=Progress, what=job.slide.stem, unit="tasks")
    try:
        with _workers(threads, scheduler), progress:
            found = dask.compute(md5, *(task for task in tasks.values() if task is not None))[0]
    except InputError as error:
        # From another process it comes with that one's traceback.
        raise InputError(str(getattr(error, "exception", error))) from None
    finally:
        _opened.cache_clear()
    undone = [key for key in tasks if not (job.folder / DONE / key).exists()]
    if undone:
        raise RuntimeError(f"slide {job.slide}: {len(undone)} tasks left no mark, the first {undone[0]}")
    return found


def _unless_done(job: Job, key: str, function, *arguments, after=None):
    """The task of calling `function(job, key, *arguments, after)`, when the tasks `after` are done."""
    if (job.folder / DONE / key).exists():
        return None
    # Dask would look for tasks in all arguments, one by one: those that are none are bound before.
    bound = dask.delayed(functools.partial(function, job, key, *arguments), name=key, pure=False, traverse=False)
    # Two slides may be on one cluster, and a cluster knows tasks by their names.
    return bound(after, dask_key_name=f"{key}-{tokenize(job)}")


@contextlib.contextmanager
def _workers(threads: int, scheduler: str) -> Iterator[None]:
    if scheduler == "threads":
        # A pool that is waited for: if a task fails, no other still writes when the folder is removed.
        # By the function, not its name: looking a name up imports `distributed`, where that is installed.
        with ThreadPoolExecutor(threads) as pool, dask.config.set(scheduler=dask.threaded.get, pool=pool):
            yield
    elif scheduler == "processes":
        with dask.config.set(scheduler="processes", num_workers=threads, chunksize=1):
            yield
    else:
        try:
            from distributed import Client
        except ImportError:
            raise InputError(f"scheduler {scheduler}: needs `pip install distributed`") from None
        cluster = _submitted(scheduler, threads) if scheduler in QUEUES else contextlib.nullcontext(scheduler)
        with cluster as address, Client(address):
            yield


def _submitted(queue: str, jobs: int):
    """A cluster of Dask's own, of so many jobs; what each of them asks for stands in Dask's configuration."""
    try:
        import dask_jobqueue
    except ImportError:
        raise InputError(f"scheduler {queue}: needs `pip install dask-jobqueue`") from None
    cluster = getattr(dask_jobqueue, QUEUES[queue])()
    cluster.scale(jobs=jobs)
    return cluster


@functools.lru_cache(maxsize=4)
def _opened(job: Job, level: int) -> tuple[Level, list[zarr.Array]]:
    """A level of the slide and the store's arrays, once a process: a slide survives no fork."""
    slide = Slide(job.slide, job.settings.mpp, job.settings.assume_mpp)
    return open_level(slide, level), store.arrays(job.folder)


def _make_overview(job: Job, key: str, _after: None) -> None:
    """The whole slide in small, from a level of the file that is not much finer, and where its tissue is."""
    with Slide(job.slide, job.settings.mpp, job.settings.assume_mpp) as slide:
        ratio = [max(1.0, max(slide.shape) / OVERVIEW)] * 2
        index = _nearest_level(slide, ratio[0])
        axes = _axes(slide, ratio, index)
        mean = AreaMean(*axes, *((0, axis.size) for axis in axes))
        _feed(_read_as(open_level(slide, index), job.settings), [mean], job.settings)
        picture = np.ascontiguousarray(mean.mean.transpose(1, 2, 0))
        tissue = find_tissue(picture, slide.shape, slide.mpp)
    with atomic_file(job.folder / store.OVERVIEW) as partial:
        Image.fromarray(picture).save(partial, "PNG", compress_level=1)
    with atomic_file(job.folder / TISSUE) as partial, open(partial, "wb") as file:
        np.savez(file, **asdict(tissue))
    _mark(job, key, [])


def _make_block(job: Job, key: str, blocks: Blocks, block: tuple[int, int], _after: None) -> None:
    """Make a block's part of every output."""
    level, arrays = _opened(job, blocks.level)
    level = _read_as(level, job.settings)
    parts = {i: blocks.part(i, block) for i in blocks.outputs}
    means = {
        i: AreaMean(*blocks.outputs[i], *part) for i, part in parts.items() if all(a < b for a, b in part)
    }  # of coarse outputs no pixel may begin here
    _feed(level, list(means.values()), job.settings)
    for i, mean in means.items():
        if job.settings.clean_background:
            outline = np.load(job.folder / TISSUE)["outline"]
            shape = tuple(axis.size for axis in blocks.outputs[i])
            mean.mean[:, ~store.at_pixels(outline, *parts[i], shape)] = 255
        if blocks.is_whole(i):
            store.write(arrays[i], *parts[i], mean.mean)
        else:
            with atomic_file(_piece(job, i, block)) as partial, open(partial, "wb") as file:
                np.save(file, mean.mean)
    d = level.slide.level_downsamples[blocks.level]
    _mark(job, key, [[d * row, d * column] for row, column in sorted(getattr(level, "damaged", []))])


def _join_pieces(job: Job, key: str, blocks: Blocks, i: int, unit: tuple[Range, Range], _after: list) -> None:
    """Write a chunk (or a shard) of output `i` of which blocks have made pieces."""
    (top, bottom), (left, right) = unit
    whole = np.empty((3, bottom - top, right - left), np.uint8)
    for block in blocks.makers(i, *unit):
        (row, row_stop), (column, column_stop) = blocks.part(i, block)
        (a, b), (c, d) = (max(top, row), min(bottom, row_stop)), (max(left, column), min(right, column_stop))
        piece = np.load(_piece(job, i, block), mmap_mode="r")
        whole[:, a - top : b - top, c - left : d - left] = piece[:, a - row : b - row, c - column : d - column]
    _, arrays = _opened(job, blocks.level)
    store.write(arrays[i], *unit, whole)
    _mark(job, key, [])


def _piece(job: Job, i: int, block: tuple[int, int]) -> Path:
    return job.folder / PIECES / f"{i}-{block[0]}-{block[1]}.npy"


def _mark(job: Job, key: str, damaged: list) -> None:
    with atomic_file(job.folder / DONE / key) as partial:
        partial.write_text(json.dumps(damaged), encoding="utf-8")


def _finish(job: Job, slide: Slide, md5: str) -> None:
    with np.load(job.folder / TISSUE) as saved:
        tissue = Tissue(**{name: saved[name].tolist() if name != "outline" else saved[name] for name in saved})
    marks = [json.loads(mark.read_text(encoding="utf-8")) for mark in (job.folder / DONE).glob("[bc]*")]
    damaged = {tuple(at) for mark in marks for at in mark}
    profile = slide.colour_profile
    version, levels = job.settings.ome_zarr, len(job.resolutions)
    down, across = tissue.outline_mpp
    store.add_label(job.folder, "tissue", tissue.outline, (down, across), slide.mpp, version, levels)
    store.finish(
        job.folder,
        {
            "source": {
                "name": slide.path.name,
                "bytes": slide.path.stat().st_size,
                "md5": md5,
                "mpp": list(slide.mpp),
                "shape": list(slide.shape),
                "vendor": slide.vendor,
                "objective": slide.objective,
                "icc_profile": profile and ImageCms.getProfileDescription(profile).strip(),
                "damaged_tiles": sorted(damaged),
            },
            "settings": job.settings.model_dump(),
            "tissue": {"box_um": tissue.box_um, "fraction": tissue.fraction},
        },
    )
    (job.folder / BEGUN).unlink()  # first: without it nothing else of this is taken for anything
    shutil.rmtree(job.folder / WORK)


def _md5(path: Path) -> str:
    """The checksum that slide archives publish; it tells versions apart, nothing rests on it for security."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
