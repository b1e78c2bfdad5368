"""Arrays between processes: memory-mapped .npy files in a folder that the client owns.

The client makes the folder of a job before it starts and removes it when it ends, so that
nothing is left behind whenever the worker dies. On Linux the folder lies in memory (/dev/shm)
where there is room.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

#: Folders begin with this and the client's process number, so that orphans can be told.
PREFIX = "tttunet-"
#: Bytes that are copied at once into a file: a lazy array is never in memory as a whole.
CHUNK_BYTES = 64 * 2**20
_SHARED_MEMORY = Path("/dev/shm")
#: Of the free shared memory, at most this share is used.
_SHARE = 0.5


def make_folder(expected_bytes: int = 0) -> Path:
    """A new folder for arrays of about `expected_bytes` together."""
    parent: Path | None = None
    if _SHARED_MEMORY.is_dir() and os.access(_SHARED_MEMORY, os.W_OK):
        free = shutil.disk_usage(_SHARED_MEMORY).free
        parent = _SHARED_MEMORY if expected_bytes < _SHARE * free else None
    return Path(tempfile.mkdtemp(prefix=prefix_of(os.getpid()), dir=parent))


def prefix_of(pid: int) -> str:
    """What the names of the folders of a client's process begin with."""
    return f"{PREFIX}{_namespace()}-{pid}-"


@functools.cache
def _namespace() -> str:
    """Where a process number means one process: containers and nodes may share a folder."""
    inode = 0
    with contextlib.suppress(OSError):
        inode = os.stat("/proc/self/ns/pid").st_ino
    return hashlib.sha256(f"{platform.node()} {inode}".encode()).hexdigest()[:8]


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def remove_orphans(dead: int | None = None) -> None:
    """Remove folders of clients that were killed.

    Args:
        dead: number of a process that has ended, though the system may still list it.
    """
    for parent in {_SHARED_MEMORY, Path(tempfile.gettempdir())}:
        prefix = f"{PREFIX}{_namespace()}-"
        for folder in parent.glob(f"{prefix}*-*"):
            owner = folder.name[len(prefix) :].partition("-")[0]
            if owner.isdigit() and (int(owner) == dead or not _is_alive(int(owner))):
                remove_folder(folder)


def _is_alive(pid: int) -> bool:
    if os.name == "nt":  # there, signal 0 would end the process
        return True
    with contextlib.suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True


def write_array(path: Path, array: Any, cancelled: Callable[[], bool] = lambda: False) -> None:
    """Copy an array (numpy, or anything that slices into one: dask, zarr) to an .npy file.

    Args:
        path: the file.
        array: has `shape` and `dtype`.
        cancelled: asked between chunks of `CHUNK_BYTES`; True ends the copy early.

    Raises:
        OSError: no room is left.
        ValueError: the array holds objects.
    """
    dtype = np.dtype(array.dtype)
    # Written, not mapped: a full disk must not end this process by a signal.
    with path.open("wb") as file:
        _write_header(file, array.shape, dtype)
        for part in _parts(array.shape, dtype.itemsize, _chunk_shape(array)):
            if cancelled():
                return
            chunk = np.ascontiguousarray(np.asarray(array[part]), dtype)
            file.write(chunk.reshape(-1).view(np.uint8).data)


def create_array(path: str | Path, shape: Sequence[int], dtype: Any) -> np.ndarray:
    """A new .npy file of zeros, mapped for writing.

    Raises:
        OSError: there is no room for it.
    """
    dtype = np.dtype(dtype)
    with Path(path).open("wb") as file:
        _write_header(file, shape, dtype)
        start = file.tell()
        size = start + math.prod(shape) * dtype.itemsize
        if hasattr(os, "posix_fallocate"):  # else a full disk shows when the map is written to
            os.posix_fallocate(file.fileno(), 0, size)
        file.truncate(size)
    return open_array(path, "r+")


def _write_header(file: Any, shape: Sequence[int], dtype: np.dtype) -> None:
    if dtype.hasobject:
        raise ValueError("An array of objects cannot be handed over.")
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": tuple(int(n) for n in shape),
    }
    np.lib.format.write_array_header_1_0(file, header)


def open_array(path: str | Path, mode: Any = "r") -> np.ndarray:
    """Map an .npy file; objects are refused."""
    return np.load(path, mmap_mode=mode, allow_pickle=False)


def read_array(path: str | Path) -> np.ndarray:
    """An .npy file in memory; objects are refused."""
    return np.load(path, allow_pickle=False)


def _chunk_shape(array: Any) -> tuple[int, ...]:
    """The chunks that a dask or zarr array is computed or read by; ones for others."""
    chunks = getattr(array, "chunks", None) or (1,) * len(array.shape)
    return tuple(int(max(n)) if isinstance(n, tuple) else int(n) for n in chunks)


def _parts(
    shape: Sequence[int], itemsize: int, chunks: Sequence[int]
) -> Iterator[tuple[slice, ...]]:
    """Slices of about CHUNK_BYTES each, or of a chunk if that is larger, in C order."""
    if not shape:
        yield ()
        return
    rest = itemsize * math.prod(shape[1:])
    if rest > CHUNK_BYTES and len(shape) > 1 and chunks[0] == 1:
        for i in range(shape[0]):
            for part in _parts(shape[1:], itemsize, chunks[1:]):
                yield slice(i, i + 1), *part
        return
    step = chunks[0] * max(1, CHUNK_BYTES // max(rest * chunks[0], 1))
    for i in range(0, shape[0], step):
        yield (slice(i, i + step),)
