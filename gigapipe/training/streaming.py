"""Whether a model's images are held or streamed: what fits the memory that a rank may take decides."""

import functools
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from gigapipe.errors import InputError
from gigapipe.progress import Progress
from gigapipe.pyramids.pixel_cache import PixelCache
from gigapipe.spatial import Mesh, Plan, SpatialTensor, plan_streaming, stream
from gigapipe.spatial.costs import trained_bytes, training_state
from gigapipe.spatial.heap import keep_some_freed_tensors
from gigapipe.spatial.layers import HEAP
from gigapipe.spatial.planning import resident_memory
from gigapipe.spatial.recording import Recorded, without_pixels
from gigapipe.spatial.speed import Disk, Host, disk_in, host_of
from gigapipe.spatial.window import Rectangle
from gigapipe.training.ahead import Ahead
from gigapipe.training.devices import allocated
from gigapipe.training.inverted import COMPILED, HOST, LARGE

logger = logging.getLogger(__name__)

Image = SpatialTensor | Recorded

ON_HOST = 2**30
"""Bytes of decoded pixels that a host keeps for a GPU, whose memory alone is limited."""

RECYCLED = 60_000_000
"""Bytes that a rank keeps for each thread of what tiles were read into, where memory is not short."""

RECYCLED_SHARE = 0.05
"""The share of the memory that this is at most."""

KEPT = 2**27
"""Bytes of decoded pixels that a rank keeps from epoch to epoch, at most, of slides that are not computed by tiles.

Small canvases take longer to read than to compute; of large ones reading is a small part.
"""


class Memory(NamedTuple):
    """What a rank may use for its process and its images."""

    limit: int
    """Bytes of memory: of a GPU where it has one."""
    disk: Path | None = None
    """A folder on a disk of its node, for images that do not fit."""
    host: int | None = None
    """Bytes of the memory of a GPU's host, for images that do not fit."""


