"""The worker is killed (-9): one sentence, nothing is damaged, the next job works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from squares import NETWORK
from tttunet.engine import client, exchange
from tttunet.engine.client import Engine, Job
from tttunet.engine.messages import Done, Lost, Metric, Progress, Train
from tttunet.models.model import load_model

from .conftest import PATIENCE, Heard, finish, kill, noise

RECIPE = {
    "network": NETWORK,
    "train": {"batch_size": 1, "workers": 1, "validate_every": 2},
}


def killer(when: Any) -> Any:
    """Kills the worker at the first event for which `when` is true."""
    done = []

    def listen(job: Job, event: object) -> None:
        if not done and when(event):
            done.append(True)
            kill(job.engine.worker_pid)

    return listen


def check_lost(outcome: Any, heard: Heard) -> None:
    assert isinstance(outcome, Lost)
    assert outcome.message.startswith("The worker process ended unexpectedly: it was killed")
    assert outcome.message.count(".") == 1
    assert "next job" in outcome.hint
    assert heard.terminal == [outcome]
    assert heard[-1] is outcome


def check_next_job(engine: Engine, models) -> None:
    after = finish(engine.segment(noise((20, 20)), axes="YX", model=models[2, "semantic"]))
    assert after.kind == "done"


@pytest.mark.parametrize(
    "stage", [pytest.param("loading the model", marks=pytest.mark.slow), "tiles"]
)
def test_killed_while_it_works(engine: Engine, models, stage: str):
    heard = Heard(killer(lambda e: isinstance(e, Progress) and e.stage == stage))
    job = engine.segment(
        noise((1500, 1500)), axes="YX", model=models[2, "instance"], tile=(32, 32), on_event=heard
    )
    check_lost(finish(job), heard)
    check_next_job(engine, models)


def test_killed_while_it_starts(models):
    with Engine() as engine:
        heard = Heard()
        job = engine.segment(
            noise((20, 20)), axes="YX", model=models[2, "semantic"], on_event=heard
        )
        while engine.worker_pid is None:
            time.sleep(0.01)
        kill(engine.worker_pid)
        check_lost(finish(job), heard)


def test_killed_while_the_result_is_handed_over(engine: Engine, models, monkeypatch):
    """The labels are in a file of the client's by then: nothing is lost."""
    array = noise((60, 60))
    whole = finish(engine.segment(array, axes="YX", model=models[2, "semantic"]))
    collect = client._collect_arrays

    def killed(folder: Path, done: Done) -> Done:
        kill(engine.worker_pid)
        return collect(folder, done)

    monkeypatch.setattr(client, "_collect_arrays", killed)
    heard = Heard()
    job = engine.segment(array, axes="YX", model=models[2, "semantic"], on_event=heard)
    outcome = finish(job)
    assert heard.terminal == [outcome]
    np.testing.assert_array_equal(outcome.result["labels"], whole.result["labels"])
    monkeypatch.setattr(client, "_collect_arrays", collect)
    check_next_job(engine, models)  # that it had died while it was idle nobody hears


def write_recipe(folder: Path) -> str:
    import json

    path = folder / "recipe.json"
    path.write_text(json.dumps(RECIPE))
    return str(path)


def test_training_killed_then_resumed_then_cancelled(engine: Engine, models, dataset, tmp_path):
    output = tmp_path / "run"
    recipe = write_recipe(tmp_path)

    def train(steps: int, act: Any, **options: Any) -> tuple[Any, Heard]:
        heard = Heard(act)
        request = Train(str(dataset), str(output), {"steps": steps, "device": "cpu", **options})
        return finish(engine.request(request, heard)), heard

    second_score = iter([False, True])
    outcome, heard = train(
        10_000,
        killer(lambda e: isinstance(e, Metric) and "score" in e.values and next(second_score)),
        recipe=recipe,
    )
    check_lost(outcome, heard)
    assert {"loss"} <= {name for e in heard if isinstance(e, Metric) for name in e.values}
    load_model(output / "model")
    check_next_job(engine, models)

    def cancel(job: Job, event: object) -> None:
        if isinstance(event, Metric):
            job.cancel()

    outcome, heard = train(10_000, cancel, resume=True)
    assert outcome.kind == "cancelled"
    assert len(heard.terminal) == 1
    steps = [e.step for e in heard if isinstance(e, Metric)]
    assert steps[0] >= 3, "it went on from the checkpoint"

    outcome, heard = train(steps[0] + 2, None, resume=True)
    assert outcome.kind == "done", outcome
    assert outcome.result["folder"] == str(output / "model")
    config = load_model(output / "model").config
    assert outcome.result["model"]["sha256"] == config.weights.sha256
    stages = {e.stage for e in heard if isinstance(e, Progress)}
    assert stages == {"preparing the data", "training", "choosing thresholds"}


def test_unknown_training_option_is_named(engine: Engine, dataset, tmp_path):
    request = Train(str(dataset), str(tmp_path / "run"), {"epochs": 3})
    failed = finish(engine.request(request))
    assert (failed.problem, "epochs" in failed.message) == ("input", True)


CHILD = """
import sys, time
import numpy as np
from tttunet.engine.client import Engine
engine = Engine()
heard = lambda job, event: print(event.kind, engine.worker_pid, flush=True)
image = np.random.default_rng(0).integers(0, 255, (3000, 3000), np.uint8)
engine.segment(image, axes="YX", model=sys.argv[1], tile=(32, 32), on_event=heard)
time.sleep(600)
"""


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at /proc")
def test_worker_ends_with_its_killed_parent_in_the_middle_of_a_job(models):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, models[2, "instance"]], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        kind, pid = line.split()
        if kind == "progress":
            break
    worker = int(pid)
    assert running(worker)
    os.kill(child.pid, signal.SIGKILL)
    # The client stays in the system's list until its own parent asks for it, at the end.
    deadline = time.monotonic() + PATIENCE / 4
    while running(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not running(worker)
    for folder in ("/dev/shm", "/tmp"):
        assert not list(Path(folder).glob(f"{exchange.prefix_of(child.pid)}*"))
    child.wait()
    child.stdout.close()
