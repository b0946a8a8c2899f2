"""An image of any size through any network, tile by tile, with the gradients of the undivided image.

    image = stream(shard(pixels, mesh), Plan(tile=1024))  # or a reader, for an image that is never completely in memory
    loss = criterion(model(image), label)                 # the model is not changed
    loss.backward()

The model's operations are recorded (`recording.py`) until one returns a plain tensor, such as global pooling. Then they
are computed segment by segment (`streamed.py`); only the output of each segment is kept. Ranks and tiles can be
combined: each rank streams its shard, and receives a halo once for each segment.
"""

import functools
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gigapipe.spatial import statistical  # noqa: F401  registers what norms are on a streamed image
from gigapipe.spatial.gradients import leave
from gigapipe.spatial.halo import gather_halo
from gigapipe.spatial.heap import give_back
from gigapipe.spatial.mesh import Mesh
from gigapipe.spatial.on_disk import OnDisk
from gigapipe.spatial.on_host import OnHost
from gigapipe.spatial.recording import Node, Recorded, Recorder, Ref
from gigapipe.spatial.segment import Segment, needed_nodes
from gigapipe.spatial.streamed import Streamed, parameters
from gigapipe.spatial.tensor import SpatialTensor
from gigapipe.spatial.window import Rectangle, Stretches, split


@dataclass(frozen=True)
class Plan:
    """How a model is streamed.

    `tile` is the side length of a tile, in pixels of the input image. The results of the operations `kept` (numbered in
    the order of the model) end segments, and are kept completely. From operation `whole_from` on nothing is streamed.
    """

    tile: int = 1024
    tiles: dict[int, tuple[int, int]] = field(default_factory=dict)
    kept: frozenset[int] = frozenset()
    whole_from: int | None = None
    recorded: bool = False
    """Whether what is not streamed is recorded, too, and computed when its result is asked for: convolutions then do
    the work of norms and ReLU. Where several results are asked for, what they have in common would be computed again.
    It is for one rank an image."""
    on_disk: frozenset[int] = frozenset()
    """Which of the `kept` lie in files in `folder`, not in memory, with their gradients."""
    folder: Path | None = None
    on_host: frozenset[int] = frozenset()
    """Which of the `kept` lie in the host's memory, with their gradients, not in that of the GPU that computes them."""
    workers: int = 0
    """How many threads compute tiles side by side, each by itself; 0: tiles follow each other, each computed by all
    threads. Of gradients it changes no bit whether there is one, or more; of a GPU's it changes nothing."""
    ahead: int = 0
    """For how many tiles what they need of an image that is read is read before they are computed, by as many threads.
    It is for where memory is not short, and changes no bit."""
    peak: float | None = None
    """Bytes that a rank is expected to take at most, where it was planned for."""
    spare: float = 0.0
    """Bytes that it may take beside these, for what is read again."""
    disk: float = 0.0
    """Bytes that it is expected to take on the disk at most."""
    host: float = 0.0
    """Bytes of the host's memory that images `on_host` are expected to take at most."""
    time: float | None = None
    """Time that a step is expected to take, in undivided steps."""
    shares: dict[int, float] = field(default_factory=dict)
    """What part of that time the segments are expected to take that end with these operations."""
    lines: tuple[str, ...] = ()
    """What `print(plan)` says, where it was planned."""

    def __str__(self) -> str:
        return "\n".join(self.lines) or repr(self)


