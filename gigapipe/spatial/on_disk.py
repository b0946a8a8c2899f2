"""Images that are kept on a disk while nobody works with them: files without a name, mapped into memory.

The operating system writes what was changed and reads what is asked for; it is told which parts are done with, and so
leave the process's memory, and which come next, and so are read ahead. Since the files have no name, a process that is
killed leaves none.
"""

import contextlib
import math
import mmap
import os
import tempfile
import weakref
from dataclasses import dataclass, field
from pathlib import Path

import torch

from gigapipe.spatial.on_host import OnHost


@dataclass(eq=False)
class OnDisk(OnHost):
    """One image of a model, and in the backward pass its gradient, in files in `folder`."""

    folder: Path = field(kw_only=True)
    _maps: "list[weakref.ref[mmap.mmap]]" = field(default_factory=list)

    def room(self, like: torch.Tensor) -> torch.Tensor:
        """A tensor of zeros of the shape, dtype and strides of `like`, without gaps, whose memory is a file.

        Raises OSError if the folder has no space for it.
        """
        size = max(1, like.numel()) * like.dtype.itemsize
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                # With its space: a disk that is found to be full when mapped memory is written kills the process.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
                mapped = mmap.mmap(file.fileno(), size)
        except OSError as error:
            error.filename = str(self.folder)
            raise
        self._maps = [one for one in self._maps if one() is not None] + [weakref.ref(mapped)]
        memory = torch.frombuffer(mapped, dtype=torch.uint8).untyped_storage()
        # No view: autograd lets nobody change one that a Function has made.
        return torch.empty(0, dtype=like.dtype).set_(memory, 0, like.shape, like.stride())

    def release(self) -> None:
        """Let the system take the memory of what lies here; who uses it again finds it unchanged."""
        for one in self._maps:
            if (mapped := one()) is not None:
                mapped.madvise(mmap.MADV_DONTNEED)

    def read_ahead(self, image: torch.Tensor, axis: int, rows: slice) -> None:
        """Have these rows of `image`, as it lies here, read in the background, if they lie one after another."""
        stride = image.stride(axis) * image.dtype.itemsize
        whole = math.prod(image.shape) * image.dtype.itemsize
        if stride * image.shape[axis] != whole:  # channel by channel: the system's own reading ahead must do
            return
        start = rows.start * stride // mmap.PAGESIZE * mmap.PAGESIZE
        for one in self._maps:
            if (mapped := one()) is not None and (stop := min(rows.stop * stride, len(mapped))) > start:
                with contextlib.suppress(OSError):  # of a file system that cannot
                    mapped.madvise(mmap.MADV_WILLNEED, start, stop - start)
