"""Fine-tunings that were interrupted, in Slicer or in napari, and go on in either."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed: make test-slicer")
pytest.importorskip("PySide6.QtUiTools", reason="PySide6 is not installed: make test-slicer")

from slicer_finetuning import add_corrected, begin, everything, prepare, told  # noqa: E402
from slicer_window import Window  # noqa: E402
from TTTUNetLib import FineTuning, Projects  # noqa: E402
from TTTUNetLib.Logic import TTTUNetLogic  # noqa: E402
from TTTUNetLib.Volumes import RequestError  # noqa: E402

STEPS = 14
_TRAINING = {"precision": "32-true", "batch_size": 2, "validate_every": 2, "patience": None}
OPTIONS = {"steps": STEPS, "options": _TRAINING}
#: As napari's dock begins a fine-tuning; its computer goes down after some steps.
_BEGIN_IN_NAPARI = """
import json, sys
from napari_tttunet.finetune_models import new_run
from tttunet import finetune
from tttunet.errors import Cancelled
from tttunet.projects import Project
from tttunet.projects.runs import TRAINING, model_folder, run_folder
with Project.open(sys.argv[1]) as project:
    run = new_run(project, sys.argv[2], json.loads(sys.argv[3]))
    folder = run_folder(project, run) / TRAINING
events = []
try:
    finetune(model_folder(project, run["model"]), project.folder, folder, **run["options"],
             listener=events.append, cancel=lambda: len(events) > 4)
except Cancelled:
    print(run["folder"], events[-1].step)
"""
#: As napari's dock goes on with one.
_RESUME_IN_NAPARI = """
import sys
from tttunet import finetune
from tttunet.projects import Project
from tttunet.projects.runs import TRAINING, can_resume, model_folder, remembered_run, run_folder
with Project.open(sys.argv[1]) as project:
    run = remembered_run(project)
    assert can_resume(project, run)
events = []
finetune(model_folder(project, run["model"]), project.folder, run_folder(project, run) / TRAINING,
         **run["options"], listener=events.append, resume=True)
