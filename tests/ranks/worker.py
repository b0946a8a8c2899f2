"""One of the ranks that `launching.Ranks` starts: worker.py FOLDER. It listens at a socket there, and runs cases."""

import importlib
import math
import os
import sys
import traceback
from multiprocessing.connection import Listener
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from ranks.meshes import WORLD, join_torch, mesh_of  # noqa: E402  the tests' folder is not where Python looks


def run(case: str, shape: tuple[int, int, int], transport: str, arguments: tuple):
    if transport == "torch":
        join_torch()
    if WORLD.rank >= math.prod(shape):
        return None
    module, _, function = case.rpartition(".")
    return getattr(importlib.import_module(f"ranks.{module}"), function)(mesh_of(shape, transport), *arguments)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with Listener(str(folder / f"rank-{WORLD.rank}"), "AF_UNIX") as listener, listener.accept() as driver:
        while True:
            try:
                request = driver.recv()
            except EOFError:
                os._exit(0)
            try:
                reply = True, run(*request)
            except BaseException:
                reply = False, traceback.format_exc()
            driver.send(reply)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
