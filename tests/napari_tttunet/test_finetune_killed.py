"""napari itself is killed in the middle of a fine-tuning; another one goes on with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("napari")

from finetuning import Tuning, make_project
from napari_tttunet.annotation import OBJECT
from tttunet.projects.runs import remembered_run

pytestmark = [
    pytest.mark.usefixtures("one_engine", "own_settings", "own_library"),
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9"),
]

STEPS = 24
#: A person with a viewer of their own: paints, fine-tunes, and goes on painting.
_PERSON = """
import sys, time
import napari
from pathlib import Path
from qtpy.QtWidgets import QApplication
from napari_tttunet.finetune_dock import FinetuneDock
from napari_tttunet.session import session

folder = Path(sys.argv[1])
viewer = napari.Viewer()
dock = FinetuneDock(viewer)
viewer.window.add_dock_widget(dock, name="Fine-tune")

def until(condition):
    while not condition():
        QApplication.processEvents()
        time.sleep(0.01)

until(lambda: dock.models)
dock.open_project(folder)
until(lambda: dock.work.annotation is not None and dock.view.go.isEnabled())
expert = dock.view.expert
expert.steps.setValue(int(sys.argv[2]))
expert.parts.setCurrentIndex(expert.parts.findData("head"))
expert.replay.setChecked(False)
dock.view.go.click()
until(lambda: list(folder.glob("runs/*/training/checkpoint.pt")))
dock.work.annotation.layer.paint((100, 5), 77)
saver = dock.work._saver
until(lambda: saver.pending)
until(lambda: not saver.pending)
assert dock.run.running
print("in the middle", session().engine.worker_pid, flush=True)
until(lambda: False)
"""


@pytest.mark.slow
def test_another_napari_resumes_what_the_killed_one_began(
    viewer: Any, qtbot: Any, tmp_path: Path
) -> None:
    folder = make_project(tmp_path, objects=1)
    command = [sys.executable, "-c", _PERSON, str(folder), str(STEPS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as napari:
        assert napari.stdout is not None
        line = napari.stdout.readline()
        assert line.startswith("in the middle"), "it has ended by itself"
        worker = int(line.split()[-1])
        os.kill(napari.pid, signal.SIGKILL)
        napari.wait(10)
    end = time.monotonic() + 60
    while psutil.pid_exists(worker) and time.monotonic() < end:
        time.sleep(0.1)
    assert not psutil.pid_exists(worker), "the engine must not train on for nobody"

    tuning = Tuning(viewer, qtbot)
    labels = tuning.open_project(folder)
    tuning.until(lambda: "interrupted" in tuning.message)
    project = tuning.dock.work.project
    assert remembered_run(project)["options"]["steps"] == STEPS
    assert labels.data[100, 5] == 77, "painted while it was trained, and saved"
    assert tuning.dock.work.annotation.state[100, 5] == OBJECT
    tuning.until(lambda: tuning.find("resume").isVisible())
    tuning.click("resume")
    tuning.finished()
    assert tuning.dock.decision.run["result"]["steps"] == STEPS
    curve = tuning.dock.view.curve.losses
    assert curve[0][0] > 1, "it went on from the checkpoint"
    tuning.click("keep")
    tuning.until(lambda: project.model == "models/nuclei-v2")
