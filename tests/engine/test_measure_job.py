"""Measuring through the worker: the numbers of the core, changes, lazy arrays, cancelling."""

from __future__ import annotations

import time
from typing import Any

import dask.array as da
import numpy as np
import pytest

from tttunet.engine.client import Engine
from tttunet.engine.messages import Progress
from tttunet.measuring import Grid, measure
from tttunet.measuring.objects import finish as finish_steps

from .conftest import Heard, finish, noise

MATRIX = np.array([[0.5, 0.0, 3.0], [0.0, 2.0, -1.0]])


def squares(count: int, side: int = 3) -> np.ndarray:
    """[count * side, count * side] with count² objects without gaps."""
    numbers = np.arange(1, count * count + 1, dtype=np.int32).reshape(count, count)
    return np.kron(numbers, np.ones((side, side), np.int32))


def same(first: Any, second: Any) -> bool:
    assert first.columns == second.columns
    assert first.shape_axes == second.shape_axes
    pairs = [(first.values[key], second.values[key]) for key in first.values]
    pairs += [(first.centres, second.centres), (first.boxes, second.boxes)]
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def test_a_table_as_the_core_measures_it(engine: Engine):
    labels, image = squares(4), noise((12, 12))
    grid = Grid("YX", "YX", MATRIX, "µm")
    result = finish(engine.measure(labels, grid, [("cells", image)], known="")).result
    assert same(result["table"], finish_steps(measure(labels, grid, [("cells", image)])))
    assert result["count"] == len(result["table"]) == 16
    assert result["table"].values["area"].tolist() == [9.0] * 16
    # The same labels again: nothing is measured.
    again = finish(engine.measure(labels, grid, known=result["checksum"])).result
    assert (again["changed"], again["table"]) == (False, None)
    labels[0, 0] = 0
    changed = finish(engine.measure(labels, grid, known=result["checksum"])).result
    assert changed["table"].values["pixels"][0] == 8


def test_a_lazy_film_is_read_chunk_by_chunk(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tttunet.engine.exchange.CHUNK_BYTES", 4096)
    film = np.stack([squares(8, 4), np.zeros((32, 32), np.int32), squares(8, 4)[::-1]])
    image = noise(film.shape)
    most = []

    def loaded(block: np.ndarray) -> np.ndarray:
        most.append(block.size)
        return block

    lazy = da.from_array(film, chunks=(1, 16, 16)).map_blocks(loaded, dtype=film.dtype, meta=film)
    grid = Grid("TYX", "YX", np.array([[0, 1.0, 0, 0], [0, 0, 1.0, 0]]))
    channels = [("a", da.from_array(image, chunks=(1, 32, 32)))]
    table = finish(engine.measure(lazy, grid, channels)).result["table"]
    assert same(table, finish_steps(measure(film, grid, [("a", image)])))
    assert set(table.values["frame"].tolist()) == {0, 2}
    assert max(most) == 16 * 16


def test_progress_and_cancel(engine: Engine):
    heard = Heard()
    labels, grid = squares(900, 4), Grid("YX", "YX", MATRIX, "µm")
    pid = engine.worker_pid

    def cancel(job: Any, event: Any) -> None:
        if isinstance(event, Progress):
            heard.append(event)
            job.cancel()

    start = time.monotonic()
    assert finish(engine.measure(labels, grid, on_event=cancel)).kind == "cancelled"
    assert heard[0].stage == "measuring"
    assert time.monotonic() - start < 60
    small = finish(engine.measure(squares(2), grid)).result
    assert small["count"] == 4
    assert engine.worker_pid == pid, "the worker ended by itself"


def test_what_does_not_fit_is_told(engine: Engine):
    labels = squares(2)
    for grid, words in (
        (Grid("YX", "YX", np.zeros((2, 3))), "flat"),
        (Grid("ZYX", "YX", MATRIX), "cannot be measured"),
    ):
        failed = finish(engine.measure(labels, grid))
        assert (failed.kind, failed.problem) == ("failed", "input")
        assert words in failed.message
    other = finish(engine.measure(labels, Grid("YX", "YX", MATRIX), [("a", noise((3, 3)))]))
    assert "other pixels" in other.message
