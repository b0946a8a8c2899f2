"""Conversion of a slide to its pyramid: every resolution by exact area mean, in one pass over the slide, with Dask.

A task is a block of the slide: its tiles are decoded once, band by band, for all resolutions. For the finest resolution
a block consists of complete chunks, which it writes; for coarser ones of parts of chunks, which are stored until all
parts are there. Finished tasks are recorded, so that an interrupted conversion resumes.
"""

import functools
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import dask
import numpy as np
import zarr
from dask.tokenize import tokenize
from PIL import Image, ImageCms
from tqdm.dask import TqdmCallback

import gigapipe
from gigapipe import named
from gigapipe.atomic import atomic_file, resumable_folder
from gigapipe.errors import InputError, Unavailable
from gigapipe.progress import Progress
from gigapipe.pyramids import folders, store
from gigapipe.pyramids.appearance import density_of
from gigapipe.pyramids.area import AreaMean, Axis
from gigapipe.pyramids.blocks import Blocks, Range
from gigapipe.pyramids.codecs import Codec, rounded
from gigapipe.pyramids.schedulers import LOST, workers
from gigapipe.pyramids.settings import Settings, drawn_when, open_slide, refuse_replaced
from gigapipe.slides.checksum import md5_of_file
from gigapipe.slides.crashes import crash_of
from gigapipe.slides.level_checks import fault
from gigapipe.slides.levels import Level, Mended, open_level
from gigapipe.slides.reader import Slide
from gigapipe.slides.regions import read_regions
from gigapipe.slides.tissue import Tissue, find_tissue, of_mask
from gigapipe.slides.verdicts import FINE, NO_TISSUE, NONE

logger = logging.getLogger(__name__)

OVERVIEW = 1024  # px of the longest side, at most, of the picture in which tissue is found
# What a build needs until it ends, in the folder of the store.
WORK = Path("work")
BEGUN, DONE, PIECES, TISSUE = (WORK / name for name in ("begun", "done", "pieces", "tissue.npz"))


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

    The store is written under another name and renamed when it is complete; an existing `folder` is replaced only then.
    An interrupted conversion resumes if it is started again with the same arguments. `scheduler` is that of Dask:
    `threads`, `processes`, the address of a distributed one, or one of `schedulers.QUEUES`, to which as many jobs are
    submitted as there are `threads`.

    Raises InputError, naming the slide, if it cannot be read or is coarser than one of `resolutions`.
    """
    slide_path, folder, resolutions = Path(slide_path), Path(folder), sorted(resolutions)
    with open_slide(slide_path, settings) as slide:
        slide.refuse_finer(resolutions[0], settings.mpp_tolerance)
        made_of = slide.identity()
        code = named.code_of(settings.reader) if settings.reader else None
        identity = json.dumps(
            [made_of, drawn_when(settings), resolutions, settings.model_dump(), code, gigapipe.__version__]
        )
        with resumable_folder(folder, identity) as partial:
            job = Job(slide_path.absolute(), partial.absolute(), tuple(resolutions), settings, identity)
            passes = _passes(slide, resolutions, settings)
            if not (partial / BEGUN).exists():
                _begin(job, slide, passes)
            try:
                md5 = _run(job, passes, threads, scheduler)
            except InputError:
                refuse_replaced(slide_path, settings, made_of)
                raise
            refuse_replaced(slide_path, settings, made_of)
            _finish(job, slide, md5)


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
    """The coarsest level of the file that shows what level 0 does, and is not coarser by more than `ratio`."""
    fine_enough = [i for i, d in enumerate(slide.level_downsamples) if d <= ratio * (1 + 1e-6)]
    return next(i for i in sorted(fine_enough, key=lambda i: -slide.level_downsamples[i]) if not fault(slide, i))


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
        settings.codec,
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
    overview = _unless_done(job, "overview", _make_overview)
    tasks = {"overview": overview}
    for number, blocks in enumerate(passes):
        for block in np.ndindex(blocks.grid):
            key = f"block-{number}-{block[0]}-{block[1]}"
            outline = overview if job.settings.clean_background else None
            tasks[key] = _unless_done(job, key, _make_block, blocks, block, after=outline)
        for i in blocks.outputs:
            for at, unit in enumerate([] if blocks.is_whole(i) else blocks.units(i)):
                makers = blocks.makers(i, *unit)
                after = [tasks[f"block-{number}-{row}-{column}"] for row, column in makers]
                key = f"chunk-{i}-{at}"
                after = [task for task in after if task is not None]
                tasks[key] = _unless_done(job, key, _join_pieces, blocks, i, unit, after=after)
    md5 = dask.delayed(md5_of_file)(job.slide)
    progress = TqdmCallback(tqdm_class=Progress, what=job.slide.stem, unit="tasks")
    try:
        with workers(threads, scheduler, job.folder / WORK), progress:
            found = dask.compute(md5, *(task for task in tasks.values() if task is not None))[0]
    except InputError as error:
        # From another process it comes with that one's traceback.
        told = getattr(error, "exception", error)
        raise (Unavailable if isinstance(told, Unavailable) else InputError)(str(told)) from None
    except OSError as error:
        raise getattr(error, "exception", error) from None
    except Exception as error:
        if type(error).__name__ in LOST:
            raise crash_of(job.slide, "a process started by Dask was lost") from None
        raise
    finally:
        _opened.cache_clear()
    undone = [key for key in tasks if not (job.folder / DONE / key).exists()]
    if undone:
        raise RuntimeError(f"slide {job.slide}: {len(undone)} tasks did not finish, the first is {undone[0]}")
    return found


def _unless_done(job: Job, key: str, function, *arguments, after=None):
    """The task of calling `function(job, key, *arguments, after)`, when the tasks `after` are done."""
    if (job.folder / DONE / key).exists():
        return None
    # Dask would look for tasks in all arguments, one by one: those that are none are bound before.
    bound = dask.delayed(functools.partial(function, job, key, *arguments), name=key, pure=False, traverse=False)
    # Two slides may be on one cluster, and a cluster knows tasks by their names.
    return bound(after, dask_key_name=f"{key}-{tokenize(job)}")


@functools.lru_cache(maxsize=4)
def _opened(job: Job, level: int) -> tuple[Level, list[zarr.Array]]:
    """A level of the slide and the store's arrays, once a process: a slide survives no fork."""
    slide = open_slide(job.slide, job.settings)
    return open_level(slide, level), store.arrays(job.folder)


