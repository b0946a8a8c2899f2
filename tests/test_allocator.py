"""What a process keeps of the memory that it frees."""

import subprocess
import sys

import pytest

from gigapipe.spatial.heap import WHERE_ROOMY, keep_some_freed_tensors
from gigapipe.training.inverted import COMPILED

KEPT = """
import sys
from gigapipe.allocator import return_freed_tensors
from gigapipe.spatial.heap import keep_some_freed_tensors
return_freed_tensors()
import torch
from gigapipe.spatial.planning import resident_memory
kept = keep_some_freed_tensors(float(sys.argv[1]), 1)
some = [torch.ones(2**19) for _ in range(200)]  # of 2 MB
before = resident_memory()
del some[:100]
print(kept.heap if kept else 0, before - resident_memory())
"""


@pytest.mark.parametrize("memory", [0.99 * WHERE_ROOMY[-1].memory, 100e9])
def test_freed_tensors_of_2_mb_are_kept_where_memory_is_not_short(memory):
    done = subprocess.run([sys.executable, "-c", KEPT, str(memory)], capture_output=True, text=True, check=True)
    kept, returned = map(float, done.stdout.split())
    assert (kept > 0) == (memory == 100e9)
    assert returned < 0.5 * 100 * 2**21 if kept else returned > 0.9 * 100 * 2**21


def test_all_is_given_back_where_memory_is_short_and_where_the_environment_says_how(monkeypatch):
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    assert keep_some_freed_tensors(0.99 * 8 * WHERE_ROOMY[-1].memory, threads=8) is None
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    assert keep_some_freed_tensors(1e15, threads=1) is None


AFTER_TILES = """
import sys
from gigapipe.allocator import return_freed_tensors
from gigapipe.spatial.heap import keep_some_freed_tensors
return_freed_tensors()
import torch
from gigapipe.spatial.planning import resident_memory
from gigapipe.spatial.workers import MANY, side_by_side
keep_some_freed_tensors(100e9, 1)
small = []
def work(index):
    some = [torch.ones(2**18) for _ in range(60)]  # of 1 MB
    small.append(torch.ones(2**12))  # behind what is freed
    return lambda: None
before = resident_memory()
side_by_side(MANY if sys.argv[1] == "many" else MANY - 1, 1, work)
print(resident_memory() - before)
"""


def test_what_many_tiles_leave_is_given_back_and_what_few_leave_is_kept():
    left = {}
    for number in ("few", "many"):
        command = [sys.executable, "-c", AFTER_TILES, number]
        left[number] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert left["many"] < 15e6 < 45e6 < left["few"]


LOADED = """
import numpy as np
from gigapipe.spatial.planning import resident_memory
from gigapipe.spatial.recording import without_pixels
from gigapipe.training.inverted import LARGE, inverted
without_pixels()
before = resident_memory()
inverted([np.zeros((1, 1024, LARGE // 1024), np.uint8)])
print(resident_memory() - before)
"""


def test_the_memory_that_compiled_code_is_planned_with_suffices():
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    assert 0.6 * COMPILED < int(done.stdout) < 1.1 * COMPILED