class Program(Recorder):
    """One pass of a model over one image: what is noted, and what of it has been computed."""

    def __init__(
        self, mesh: Mesh, device: torch.device | str, plan: Plan, progress: Callable[[int, str, int, int], None] | None
    ):
        super().__init__(mesh, device)
        self.plan, self.progress = plan, progress
        self.away: dict[Ref, OnHost] = {}
        """Images that are kept where they are not computed."""
        if (plan.on_disk or plan.on_host) and mesh.image_ranks > 1:
            raise ValueError(
                "images can be kept on the host or on disk only if one rank computes an image; divide it by tiles alone"
            )

    def undivided(self, index: int) -> bool:
        return not self._at_once and self.plan.whole_from is not None and index >= self.plan.whole_from

    @property
    def _at_once(self) -> bool:
        return self.plan.recorded and self.mesh.image_ranks == 1

    def whole(self, ref: Ref) -> SpatialTensor:
        image = self._held(ref)
        if ref in self.away:
            self.away[ref].elsewhere = True
            image = image.with_local(image.local.to(self.device))
        return image

    def _held(self, ref: Ref) -> SpatialTensor:
        if ref.node.read:
            size = ref.image.image_size
            return SpatialTensor(ref.node.read(self.mesh.rectangle(size)).to(self.device), size, self.mesh)
        if ref not in self.held:
            # Its gradients are as when it was noted, not as they are where it is needed first.
            with torch.inference_mode(False), torch.enable_grad():
                local, image = self._compute(ref), ref.image
            self.held[ref] = SpatialTensor(local, image.image_size, self.mesh, image.axes)
        return self.held[ref]

    def summed(self, node: Node) -> torch.Tensor:
        return leave(self._compute(Ref(node)), self.mesh, node.operands[0].image.batch)

    def _compute(self, output: Ref) -> torch.Tensor:
        for node in needed_nodes(output.node, self.held)[0]:
            if node.index in self.plan.kept and node is not output.node:
                for i in range(len(node.results)):
                    self._held(Ref(node, i))
        nodes, inputs = needed_nodes(output.node, self.held)
        if self._at_once and self.plan.whole_from is not None and nodes[0].index >= self.plan.whole_from:
            if self.plan.workers and self.device.type == "cpu":
                give_back()  # what tiles left, which is not planned beside what comes now
            return Segment(self.mesh, nodes, inputs, output).whole([self.whole(ref).local for ref in inputs])
        # Not this program itself, which holds the tensors whose graph holds the segment.
        forget = functools.partial(_forget, weakref.ref(self))
        workers = self.plan.workers if self.device.type == "cpu" else 0
        if not output.node.sums and output not in self.away and (place := self._elsewhere(output.node)):
            self.away[output] = place
        away = {ref: self.away[ref] for ref in (*inputs, output) if ref in self.away}
        how = self._tile_of(output), self.progress, forget, workers, self.plan.ahead, away
        segment = Segment(self.mesh, nodes, inputs, output, *how)
        local = [None if ref.node.read else self._with_halo(segment, ref) for ref in inputs]
        local = [
            x if x is None or ref.node in segment.passing else x.detach() for ref, x in zip(inputs, local, strict=True)
        ]
        return Streamed.apply(segment, len(local), *local, *parameters(segment))

    def _elsewhere(self, node: Node) -> OnHost | None:
        """For what a node makes, unless it is kept on the device, or not at all."""
        if node.index in self.plan.on_disk:
            assert self.plan.folder is not None
            return OnDisk(folder=self.plan.folder)
        return OnHost() if node.index in self.plan.on_host else None

    def _tile_of(self, output: Ref) -> tuple[int, int]:
        if output.node.index in self.plan.tiles:
            return self.plan.tiles[output.node.index]
        image = (output.node.operands[0] if output.node.sums else output).image
        first = Ref(self.nodes[0]).image
        rows, columns = (
            max(1, round(self.plan.tile * n / m)) for n, m in zip(image.image_size, first.image_size, strict=True)
        )
        return rows, columns

    def _with_halo(self, segment: Segment, ref: Ref) -> torch.Tensor:
        """An input's rectangle that this rank needs: its shard, and what other ranks have of it."""
        x = self._held(ref)
        if self.mesh.image_ranks == 1:
            return x.local
        accesses = []
        for axis, parts in enumerate((self.mesh.rows, self.mesh.columns)):
            needs = []
            for index in range(parts):
                out = [split(n, 1, 0) for n in segment.size]
                out[axis] = split(segment.size[axis], parts, index)
                if out[axis].size:
                    needs.append((out[axis], segment.rectangles(Rectangle(*out))[ref.node][axis]))
            accesses.append(Stretches(segment.size[axis], tuple(needs)))
        rows, columns = accesses
        local = x.local.movedim(x.axes, (-2, -1))
        local = gather_halo(local, x.rectangle, self.mesh, x.image_size, (rows, columns))
        return local.movedim((-2, -1), x.axes)


def _forget(program: "weakref.ref[Program]") -> None:
    """Let go of what was kept between segments, which can be computed again; of sources not."""
    if there := program():
        there.held = {ref: image for ref, image in there.held.items() if ref.node.is_source}


def stream(
    image: SpatialTensor | Callable[[Rectangle], torch.Tensor],
    plan: Plan | None = None,
    mesh: Mesh | None = None,
    shape: tuple[int, ...] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    beside: Recorded | None = None,
    progress: Callable[[int, str, int, int], None] | None = None,
    by_several_threads: bool = False,
) -> Recorded:
    """An image that a model takes like any other, and that is computed tile by tile.

    `image` is a `SpatialTensor`, or a reader: a function of a rectangle that returns its pixels (batch, channels, rows,
    columns), of `dtype`, without gradient, on the host or on `device`, where they are computed. On the host it is found
    without waiting for a GPU which of them are constant. Readers are called by one thread at a time, but for those
    that can be called `by_several_threads`. For a reader, give `shape` and `mesh`. An image with which
    another is compared, such as a mask, is streamed `beside` that one, with its plan. `progress` is called after each
    tile, with the number of the last operation of its segment, "forward" or "backward", the number of finished tiles,
    and their total number.

    Raises ValueError if a reader has no shape, or no mesh and no image `beside` it.
    """
    if isinstance(image, SpatialTensor):
        assert isinstance(image.mesh, Mesh)  # images over tiles do not leave their segment
        mesh, shape, dtype, device = image.mesh, image.shape, image.dtype, image.device
    if beside is not None:
        program = beside.recorder
    elif mesh is not None:
        program = Program(mesh, device, plan or Plan(), progress)
    else:
        raise ValueError("a reader's image has no mesh of its own: give it one")
    if shape is None:
        raise ValueError("a reader's image has no shape of its own: give it one")
    recorded = program.source(shape, dtype)
    if isinstance(image, SpatialTensor):
        program.held[recorded.ref] = image
    else:
        recorded.ref.node.read = image if by_several_threads else functools.partial(_alone, program.reading, image)
    return recorded


def _alone(lock: threading.Lock, read: Callable[[Rectangle], torch.Tensor], rectangle: Rectangle) -> torch.Tensor:
    with lock:
        return read(rectangle)
