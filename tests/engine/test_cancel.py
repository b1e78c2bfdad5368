"""Cancelling: at once for a waiting job, within the grace time for a running one."""

from __future__ import annotations

import time

import numpy as np
import pytest

from tttunet.engine.client import Engine, Job
from tttunet.engine.messages import Cancelled, Hello, Progress

from .conftest import PATIENCE, Heard, finish, noise

#: Thousands of tiles: minutes, if nobody stops them.
LONG = {"axes": "YX", "tile": (32, 32), "overlap": 0.5}


def long_job(engine: Engine, models, heard: Heard) -> Job:
    return engine.segment(noise((3000, 3000)), model=models[2, "semantic"], on_event=heard, **LONG)


def at_first_tile(act):
    """Calls `act(job)` once, when the network runs."""
    done = []

    def listen(job: Job, event: object) -> None:
        if isinstance(event, Progress) and event.stage == "tiles" and not done:
            done.append(True)
            act(job)

    return listen


def test_running_job_ends_within_the_grace_and_the_next_one_works(engine: Engine, models):
    pid = engine.worker_pid
    cancelled_at = []

    def cancel(job: Job) -> None:
        job.cancel()
        cancelled_at.append(time.monotonic())
        assert job.state == "cancelling"

    heard = Heard(at_first_tile(cancel))
    outcome = finish(long_job(engine, models, heard))
    assert outcome == Cancelled()
    assert time.monotonic() - cancelled_at[0] < engine.grace + 2
    assert heard.kinds[-1] == "cancelled"
    assert heard.kinds[-2] == "progress"  # nothing between the cancel and the end
    assert len(heard.terminal) == 1
    small = finish(engine.segment(noise((20, 20)), axes="YX", model=models[2, "semantic"]))
    assert small.kind == "done"
    assert engine.worker_pid == pid, "the worker listened, so it stays"


def test_waiting_job_is_cancelled_at_once(engine: Engine, models):
    started, waiting = Heard(), Heard()
    first = long_job(engine, models, started)
    second = engine.segment(
        noise((20, 20)), axes="YX", model=models[2, "semantic"], on_event=waiting
    )
    start = time.monotonic()
    second.cancel()
    assert second.wait(0) == Cancelled()
    assert time.monotonic() - start < 0.5
    assert waiting.kinds == ["queued", "cancelled"]
    assert waiting[0].ahead == 1
    first.cancel()
    assert finish(first) == Cancelled()


def test_cancel_after_the_end_changes_nothing(engine: Engine, models):
    heard = Heard()
    job = engine.segment(noise((20, 20)), axes="YX", model=models[2, "semantic"], on_event=heard)
    outcome = finish(job)
    job.cancel()
    assert job.outcome is outcome
    assert job.state == "done"
    assert len(heard.terminal) == 1


def test_a_worker_that_does_not_listen_is_ended(engine: Engine, models, monkeypatch):
    """A network that takes longer than the grace time: one huge tile."""
    monkeypatch.setattr(engine, "grace", 0.05)
    pid = engine.worker_pid

    def cancel(job: Job, event: object) -> None:
        if isinstance(event, Progress) and event.stage == "reading the image":
            time.sleep(0.3)
            job.cancel()

    heard = Heard(cancel)
    job = engine.segment(
        noise((2000, 2000)), axes="YX", model=models[2, "instance"], tile=(2000, 2000),
        on_event=heard,
    )  # fmt: skip
    start = time.monotonic()
    assert finish(job) == Cancelled()
    assert time.monotonic() - start < PATIENCE / 4
    assert len(heard.terminal) == 1
    after = finish(engine.segment(noise((20, 20)), axes="YX", model=models[2, "semantic"]))
    assert after.kind == "done"
    assert engine.worker_pid != pid


def test_after_a_worker_was_ended_the_next_one_starts_at_once(models):
    """The objects of a large image take longer than the grace time."""
    with Engine(grace=0.05) as other:
        assert finish(other.request(Hello())).kind == "done"
        pid = other.worker_pid

        def cancel(job: Job, event: object) -> None:
            if isinstance(event, Progress) and event.stage == "finding objects":
                job.cancel()

        job = other.segment(
            noise((1500, 1500)), axes="YX", model=models[2, "instance"], on_event=Heard(cancel)
        )
        assert finish(job) == Cancelled()
        assert other.worker_pid not in (None, pid)
        assert finish(other.request(Hello())).kind == "done"


def test_cancel_while_the_image_is_handed_over(engine: Engine, models, monkeypatch):
    from tttunet.engine import exchange

    monkeypatch.setattr(exchange, "CHUNK_BYTES", 10)
    jobs: list[Job] = []

    class Slow:
        shape, dtype, read = (1000, 10), np.dtype(np.uint8), 0

        def __getitem__(self, part: object) -> np.ndarray:
            Slow.read += 1
            while not jobs:
                time.sleep(0.01)
            jobs[0].cancel()
            return noise((1, 10))

    jobs.append(engine.segment(Slow(), axes="YX", model=models[2, "semantic"]))
    assert finish(jobs[0]) == Cancelled()
    assert Slow.read == 1


def test_cancel_while_the_worker_starts_keeps_it_for_the_next_job(models):
    with Engine() as engine:
        heard = Heard()
        job = engine.segment(
            noise((20, 20)), axes="YX", model=models[2, "semantic"], on_event=heard
        )
        while engine.worker_pid is None:
            time.sleep(0.01)
        pid = engine.worker_pid
        job.cancel()
        assert job.wait(2) == Cancelled()
        assert heard.kinds == ["queued", "started", "cancelled"]
        after = finish(engine.segment(noise((20, 20)), axes="YX", model=models[2, "semantic"]))
        assert after.kind == "done"
        assert engine.worker_pid == pid


@pytest.mark.slow
def test_two_engines_work_at_once_and_one_is_closed_in_the_middle(engine: Engine, models):
    heard, other = Heard(), Engine()
    job = long_job(other, models, heard)
    waiting = other.segment(noise((20, 20)), axes="YX", model=models[2, "semantic"])
    here = finish(engine.segment(noise((20, 20)), axes="YX", model=models[2, "semantic"]))
    assert here.kind == "done"
    assert not job.finished
    start = time.monotonic()
    other.close()
    assert time.monotonic() - start < 2 * other.grace + 4
    assert (job.outcome, waiting.outcome) == (Cancelled(), Cancelled())
    assert other.worker_pid is None
    other.close()
    with pytest.raises(RuntimeError, match="closed"):
        other.segment(noise((20, 20)), axes="YX", model=models[2, "semantic"])
