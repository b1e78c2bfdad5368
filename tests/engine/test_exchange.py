"""Arrays in files between processes."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tttunet.engine import exchange

ARRAYS = {
    "plain": np.arange(24, dtype=np.uint16).reshape(2, 3, 4),
    "transposed": np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
    "big-endian": np.arange(6, dtype=">i4").reshape(2, 3),
    "boolean": np.eye(3, dtype=bool),
    "strided": np.arange(20)[::3],
    "empty": np.zeros((0, 5), np.uint8),
    "number": np.array(3.5),
}


@pytest.mark.parametrize("chunk", [8, 2**20])
@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_any_array_is_written_whole(tmp_path: Path, monkeypatch, array: np.ndarray, chunk: int):
    monkeypatch.setattr(exchange, "CHUNK_BYTES", chunk)
    exchange.write_array(tmp_path / "a.npy", array)
    read = exchange.read_array(tmp_path / "a.npy")
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


def test_objects_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="objects"):
        exchange.write_array(tmp_path / "a.npy", np.array([None, "x"]))


class Recorded:
    """An array that notes what is read of it, like a dask or zarr array."""

    def __init__(self, array: np.ndarray, chunks: object) -> None:
        self.array, self.chunks = array, chunks
        self.shape, self.dtype = array.shape, array.dtype
        self.read: list[tuple[int, int]] = []

    def __getitem__(self, part: tuple[slice, ...]) -> np.ndarray:
        self.read.append((part[0].start, part[0].stop))
        return self.array[part]


@pytest.mark.parametrize("chunks", [((4, 4, 2), (10,)), (4, 10)], ids=["dask", "zarr"])
def test_lazy_array_is_read_once_along_its_chunks(tmp_path: Path, monkeypatch, chunks):
    monkeypatch.setattr(exchange, "CHUNK_BYTES", 50)
    lazy = Recorded(np.arange(100, dtype=np.uint8).reshape(10, 10), chunks)
    exchange.write_array(tmp_path / "a.npy", lazy)
    assert lazy.read == [(0, 4), (4, 8), (8, 12)]
    np.testing.assert_array_equal(exchange.read_array(tmp_path / "a.npy"), lazy.array)


def test_created_array_is_zero_and_shared(tmp_path: Path):
    array = exchange.create_array(tmp_path / "a.npy", (3, 4), np.uint32)
    assert not array.any()
    array[1] = 7
    assert exchange.open_array(tmp_path / "a.npy")[1].tolist() == [7] * 4


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="files grow when written to")
def test_no_room_is_an_error_not_a_signal(tmp_path: Path):
    with pytest.raises(OSError, match=r"space|large"):
        exchange.create_array(tmp_path / "a.npy", (2**50,), np.uint8)


def test_folder_is_on_the_disk_if_shared_memory_is_small(monkeypatch):
    for expected in (0, 2**60):
        folder = exchange.make_folder(expected)
        assert folder.is_dir()
        if expected:
            assert folder.parent == Path(tempfile.gettempdir())
        exchange.remove_folder(folder)
        assert not folder.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="processes cannot be asked there")
def test_only_folders_of_the_dead_are_removed(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(exchange, "_SHARED_MEMORY", tmp_path)
    dead = 2**22 + 5
    # The number may be alive in another container that shares the folder.
    elsewhere = f"{exchange.PREFIX}00000000-{dead}-d"
    names = [f"{exchange.prefix_of(os.getpid())}a", f"{exchange.prefix_of(dead)}b", "other-3-c"]
    names.append(elsewhere)
    for name in names:
        (tmp_path / name).mkdir()
    exchange.remove_orphans()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([names[0], *names[2:]])
