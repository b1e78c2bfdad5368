"""Tiny models on disk, one worker process for most tests, and what happened to a job."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from squares import write_squares
from tiny import make_config
from tttunet.engine.client import Engine, Job
from tttunet.engine.messages import TERMINAL, Hello
from tttunet.models.model import Model

#: Longer than anything takes, on a busy machine too.
PATIENCE = 240.0


class Heard(list):
    """Events of a job, in order; call it as `on_event`.

    Args:
        act: called with every event, to cancel or kill in the middle.
    """

    def __init__(self, act: Any = None) -> None:
        super().__init__()
        self.act = act

    def __call__(self, job: Job, event: Any) -> None:
        self.append(event)
        if self.act is not None:
            self.act(job, event)

    @property
    def kinds(self) -> list[str]:
        return [event.kind if hasattr(event, "kind") else "preview" for event in self]

    @property
    def terminal(self) -> list[Any]:
        return [event for event in self if isinstance(event, TERMINAL)]


def finish(job: Job) -> Any:
    outcome = job.wait(PATIENCE)
    assert outcome is not None, "the job did not end"
    return outcome


def noise(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, shape, np.uint8)


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], str]:
    """Folders of models, by dimension and task."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for dim in (2, 3):
        for task in ("instance", "semantic"):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = Model.create(make_config(dim, task))
            found[dim, task] = str(model.save(folder / f"{task}{dim}"))
    return found


@pytest.fixture(scope="session")
def shared_engine() -> Iterator[Engine]:
    # A busy machine needs longer than a user would wait.
    with Engine(grace=10.0) as engine:
        yield engine


@pytest.fixture
def engine(shared_engine: Engine) -> Engine:
    """A worker that runs; tests may kill it."""
    about = finish(shared_engine.request(Hello()))
    assert about.kind == "done", about
    return shared_engine


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_squares(tmp_path / "squares")
