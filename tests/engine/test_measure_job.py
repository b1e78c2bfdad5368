"""Measuring through the worker: the numbers of the core, changes, lazy arrays, cancelling."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest

from tttunet.engine.client import Engine, Job
from tttunet.engine.messages import Progress
from tttunet.measuring import Grid, measure
from tttunet.measuring.objects import finish as finish_steps

from .conftest import PATIENCE, Heard, finish, kill, noise

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


def small_worker(engine: Engine) -> int:
    """The process that measures."""
    assert engine._light is not None
    pid = engine._light.worker_pid
    assert pid is not None
    return pid


@pytest.fixture
def training(engine: Engine, models, dataset: Path, tmp_path: Path) -> Iterator[Job]:
    """A long training that is past its first step."""
    job = engine.finetune(
        models[2, "instance"],
        dataset,
        tmp_path / "run",
        on_event=Heard(),
        steps=100_000,
        options={"precision": "32-true", "batch_size": 2},
    )
    wait_for_steps(job, 1)
    yield job
    job.cancel()
    assert finish(job).kind == "cancelled"


def wait_for_steps(job: Job, count: int) -> None:
    """Wait for so many steps from now on."""

    def steps() -> int:
        return sum(event.kind == "metric" for event in list(job.on_event))

    wanted, end = steps() + count, time.monotonic() + PATIENCE
    while steps() < wanted:
        assert not job.finished, job.outcome
        assert time.monotonic() < end
        time.sleep(0.02)


def test_objects_are_measured_and_compared_while_a_training_runs(engine: Engine, training: Job):
    labels, grid = squares(30), Grid("YX", "YX", MATRIX, "µm")
    result = finish(engine.measure(labels, grid)).result
    assert result["count"] == 900
    compared = finish(engine.evaluate(labels, labels, "instance")).result
    assert compared["mean_ap"] == 1.0
    wait_for_steps(training, 2)
    pid = small_worker(engine)
    assert pid != engine.worker_pid
    if Path(f"/proc/{pid}/maps").exists():
        assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
        assert "libtorch" in Path(f"/proc/{engine.worker_pid}/maps").read_text()
    assert "torch" not in engine._light.about

    # Its death harms neither the training nor the next measurement.
    kill(pid)
    assert finish(engine.measure(labels, grid)).result["count"] == 900
    wait_for_steps(training, 2)

    # What the training has no room for is told at once.
    heard = Heard()
    failed = finish(engine.decode({"min_size": 3}, on_event=heard))
    assert (failed.kind, failed.problem) == ("failed", "busy")
    assert "Segment it again" in failed.hint
    assert heard.kinds == ["queued", "failed"]
    assert finish(engine.review(labels)).kind == "failed"
    assert training.state == "running"


def test_closing_ends_both_workers():
    with Engine() as engine:
        labels, grid = squares(3), Grid("YX", "YX", MATRIX, "µm")
        assert finish(engine.measure(labels, grid)).kind == "done"
        assert engine.worker_pid is None, "measuring needs no other worker"
        lane = engine._light
        job = engine.measure(squares(900, 4), grid)
    assert finish(job).kind in ("cancelled", "done")
    assert lane.worker_pid is None
    with pytest.raises(RuntimeError, match="closed"):
        engine.measure(labels, grid)


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
    finish(engine.measure(squares(2), grid))
    pid = small_worker(engine)

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
    assert small_worker(engine) == pid, "the worker ended by itself"


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
