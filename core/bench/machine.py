"""The machine that something is measured on: its description, its threads, its memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
#: Written to clear_refs it makes the kernel forget the peak.
_RESET_PEAK = "5"


def describe_machine() -> dict[str, Any]:
    """Versions, processor, threads and, if there is one, the GPU."""
    description: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        description["gpu"] = torch.cuda.get_device_name()
    return description


@contextlib.contextmanager
def use_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch compute with so many threads for a while; None: with as many as before."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronise(device: torch.device | str) -> None:
    """Wait until a GPU has finished what it was told to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(work: Callable[[], object], device: torch.device | str = "cpu") -> int | None:
    """Bytes that `work` needed at most, beyond what was in use before.

    On the CPU it is the resident memory of the process, which the kernel knows exactly, whoever
    asked for it; on CUDA what PyTorch had allocated.

    Args:
        work: is called once; call it before, so that what it loads and caches is not counted.
        device: where `work` computes.

    Returns:
        None where it cannot be measured: on the CPU outside Linux, and on other devices.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    if kind != "cpu" or not _forget_peak():
        return None
    before = _status("VmRSS")
    result = work()  # kept until the peak is read: a result is part of the need
    peak = _status("VmHWM")
    del result
    return max(0, peak - before)


def _forget_peak() -> bool:
    """Give unused memory back, so that it is counted when it is taken again."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _status(key: str) -> int:
    """Bytes; the kernel prints kB."""
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    return ", ".join(sorted(names)) or platform.processor()
