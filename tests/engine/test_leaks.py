"""Many jobs leave nothing behind: memory, files, handles, processes, threads."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tttunet.engine import exchange
from tttunet.engine.client import Engine

from .conftest import Heard, finish, kill, noise

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="looks at /proc")

MIB = 2**20


@dataclass
class Usage:
    """What both processes hold."""

    memory: int
    worker_memory: int
    handles: int
    worker_handles: int
    threads: int
    worker_threads: int
    children: int


def field(pid: int | str, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    value = next(line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(value)


def children(pid: int) -> int:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(len((task / "children").read_text().split()) for task in tasks)


def usage(engine: Engine) -> Usage:
    gc.collect()
    pid = engine.worker_pid
    return Usage(
        memory=field("self", "VmRSS") * 1024,
        worker_memory=field(pid, "VmRSS") * 1024,
        handles=len(os.listdir("/proc/self/fd")),
        worker_handles=len(os.listdir(f"/proc/{pid}/fd")),
        threads=threading.active_count(),
        worker_threads=field(pid, "Threads"),
        children=children(os.getpid()) + children(pid),
    )


def folders() -> list[Path]:
    pattern = f"{exchange.prefix_of(os.getpid())}*"
    return [p for root in ("/dev/shm", tempfile.gettempdir()) for p in Path(root).glob(pattern)]


def one_job(engine: Engine, models, number: int) -> None:
    """Jobs of every way to end: done, decoded, failed, cancelled."""
    array, model = noise((256, 256), number), models[2, "instance"]
    if number % 5 == 4:
        assert finish(engine.segment(array, axes="ZYX", model=model)).kind == "failed"
        return
    if number % 5 == 3:
        heard = Heard(lambda job, event: event.kind == "progress" and job.cancel())
        job = engine.segment(array, axes="YX", model=model, tile=(32, 32), on_event=heard)
        assert finish(job).kind == "cancelled"
        return
    job = engine.segment(array, axes="YX", model=model, preview=True, maps=True)
    assert finish(job).kind == "done"
    assert finish(engine.decode({"min_size": number})).kind == "done"


def check(before: Usage, after: Usage, growth: int) -> None:
    assert after.handles == before.handles
    assert after.worker_handles == before.worker_handles
    assert after.threads == before.threads
    assert after.worker_threads <= before.worker_threads
    assert after.children == before.children
    assert after.memory - before.memory < growth
    assert after.worker_memory - before.worker_memory < growth
    assert folders() == []


@pytest.mark.parametrize(
    ("warm_up", "jobs", "growth"),
    [(5, 20, 40 * MIB), pytest.param(10, 200, 40 * MIB, marks=pytest.mark.slow)],
)
def test_jobs_leave_nothing_behind(engine: Engine, models, warm_up: int, jobs: int, growth: int):
    for number in range(warm_up):
        one_job(engine, models, number)
    before = usage(engine)
    for number in range(jobs):
        one_job(engine, models, number)
    check(before, usage(engine), growth)


@pytest.mark.slow
def test_an_idle_worker_gives_memory_back(engine: Engine, models):
    array = noise((2500, 2500))
    job = engine.segment(array, axes="YX", model=models[2, "semantic"], tile=(1024, 1024))
    assert finish(job).kind == "done"
    assert finish(engine.segment(noise((8, 8)), axes="YX", model=models[2, "semantic"]))
    busy = usage(engine).worker_memory
    deadline = time.monotonic() + 20
    while usage(engine).worker_memory > busy - 30 * MIB and time.monotonic() < deadline:
        time.sleep(0.2)
    assert usage(engine).worker_memory <= busy - 30 * MIB


@pytest.mark.slow
def test_workers_that_were_killed_leave_nothing_behind(engine: Engine, models):
    before = usage(engine)
    for _ in range(2):
        kill(engine.worker_pid)
        assert finish(engine.segment(noise((20, 20)), axes="YX", model=models[2, "semantic"]))
    after = usage(engine)
    assert after.handles == before.handles
    assert after.threads == before.threads
    assert after.children == before.children
    assert folders() == []


@pytest.mark.slow
def test_a_closed_engine_leaves_nothing_behind(engine: Engine, models):
    before = usage(engine)
    with Engine() as other:
        finish(other.segment(noise((20, 20)), axes="YX", model=models[2, "semantic"]))
    after = usage(engine)
    assert (after.handles, after.threads) == (before.handles, before.threads)
    assert after.children == before.children
    assert folders() == []