def _make_overview(job: Job, key: str, _after: None) -> None:
    """The whole slide in small, from a level of the file that is not much finer, and where its tissue is."""
    with open_slide(job.slide, job.settings) as slide:
        ratio = [max(1.0, max(slide.shape) / OVERVIEW)] * 2
        index = _nearest_level(slide, ratio[0])
        axes = _axes(slide, ratio, index)
        mean = AreaMean(*axes, *((0, axis.size) for axis in axes))
        _feed(_read_as(open_level(slide, index), job.settings), [mean], job.settings)
        picture = np.ascontiguousarray(mean.mean.transpose(1, 2, 0))
        tissue = _tissue(picture, slide, job.settings)
        faults = {level: found for level in range(len(slide.level_shapes)) if (found := fault(slide, level))}
    with atomic_file(job.folder / folders.OVERVIEW) as partial:
        Image.fromarray(picture).save(partial, "PNG", compress_level=1)
    with atomic_file(job.folder / TISSUE) as partial, open(partial, "wb") as file:
        np.savez(file, **asdict(tissue))
    _mark(job, key, {"faults": faults, "density": density_of(picture, tissue.outline)})


def _tissue(picture: np.ndarray, slide: Slide, settings: Settings) -> Tissue:
    """Where a slide has tissue, as it is drawn or else found. InputError if it has none, and such are not kept."""
    if settings.tissue is None:
        tissue, remedy = find_tissue(picture, slide.shape, slide.mpp), "annotate it (column tissue of the sample sheet)"
    else:
        drawn = Path(settings.tissue)
        mask = read_regions(drawn, slide.shape, picture.shape[:2])
        mpp = [n * own / pixels for n, own, pixels in zip(slide.shape, slide.mpp, mask.shape, strict=True)]
        tissue = of_mask(mask, FINE if mask.any() else NONE, f"as annotated in {drawn.name}", mpp)
        remedy = "correct the annotation"
    if tissue.verdict == NONE and not settings.keep_without_tissue:
        raise InputError(
            f"slide {slide.path}: {NO_TISSUE}: {tissue.why}; {remedy}, use such slides as a whole "
            "(pyramids.keep_without_tissue), or remove it from the sample sheet"
        )
    return tissue