class Streaming:
    """Gives a model its images so that no rank's process takes more than `memory`; None: as much as it likes.

    Streaming is planned once for training and once for prediction, when `prepare` is called with the model in that
    mode. The process may grow by what a `trained` model needs beside images.
    """

    def __init__(self, memory: Memory | None, mesh: Mesh, trained: nn.Module | None = None):
        self.memory, self.mesh = memory, mesh
        self.plans: dict[bool, Plan] = {}
        self.plan: Plan | None = None
        self._cache, self._ahead = PixelCache(KEPT), Ahead()
        self._room_ahead = True
        self.progress: StepProgress | None = None
        if memory is not None:
            without_pixels()  # loads what planning needs
            # Now: later the process has memory that it would use again.
            held = allocated(mesh.device)
            threads = torch.get_num_threads()
            present = resident_memory() if held is None else held
            kept = keep_some_freed_tensors(memory.limit - present, threads) if held is None else None
            self.heap = kept.heap if kept else HEAP
            self.recycled = min(RECYCLED * threads, RECYCLED_SHARE * memory.limit) if kept else 0.0
            self.base = present + self.recycled + (_state_of(trained) if trained else 0)

    @property
    def limit(self) -> int | None:
        """Bytes of memory that a rank may take."""
        return self.memory.limit if self.memory else None

    @property
    def tiled(self) -> bool:
        """Whether training computes images tile by tile, for they did not fit; of frozen features, prediction."""
        plan = self.plans.get(True, self.plans.get(False))
        return plan is not None and _by_tiles(plan)

    def prepare(self, model: nn.Module, shape: tuple[int, int, int, int], loss: Callable | None = None) -> None:
        """Decide how what follows is computed, for images up to `shape`, and say so. All ranks call it together.

        `loss` is called with the model's output, twice, if that is an image; what that is compared with is an `image`
        beside the second. Raises InputError if the memory does not suffice.
        """
        if self.memory is None:
            return
        if model.training not in self.plans:
            try:
                compared = loss and (lambda output: loss(output, output))
                device, limit = self.mesh.device, self.memory.limit
                loaded_later = COMPILED if device.type == "cpu" and math.prod(shape) >= LARGE else 0
                plan = plan_streaming(
                    model,
                    shape,
                    limit,
                    self.mesh,
                    compared,
                    device=device,
                    base=self.base + loaded_later,
                    disk=self.disk,
                    host=self.host,
                    heap=self.heap,
                    read=True,
                )
            except ValueError as error:
                raise InputError(f"memory: {error}") from None
            self.plans[model.training] = plan
            if self.mesh.rank == 0:
                what = "training" if model.training else "prediction"
                lines = f"{what}, {' × '.join(map(str, shape))}:", *str(plan).split("\n")
                logger.info("\n  ".join(lines))
        self.plan = self.plans[model.training]
        on_cpu = self.mesh.device.type == "cpu"
        most = KEPT if not _by_tiles(self.plan) else math.inf if on_cpu else ON_HOST
        spare = self.plan.spare if on_cpu else math.inf
        slides, channels, *size = shape
        # In bytes, with the copies that are made of one of them.
        ahead = (slides + 2) * channels * math.prod(self.mesh.rectangle((size[0], size[1])).shape)
        limit = min(most, spare)  # first, for what is kept is read once, and not in each epoch
        self._room_ahead = not _by_tiles(self.plan) and ahead <= spare - limit
        if self._cache.limit > limit:  # what prediction may keep, training may not
            self._cache.clear()
        self._cache.limit, self._cache.memory.limit = limit, limit + self.recycled

    @property
    def cache(self) -> PixelCache:
        """What is read of the images is kept here, as far as it has room.

        Until `done` where images are computed by tiles, which overlap and are read again backward. Otherwise from then
        on: they come again in the next epoch.
        """
        return self._cache

    @property
    def ahead(self) -> Ahead | None:
        """What reads the images that come next; None where they are computed by tiles, or memory has no room."""
        return self._ahead if self._room_ahead else None

    @functools.cached_property
    def disk(self) -> Disk | None:
        """For images that do not fit into memory. Raises InputError if nothing can be written there."""
        if self.memory is None or self.memory.disk is None or self._is_shared("disk"):
            return None
        try:
            disk, line = disk_in(self.memory.disk, self.mesh.device)
        except OSError as error:
            raise InputError(f"disk: {self.memory.disk}: {error.strerror or error}") from None
        if self.mesh.rank == 0:
            logger.info(f"disk: {line}")
        return disk

    @functools.cached_property
    def host(self) -> Host | None:
        """For images that do not fit into a GPU's memory."""
        if self.memory is None or self.memory.host is None or self._is_shared("host_memory"):
            return None
        if self.mesh.device.type == "cpu":
            if self.mesh.rank == 0:
                logger.info("host_memory: not used, because a CPU computes, whose memory is the host's")
            return None
        host, line = host_of(self.mesh.device, self.memory.host)
        if self.mesh.rank == 0:
            logger.info(f"host_memory: {line}")
        return host

    def _is_shared(self, key: str) -> bool:
        """Whether several ranks compute an image, and so do not use what an option names; it is said once."""
        shared = self.mesh.image_ranks > 1
        if shared and self.mesh.rank == 0:
            logger.info(f"{key}: not used, because {self.mesh.image_ranks} ranks share an image")
        return shared

    def image(
        self,
        read: Callable[[Rectangle, torch.device], torch.Tensor],
        shape: tuple[int, int, int, int],
        beside: Image | None = None,
    ) -> Image:
        """An image of which `read` gives any rectangle, on a device; `beside` is the one that it is compared with.

        Tiles are read on the host, where it is found out which pixels are constant. Several threads may call `read` at
        once.
        """
        size, device = shape[-2:], self.mesh.device
        place = HOST if self.plan and _by_tiles(self.plan) else device

        def read_there(rectangle: Rectangle) -> torch.Tensor:
            return read(rectangle, place)

        streamed = functools.partial(
            stream, read_there, mesh=self.mesh, shape=shape, device=device, by_several_threads=True
        )
        if isinstance(beside, Recorded):
            return streamed(beside=beside)
        if self.plan is None or (self.plan.whole_from == 1 and not self.plan.recorded):
            return SpatialTensor(read_there(self.mesh.rectangle(size)), size, self.mesh)
        self.progress = StepProgress(self.plan) if self.mesh.rank == 0 and self.plan.tiles else None
        return streamed(plan=self.plan, progress=self.progress)

    def done(self) -> None:
        """The image is no longer needed."""
        if self.progress:
            self.progress.close()
        self.progress = None
        if any(_by_tiles(plan) for plan in self.plans.values()):
            self._cache.clear()
        else:
            self._cache.checked.clear()


def _by_tiles(plan: Plan) -> bool:
    """Whether anything of the image is computed by tiles."""
    return plan.whole_from != 1


def _state_of(model: nn.Module) -> int:
    """Bytes of gradients, AdamW's moments, and the weights of the best epoch."""
    return training_state(model) + trained_bytes(model)


class StepProgress:
    """How far one image is; shown where it takes long."""

    def __init__(self, plan: Plan):
        tiled = {segment: share for segment, share in plan.shares.items() if segment in plan.tiles}
        self.shares = {segment: share / sum(tiled.values()) for segment, share in tiled.items()}
        self.backward = torch.is_grad_enabled()
        self.done: dict[tuple[int, str], float] = {}
        self.bar = Progress(what="image", unit="%", total=100, delay=20)

    def __call__(self, segment: int, direction: str, done: int, of: int) -> None:
        """`done` of the tiles of a segment; `segment` is the number of the operation that it ends with."""
        self.done[segment, direction] = done / of
        forward, backward = (self._share(way) for way in ("forward", "backward"))
        # Backward, a tile is computed again, and its gradients cost twice that.
        share = 0.25 * forward + 0.75 * backward if self.backward else forward
        self.bar.set_postfix_str(f"{direction}, tile {done} of {of}", refresh=False)
        self.bar.update(math.floor(100 * share) - self.bar.n)

    def _share(self, direction: str) -> float:
        return sum(self.shares.get(s, 0) * part for (s, way), part in self.done.items() if way == direction)

    def close(self) -> None:
        self.bar.close()
