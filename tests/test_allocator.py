"""What a process keeps of the memory that it frees."""

import subprocess
import sys

import pytest

from gigapipe.allocator import WHERE_ROOMY, keep_some_freed_tensors

KEPT = """
import sys
from gigapipe.allocator import keep_some_freed_tensors, return_freed_tensors
return_freed_tensors()
import torch
from gigapipe.spatial.planning import resident_memory
kept = keep_some_freed_tensors(float(sys.argv[1]), 1)
some = [torch.ones(2**19) for _ in range(200)]  # of 2 MB
before = resident_memory()
del some[:100]
print(kept or 0, before - resident_memory())
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