def _make_block(job: Job, key: str, blocks: Blocks, block: tuple[int, int], _after: None) -> None:
    """Make a block's part of every output."""
    level, arrays = _opened(job, blocks.level)
    level = _read_as(level, job.settings)
    parts = {i: blocks.part(i, block) for i in blocks.outputs}
    means = {
        i: AreaMean(*blocks.outputs[i], *part) for i, part in parts.items() if all(a < b for a, b in part)
    }  # of coarse outputs no pixel may begin here
    _feed(level, list(means.values()), job.settings)
    errors = {}
    for i, mean in means.items():
        if job.settings.clean_background:
            outline = np.load(job.folder / TISSUE)["outline"]
            shape = tuple(axis.size for axis in blocks.outputs[i])
            if outline.any():  # of a slide without tissue nothing is erased
                mean.mean[:, ~store.at_pixels(outline, *parts[i], shape)] = 255
        if blocks.is_whole(i):
            errors[i] = write_rounded(arrays[i], *parts[i], mean.mean, job.settings.codec)
        else:
            with atomic_file(_piece(job, i, block)) as partial, open(partial, "wb") as file:
                np.save(file, mean.mean)
    d = level.slide.level_downsamples[blocks.level]
    damaged = [[d * row, d * column] for row, column in sorted(getattr(level, "damaged", []))]
    _mark(job, key, {"damaged": damaged, "errors": errors})


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
    _mark(job, key, {"errors": {i: write_rounded(arrays[i], *unit, whole, job.settings.codec)}})


def write_rounded(
    array: zarr.Array, rows: Range, columns: Range, pixels: np.ndarray, codec: Codec
) -> tuple[int, int, int]:
    """Write pixels; how many grey levels they lose by it, in sum and at most, and how many values they are."""
    stored = rounded(pixels, codec)
    store.write(array, rows, columns, stored)
    if codec == "jpeg":
        stored = np.asarray(array[:, slice(*rows), slice(*columns)])
    if codec == "zstd":
        return 0, 0, pixels.size
    lost = np.maximum(pixels, stored) - np.minimum(pixels, stored)
    return int(lost.sum()), int(lost.max()), lost.size


def mean_error(parts: Sequence[Sequence[int]]) -> float:
    """Of what `write_rounded` told of each part of an array."""
    return round(sum(part[0] for part in parts) / sum(part[2] for part in parts), 3)


def largest_error(parts: Sequence[Sequence[int]]) -> int:
    return max(part[1] for part in parts)


def _piece(job: Job, i: int, block: tuple[int, int]) -> Path:
    return job.folder / PIECES / f"{i}-{block[0]}-{block[1]}.npy"


def _mark(job: Job, key: str, found: dict) -> None:
    """Leave word that a task is done, and what it `found`: damaged tiles and errors, or how the slide looks."""
    with atomic_file(job.folder / DONE / key) as partial:
        partial.write_text(json.dumps(found), encoding="utf-8")


def _finish(job: Job, slide: Slide, md5: str) -> None:
    with np.load(job.folder / TISSUE) as saved:
        tissue = Tissue(**{name: saved[name].tolist() if name != "outline" else saved[name] for name in saved})
    marks = [json.loads(mark.read_text(encoding="utf-8")) for mark in (job.folder / DONE).glob("[bc]*")]
    damaged = {tuple(at) for mark in marks for at in mark.get("damaged", [])}
    parts = [mark["errors"] for mark in marks]
    errors = [[part[str(i)] for part in parts if str(i) in part] for i in range(len(job.resolutions))]
    of_overview = json.loads((job.folder / DONE / "overview").read_text(encoding="utf-8"))
    faults = of_overview["faults"] | {str(level): found for level, found in slide.faults.items() if found}
    for level, found in faults.items():
        logger.warning(f"slide {slide.path}: its level {level} is not used: {found}")
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
                "icc_profile": slide.profile_name,
                "damaged_tiles": sorted(damaged),
                "unused_levels": faults,
                **({"reader_code": named.code_of(job.settings.reader)} if job.settings.reader else {}),
            },
            "resolutions": list(job.resolutions),
            "codec": {
                "name": job.settings.codec,
                "mean_error": [mean_error(each) for each in errors],
                "largest_error": [largest_error(each) for each in errors],
            },
            "settings": job.settings.model_dump(),
            "tissue": {
                "box_um": tissue.box_um,
                "fraction": tissue.fraction,
                "verdict": tissue.verdict,
                "why": tissue.why,
                "density": of_overview["density"],
            },
        },
    )
    (job.folder / BEGUN).unlink()  # first: without it nothing else of this is taken for anything
    shutil.rmtree(job.folder / WORK)