print(events[0].step, events[-1].step)
"""


@pytest.fixture
def project(scene: Any, logic: Any, tmp_path: Path) -> Iterator[Any]:
    """With corrections of three volumes."""
    with logic.client.open_project(tmp_path / "livers", ("liver",)) as found:
        region = everything()
        for seed in range(3):
            volume, segmentation = add_corrected(seed)
            Projects.save_corrections(found, volume, segmentation, region)
        yield found


def kill(logic: Any) -> None:
    os.kill(logic.client.engine.worker_pid, signal.SIGKILL)


def interrupted(logic: Any, project: Any, model: str) -> Any:
    """A fine-tuning whose worker is killed after its first checkpoint."""
    task = logic.finetune(project, model, options=OPTIONS)
    logic.mailbox.wait(lambda: FineTuning.resumable(project) or task.finished)
    kill(logic)
    logic.mailbox.wait(lambda: task.finished)
    return task


def steps_with(task: Any, column: str) -> list[int]:
    """Steps of the curve at which there is a loss, or a score."""
    table = task.tableNode.GetTable()
    values, steps = (table.GetColumnByName(name) for name in (column, "Step"))
    rows = range(table.GetNumberOfRows())
    return [int(steps.GetValue(row)) for row in rows if not math.isnan(values.GetValue(row))]


@pytest.mark.slow
def test_killed_worker_loses_nothing_and_the_training_goes_on(
    logic: Any, project: Any, tiny_3d: str
):
    task = interrupted(logic, project, tiny_3d)
    assert task.state == "failed"
    assert task.error.endswith("What was learnt so far is kept: Resume goes on from there.")
    run = project.settings["run"]
    assert run == {"folder": task.folder.name, "model": tiny_3d, "options": OPTIONS}
    task.control.write_text("stop")  # pressed just before
    volume, segmentation = add_corrected(3)
    Projects.save_corrections(project, volume, segmentation, everything())  # for the next one
    project.close()

    with logic.client.open_project(project.folder) as again:
        task = logic.resume(again, options={"device": "cpu"}, waitForCompletion=True)
        assert task.state == "done"
        assert steps_with(task, "Loss")[0] > 2, "it went on from the checkpoint"
        assert steps_with(task, "Score")[:2] == [0, 2], "the curve is whole"
        assert task.result["steps"] == STEPS
        assert FineTuning.undecided(again).result == task.result
        assert task.keep().name == "tiny3d-v2"
        assert "run" not in again.settings
        with pytest.raises(RequestError, match="No fine-tuning was interrupted in 'livers'"):
            logic.resume(again)


@pytest.mark.slow
def test_what_was_interrupted_in_napari_goes_on_in_slicer(
    logic: Any, project: Any, tiny_3d: str, run_python: Any
):
    project.close()
    printed = run_python("-c", _BEGIN_IN_NAPARI, project.folder, tiny_3d, json.dumps(OPTIONS))
    name, last = printed.split()
    with logic.client.open_project(project.folder) as again:
        task = logic.resume(again, waitForCompletion=True)
        assert task.folder.name == name
        assert steps_with(task, "Loss")[0] == int(last) + 1
        assert task.result["model"]["name"] == "tiny3d-v2", "as napari called it"
        task.discard()
        assert not task.folder.exists()
        assert "run" not in again.settings


@pytest.mark.slow
def test_what_was_interrupted_in_slicer_goes_on_in_napari(
    logic: Any, project: Any, tiny_3d: str, run_python: Any
):
    interrupted(logic, project, tiny_3d)
    project.close()
    first, last = run_python("-c", _RESUME_IN_NAPARI, project.folder).split()
    assert int(first) > 2
    assert int(last) == STEPS


@pytest.mark.slow
def test_engine_that_is_closed_interrupts_and_a_cancel_deletes(
    project: Any, tiny_3d: str, logic: Any
):
    own = TTTUNetLogic()
    task = own.finetune(project, tiny_3d, options={**OPTIONS, "steps": 500})
    own.mailbox.wait(lambda: task.tableNode.GetNumberOfRows() > 0)
    own.close()
    own.mailbox.wait(lambda: task.finished)
    assert (task.state, task.unwanted) == ("cancelled", False)
    assert FineTuning.resumable(project), "the worker has saved where it was"

    task = logic.resume(project)
    assert task.folder.name == project.settings["run"]["folder"]
    task.cancel()
    assert not FineTuning.resumable(project)
    assert "run" not in project.settings
    logic.mailbox.wait(lambda: not task.folder.exists())
    events = [one["event"] for one in project.history() if "fine-tuning" in one["event"]]
    assert events == ["fine-tuning resumed", "fine-tuning cancelled"]


@pytest.mark.slow
def test_what_cannot_go_on_says_so_and_is_kept(logic: Any, project: Any, tiny_3d: str):
    task = interrupted(logic, project, tiny_3d)
    options = {"options": {**_TRAINING, "batch_size": 1}}
    with pytest.raises(RequestError, match=r"these differ: settings\. Press Fine-tune to begin"):
        logic.resume(project, options=options, waitForCompletion=True)
    assert FineTuning.resumable(project)
    FineTuning.put_away(project)
    assert not task.folder.exists()


def test_training_that_fails_at_once_leaves_nothing(logic: Any, project: Any):
    for model, words in (("no-such-model", "no-such-model"), ("nuclei", "is a 2D model")):
        with pytest.raises(RequestError, match=words):
            logic.finetune(project, model, waitForCompletion=True)
        assert "run" not in project.settings
    runs = project.folder / "runs"
    logic.mailbox.wait(lambda: not any(runs.iterdir()))


@pytest.mark.slow
def test_interrupted_training_is_resumed_in_the_window(window: Window, tmp_path: Path):
    ui, panel = window.ui, window.widget.panel
    prepare(window, tmp_path / "livers")
    assert not ui.resumeButton.visible
    begin(window)
    kill(window.widget.logic)
    window.until(lambda: not panel.running)
    assert "killed" in told(window)
    assert not ui.resumeButton.visible, "it had no checkpoint yet"

    begin(window)
    window.until(lambda: FineTuning.resumable(panel.project))
    kill(window.widget.logic)
    window.until(lambda: not panel.running)
    assert "Resume goes on from there" in told(window)
    assert ui.resumeButton.visible
    window.click(ui.projectButton)
    assert not ui.resumeButton.visible
    window.click(ui.projectButton)
    window.until(lambda: ui.resumeButton.visible and ui.resumeButton.enabled)

    window.click(ui.resumeButton)
    assert not ui.resumeButton.visible
    assert ui.finetuneButton.text == "Cancel"
    task = panel.task
    window.until(lambda: steps_with(task, "Loss"))
    assert steps_with(task, "Loss")[0] > 1
    window.click(ui.stopButton)
    window.until(lambda: not panel.running)
    assert told(window) == "Done: keep the new model, or revert."
    assert not ui.resumeButton.visible
    window.click(ui.revertButton)
    window.until(lambda: not panel.busy)
    assert not task.folder.exists()


@pytest.mark.slow
def test_closing_the_window_in_the_middle_interrupts_the_training(
    scene: Any, library: Path, tmp_path: Path
):
    window = Window()
    prepare(window, tmp_path / "livers")
    task = begin(window)
    engine, project = window.widget.logic.client.engine, window.widget.panel.project
    window.widget.cleanup()
    assert task.state == "cancelled"
    assert project.read_only, "another program can open it"
    window.until(lambda: engine.worker_pid is None)
    assert FineTuning.resumable(project)
