"""The mesh: ranks arranged as data × rows × columns."""

import torch
import torch.distributed as dist

from gigapipe.spatial.window import Rectangle, split


class Mesh:
    """Ranks arranged as data × rows × columns, in that order of significance, and where this rank stands.

    The `rows * columns` ranks of one data index hold one batch of images between them, each a rectangle; ranks of
    different data index hold different images. All ranks of the default process group must make the same mesh, at
    the same point of the program. A mesh of one rank needs no process group.

    Raises ValueError if the default process group does not have `data * rows * columns` ranks.
    """

    def __init__(self, data: int = 1, rows: int = 1, columns: int = 1):
        self.data, self.rows, self.columns = data, rows, columns
        self.size = data * rows * columns
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        if ranks != self.size:
            raise ValueError(f"a mesh of {data} × {rows} × {columns} needs {self.size} ranks, but {ranks} are running")
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.image_ranks = rows * columns
        self.data_index, within = divmod(self.rank, self.image_ranks)
        self.row, self.column = divmod(within, columns)
        # The ranks that share this rank's images. Every rank takes part in making every group.
        self.image_group = None
        if self.size > 1:
            for d in range(data):
                group = dist.new_group(range(d * self.image_ranks, (d + 1) * self.image_ranks))
                if d == self.data_index:
                    self.image_group = group

    def __repr__(self) -> str:
        return f"Mesh(data={self.data}, rows={self.rows}, columns={self.columns}, rank={self.rank})"

    def rectangle(self, size: tuple[int, int], row: int | None = None, column: int | None = None) -> Rectangle:
        """What the rank at `row`, `column` (by default this rank) owns of an image of `size` (rows, columns)."""
        row = self.row if row is None else row
        column = self.column if column is None else column
        return Rectangle(split(size[0], self.rows, row), split(size[1], self.columns, column))

    def peers(self):
        """Yield `(rank, row, column)` of the other ranks that share this rank's images."""
        for row in range(self.rows):
            for column in range(self.columns):
                if (row, column) != (self.row, self.column):
                    yield self.data_index * self.image_ranks + row * self.columns + column, row, column

    def sum_images_(self, x: torch.Tensor) -> torch.Tensor:
        """Sum `x` in place over the ranks that share this rank's images."""
        if self.image_ranks > 1:
            dist.all_reduce(x, group=self.image_group)
        return x

    def sum_(self, x: torch.Tensor) -> torch.Tensor:
        """Sum `x` in place over all ranks."""
        if self.size > 1:
            dist.all_reduce(x)
        return x
