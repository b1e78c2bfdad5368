from __future__ import annotations

import subprocess
import sys

import pytest

from tttunet.inference import allocator

#: Prints whether it was tuned and the minor faults of 20 large buffers, filled and dropped.
PROGRAM = """
import resource, sys, threading
import torch
from tttunet.inference.allocator import release_memory, tune_allocator

tuned = sys.argv[1] == "tuned" and tune_allocator() and tune_allocator()

def work():
    for _ in range(20):
        torch.ones(1 << 23)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(1 << 23)
    print(tuned, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

work()
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(release_memory())
"""


def run_child(mode: str) -> list[str]:
    command = [sys.executable, "-c", PROGRAM, mode]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.skipif(allocator._glibc() is None, reason="the C library is not glibc")
def test_large_buffers_cause_no_page_faults():
    default, tuned = run_child("default"), run_child("tuned")
    for before, after in zip(default[:2], tuned[:2], strict=True):
        assert before.startswith("False ")
        assert after.startswith("True ")
        assert int(after.split()[1]) < 0.02 * int(before.split()[1])
    assert tuned[2] == "True"


def test_other_c_libraries_are_left_alone(monkeypatch):
    allocator._glibc.cache_clear()
    allocator.tune_allocator.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    try:
        assert allocator.tune_allocator() is False
        assert allocator.release_memory() is False
    finally:
        allocator._glibc.cache_clear()
        allocator.tune_allocator.cache_clear()
