"""The mesh: ranks arranged as data × rows × columns."""

import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from gigapipe.spatial.refusals import NotDecomposed
from gigapipe.spatial.transports import Alone, Transport
from gigapipe.spatial.transports.torch_distributed import TorchTransport
from gigapipe.spatial.window import Rectangle, split

P = ParamSpec("P")
T = TypeVar("T")


class Mesh:
    """Ranks arranged as data × rows × columns, in this order, and the position of this rank.

    The `rows * columns` ranks with the same data index share one batch of images, each with a rectangle; ranks with
    different data index have different images. All ranks must create the same mesh, at the same point of the program.
    `transport` exchanges data between ranks; the default is torch.distributed's default process group or, without one,
    this process alone.

    Raises ValueError if the transport does not have `data * rows * columns` ranks.
    """

    def __init__(self, data: int = 1, rows: int = 1, columns: int = 1, transport: Transport | None = None):
        if transport is None:
            transport = TorchTransport() if dist.is_initialized() else Alone()
        self.data, self.rows, self.columns = data, rows, columns
        self.size = data * rows * columns
        if transport.size != self.size:
            raise ValueError(
                f"a mesh of {data} × {rows} × {columns} needs {self.size} ranks, but {transport.size} are running"
            )
        self.image_ranks = rows * columns
        self.rank = transport.rank
        self.data_index, self.image_rank = divmod(self.rank, self.image_ranks)
        self.row, self.column = divmod(self.image_rank, columns)
        self.everyone = transport
        """All ranks."""
        self.image = transport
        """The ranks that share this rank's images, numbered row by row."""
        if data > 1:
            first = self.data_index * self.image_ranks
            self.image = transport.subset(range(first, first + self.image_ranks))
        self.device = torch.device("cpu")
        """Where this rank computes. Whoever starts the ranks says so; decomposed operators go by their tensors."""
        self._unlike: list[torch.Tensor] = []
        """What `agree` found and has not told yet."""
        self.phase = "its beginning"
        """What the ranks are about, for whoever has to say where one failed."""
        self.remembered: dict[tuple, Any] = {}
        """What has been worked out for it; see `remembered_by_mesh`."""

    def __deepcopy__(self, memo: dict) -> "Mesh":
        return self  # its ranks are what they are

    def __reduce__(self):
        raise TypeError("a Mesh belongs to running ranks and cannot be saved; create it again where it is needed")

    @classmethod
    def of(cls, device_mesh: DeviceMesh) -> "Mesh":
        """The mesh of a DeviceMesh with dimensions named data, rows and columns, in this order; any of them may be
        missing.

        It may be a part of a larger DeviceMesh. Raises ValueError for other names.
        """
        names = device_mesh.mesh_dim_names or ()
        if list(names) != [name for name in ("data", "rows", "columns") if name in names]:
            raise ValueError(f"a DeviceMesh of dimensions {names}: name them data, rows and columns, in this order")
        shape = dict(zip(names, device_mesh.mesh.shape, strict=True))
        return cls(**shape, transport=TorchTransport(device_mesh.mesh.flatten().tolist()))

    def __repr__(self) -> str:
        return f"Mesh(data={self.data}, rows={self.rows}, columns={self.columns}, rank={self.rank})"

    def rectangle(self, size: tuple[int, int], row: int | None = None, column: int | None = None) -> Rectangle:
        """What the rank at `row`, `column` (by default this rank) owns of an image of `size` (rows, columns)."""
        row = self.row if row is None else row
        column = self.column if column is None else column
        return Rectangle(split(size[0], self.rows, row), split(size[1], self.columns, column))

    def agree(self, on: object, batches: object = (), device: torch.device | None = None, layer: bool = False) -> None:
        """Raise NotDecomposed, on every rank, if data ranks are about to sum over everyone for different things.

        `on` and `batches` are compared by what `repr` says of them. All ranks call together; data ranks that run
        different layers meet here at different places of their programs, which is why all ask in the same way. A
        `layer` on an accelerator, whose host would wait for every one, is told when the backward pass asks.
        """
        if self.data == 1:
            return
        mine = torch.tensor([_fingerprint(on), _fingerprint(batches)]).to(device or self.device)
        total, squares = self.everyone.sum_(torch.stack([mine, mine * mine]))
        self._unlike.append(total * total != squares * self.size)  # equal where all ranks' are, and only there
        if layer and total.device.type != "cpu":
            return
        operations, sizes = torch.stack(self._unlike).any(0).tolist()
        self._unlike.clear()
        if operations:
            raise NotDecomposed(
                "data ranks did not run the same layers, so that their sums would mix different things",
                "run the same on every rank, in the same order, and multiply by 0 what a rank has no use for",
                name_layer=False,  # ranks may be in several
            )
        if sizes:
            raise NotDecomposed(
                "data ranks have batches of different sizes, so the mean of their losses is not that over all images",
                "give every data rank the same number of images",
            )

    def draw(self) -> torch.Tensor:
        """A random number (1,), int64, from torch's generator on rank 0: the same on all ranks, which call together."""
        self.agree("draw")
        drawn = torch.randint(2**62, (1,))
        return self.everyone.sum_(drawn if self.rank == 0 else drawn.zero_())

    def peers(self) -> Iterator[tuple[int, int, int]]:
        """Yield `(rank, row, column)` of the other ranks of `image`."""
        for rank in range(self.image_ranks):
            if rank != self.image_rank:
                yield (rank, *divmod(rank, self.columns))


def remembered_by_mesh(function: Callable[Concatenate[Mesh, P], T]) -> Callable[Concatenate[Mesh, P], T]:
    """As `functools.cache`, of a function whose first argument is a mesh; what it found goes when the mesh does."""

    @functools.wraps(function)
    def remembering(mesh: Mesh, *args: P.args, **kwargs: P.kwargs) -> T:
        key = function, *args, *kwargs.items()
        if key not in mesh.remembered:
            mesh.remembered[key] = function(mesh, *args, **kwargs)
        return mesh.remembered[key]

    return remembering


def _fingerprint(x: object) -> int:
    """Of what `repr` says: 24 bits, the same in every process."""
    return zlib.crc32(repr(x).encode()) & 0xFFFFFF
