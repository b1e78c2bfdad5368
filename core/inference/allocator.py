"""Keep freed memory for the next tensor instead of giving it back to the system.

glibc returns every large block to the kernel at once and asks for it again, page by page, at the
next operator: a fifth to a third of a network's CPU time. With higher thresholds the process keeps
the memory of its largest moment until `release_memory` or its end. Its peak does not change.
"""

from __future__ import annotations

import ctypes
import functools
import sys

#: Parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
#: Blocks up to here come from the heap; older glibc accepts no more than the second.
_MMAP_THRESHOLDS = (1 << 30, 1 << 25)
_TRIM_THRESHOLD = 2**31 - 1


@functools.cache
def tune_allocator() -> bool:
    """Raise glibc's thresholds for the rest of the process; the first call does it.

    Threads that have not allocated yet share the main heap: their own could not grow beyond 64 MB.

    Returns:
        Whether it was done; False where the C library is not glibc (macOS, Windows, musl).
    """
    library = _glibc()
    if library is None:
        return False
    library.mallopt(_M_ARENA_MAX, 1)
    raised = any(library.mallopt(_M_MMAP_THRESHOLD, size) for size in _MMAP_THRESHOLDS)
    return raised and bool(library.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD))


def release_memory() -> bool:
    """Give the memory that is free now back to the system; whether there was any to give."""
    library = _glibc()
    return library is not None and bool(library.malloc_trim(0))


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    # musl, the other C library of Linux, has no version function, and its mallopt does nothing.
    if not hasattr(library, "gnu_get_libc_version") or not hasattr(library, "mallopt"):
        return None
    library.mallopt.argtypes, library.mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    library.malloc_trim.argtypes, library.malloc_trim.restype = (ctypes.c_size_t,), ctypes.c_int
    return library
