from __future__ import annotations

import contextlib
import sys

import numpy as np
import pytest
import torch

from tttunet.bench.machine import describe_machine, peak_memory, use_threads


def test_machine_is_described():
    machine = describe_machine()
    assert {"python", "torch", "processor", "cores", "torch_threads", "system"} <= set(machine)
    assert machine["torch_threads"] == torch.get_num_threads()
    assert ("gpu" in machine) == torch.cuda.is_available()


def test_threads_are_set_and_restored():
    before = torch.get_num_threads()
    with contextlib.suppress(KeyError), use_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before
    with use_threads(None):
        assert torch.get_num_threads() == before


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's figures are Linux's")
def test_peak_memory_counts_what_is_freed_and_what_is_returned():
    def temporary():
        np.ones(8_000_000, np.float32).sum()
        return np.ones(2_000_000, np.float32)

    peak = peak_memory(temporary)
    assert peak is not None
    assert 30e6 < peak < 48e6
    both = peak_memory(lambda: [torch.ones(8_000_000), np.ones(2_000_000, np.float32)])
    assert both is not None
    assert 38e6 < both < 48e6


def test_memory_that_cannot_be_measured_is_none():
    assert peak_memory(lambda: None, "mps") is None
