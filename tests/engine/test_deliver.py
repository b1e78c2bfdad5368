"""Events in the thread of a window, and a window's process without torch."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tttunet.engine.client import Engine, Job
from tttunet.engine.messages import Hello, ListModels

from .conftest import PATIENCE, Heard, finish, noise


def test_events_are_heard_where_and_when_the_program_wants(models):
    calls: queue.SimpleQueue = queue.SimpleQueue()
    threads = set()

    def note_thread(job: Job, event: object) -> None:
        threads.add(threading.current_thread())

    heard = Heard(note_thread)
    with Engine(deliver=calls.put) as engine:
        assert engine.worker_pid is None, "it starts with the first job"
        job = engine.segment(noise((40, 40)), axes="YX", model=models[2, "semantic"],
                             on_event=heard)  # fmt: skip
        finish(job)
        assert heard == []
        while job.outcome not in heard:
            calls.get(timeout=PATIENCE)()
    assert threads == {threading.current_thread()}
    assert heard.kinds[:2] == ["queued", "started"]
    assert heard.kinds[-1] == "done"


def test_what_is_on_its_way_when_a_job_is_cancelled_is_not_heard(models):
    calls: queue.SimpleQueue = queue.SimpleQueue()
    heard = Heard()
    with Engine(deliver=calls.put) as engine:
        assert finish(engine.request(Hello())).kind == "done"
        job = engine.segment(noise((2000, 2000)), axes="YX", model=models[2, "semantic"],
                             tile=(32, 32), on_event=heard)  # fmt: skip
        while calls.qsize() < 6:
            time.sleep(0.01)
        job.cancel()
        finish(job)
        while not calls.empty():
            calls.get()()
    assert heard.kinds == ["cancelled"]


def test_a_listener_that_fails_harms_nothing(engine: Engine, caplog):
    def fail(job: Job, event: object) -> None:
        raise ZeroDivisionError

    assert finish(engine.request(ListModels(), fail)).kind == "done"
    assert "A listener of the job 'list_models' failed" in caplog.text


WINDOW = """
import sys
import numpy as np
from tttunet.engine.batch import Batch, command_line
from tttunet.engine.client import Engine
from tttunet.engine.messages import Batch as BatchRequest, Estimate, ImageRef, Segment
from tttunet.models import describe, list_models

folder, model = sys.argv[1:]
Batch(inputs=(folder + "/*.png",), output=folder, model=model).write(folder + "/batch.yaml")
plan = Batch.read(folder + "/batch.yaml")
print(command_line(Segment(ImageRef(path="a.png"), model, ""), folder))
describe(list_models()[0].name)
with Engine() as engine:
    image = np.random.default_rng(0).integers(0, 255, (60, 60), np.uint8)
    jobs = [
        engine.segment(image, axes="YX", model=model, preview=True, maps=True),
        engine.decode({"min_size": 1}),
        engine.evaluate(image, image, "semantic"),
        engine.request(Estimate((60, 60), "YX", model)),
        engine.request(BatchRequest(plan.model_dump(mode="json"))),
    ]
    print([job.wait(240).kind for job in jobs])
print(sorted({"torch", "monai", "triton", "lightning_fabric", "scipy"} & set(sys.modules)))
"""


def test_the_process_of_a_window_never_imports_torch(models, tmp_path: Path):
    from PIL import Image

    Image.fromarray(noise((40, 40))).save(tmp_path / "a.png")
    ran = subprocess.run(
        [sys.executable, "-c", WINDOW, tmp_path, models[2, "instance"]],
        env={**os.environ, "TTTUNET_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    command, kinds, heavy = ran.stdout.splitlines()
    assert command.startswith("tttunet segment a.png")
    assert kinds == str(["done"] * 5)
    assert heavy == "[]"
    assert list(tmp_path.glob("a_labels.*"))


QT = """
import sys, threading
import numpy as np
from qtpy.QtCore import QCoreApplication, QObject, Qt, Signal
from tttunet.engine.client import Engine, Preview

class Courier(QObject):  # to be made in the window's thread
    sent = Signal(object)
    def call(self, function):
        function()

app, courier = QCoreApplication([]), Courier()
courier.sent.connect(courier.call, Qt.QueuedConnection)
engine = Engine(deliver=courier.sent.emit)

def hear(job, event):
    assert threading.current_thread() is threading.main_thread()
    if isinstance(event, Preview):
        return print("preview", event.bounds, event.labels.shape)
    print(event.kind)
    if event.kind == "done":
        print(event.result["labels"].shape)
    if job.outcome is event:
        app.quit()

image = np.random.default_rng(0).integers(0, 255, (200, 300), np.uint8)
engine.segment(image, axes="YX", model=sys.argv[1], tile=(32, 32), preview=True, on_event=hear)
app.exec()
engine.close()
"""


def test_events_of_a_qt_program_come_in_its_thread(models):
    """As the module's docstring says."""
    try:
        from qtpy import QtCore  # noqa: F401
    except Exception as error:  # no qtpy, or no binding: qtpy raises its own error
        pytest.skip(f"no Qt: {error}")
    ran = subprocess.run(
        [sys.executable, "-c", QT, models[2, "semantic"]],
        env={**os.environ, "TTTUNET_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[:2] == ["queued", "started"]
    assert lines[-2:] == ["done", "(200, 300)"]
    assert any(line.startswith("preview") for line in lines)
