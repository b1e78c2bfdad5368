"""Correct and fine-tune in the window: every control, with real projects and a real worker."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed: make test-slicer")
pytest.importorskip("PySide6.QtUiTools", reason="PySide6 is not installed: make test-slicer")

from PySide6 import QtCore  # noqa: E402

from slicer_finetuning import (  # noqa: E402
    add_corrected,
    begin,
    bright_cube,
    everything,
    open_project,
    prepare,
    save,
    told,
)
from slicer_nodes import add_volume, labels_of  # noqa: E402
from slicer_window import Window, choose  # noqa: E402
from TTTUNetLib import FineTuning, Projects, Results  # noqa: E402

CHECKED = QtCore.Qt.CheckState.Checked


@pytest.mark.slow
def test_corrections_are_learnt_stopped_kept_and_reverted(window: Window, tmp_path: Path):
    ui, panel = window.ui, window.widget.panel
    assert not ui.finetuneButton.enabled
    assert not ui.saveButton.enabled
    ui.curveCheckBox.click()
    volumes = prepare(window, tmp_path / "livers")
    assert "liver. Images: 3. Voxels that are right: 77,760." in ui.projectLabel.text

    task = begin(window)
    assert ui.finetuneButton.text == "Cancel"
    assert not ui.applyButton.enabled, "one thing at a time"
    assert not ui.installButton.enabled
    assert not ui.saveButton.enabled
    assert ui.finetuneProgress.visible
    assert task.chartNode.GetNumberOfPlotSeriesNodes() == 2
    window.click(ui.stopButton)
    assert not ui.stopButton.enabled
    window.until(lambda: not panel.running)
    assert told(window) == "Done: keep the new model, or revert."
    assert "Dice on held-out corrections: " in ui.scoresLabel.text
    assert ui.finetuneButton.text == "Fine-tune"
    assert task.tableNode.GetTable().GetColumnByName("Loss").GetValue(0) > 0

    before = panel.project.model
    window.click(ui.keepButton)
    window.until(lambda: ui.modelSelector.findData("organs-v2") >= 0)
    window.until(lambda: not panel.busy)
    assert not ui.keepButton.enabled
    assert ui.modelSelector.itemData(ui.modelSelector.currentIndex) == "organs-v2"
    assert panel.project.model == "models/organs-v2"
    assert ui.startSelector.currentText == "organs-v2 (of this project)"
    window.ready(volumes[0])
    window.click(ui.applyButton)
    assert not ui.finetuneButton.enabled, "one thing at a time"
    window.until(lambda: not window.running)
    assert "segments in" in window.status

    window.click(ui.revertButton)
    window.until(lambda: not panel.busy)
    assert panel.project.model == before
    assert ui.modelSelector.itemData(ui.modelSelector.currentIndex) == "organs"
    assert ui.scoresLabel.text == ""
    assert not ui.revertButton.enabled


def test_what_is_not_decided_is_lost_only_if_the_user_agrees(
    window: Window, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []
    answers = [False, True]

    def ask(text: str) -> bool:
        asked.append(text)
        return answers.pop(0)

    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", ask, raising=False)
    prepare(window, tmp_path / "livers")
    panel = window.widget.panel
    interrupted = panel.project.new_run()  # as napari leaves it when the computer goes down
    (interrupted / "training").mkdir()
    (interrupted / "training" / "checkpoint.pt").write_bytes(b"much")
    run = {"folder": interrupted.name, "model": "organs", "options": {}}
    panel.project.set_setting("run", run)
    for _ in range(2):  # close it, and open it again
        window.click(window.ui.projectButton)
        window.until(lambda: not panel.busy)
    assert told(window) == "A training was interrupted: Resume goes on with it."
    assert window.ui.resumeButton.visible

    window.click(window.ui.finetuneButton)
    assert "begin anew?" in asked[0]
    assert not panel.busy
    assert panel.project.settings["run"] == run
    begin(window)
    assert len(asked) == 2
    assert not interrupted.exists()
    assert panel.project.settings["run"]["folder"] == panel.task.folder.name
    assert not window.ui.resumeButton.visible
    window.click(window.ui.finetuneButton)
    assert "run" not in panel.project.settings


def test_undecided_model_is_found_where_the_project_was_moved_to(
    scene: Any, logic: Any, tmp_path: Path
):
    with logic.client.open_project(tmp_path / "livers", ("liver",)) as project:
        folder = project.new_run()
        result = {"folder": f"/elsewhere/livers/runs/{folder.name}/training/model"}
        run = {"folder": folder.name, "model": "organs", "options": {}, "result": result}
        project.set_setting("run", run)
        assert FineTuning.undecided(project) is None
        (folder / "training" / "model").mkdir(parents=True)
        found = FineTuning.undecided(project)
        assert found is not None
        assert found.result["folder"] == str(folder / "training" / "model")
        assert found.folder == folder


@pytest.mark.parametrize("name", ["..", ".", "/"])
def test_run_that_is_no_folder_of_a_run_is_not_deleted(
    name: str, scene: Any, logic: Any, tmp_path: Path
):
    with logic.client.open_project(tmp_path / "livers", ("liver",)) as project:
        kept = project.new_run()
        project.set_setting("run", {"folder": name, "model": "organs", "options": {}})
        FineTuning.put_away(project)
        assert kept.is_dir()


@pytest.mark.slow
def test_reverting_at_once_deletes_the_run(window: Window, tmp_path: Path):
    prepare(window, tmp_path / "livers")
    task = begin(window)
    window.click(window.ui.stopButton)
    window.until(lambda: not window.widget.panel.running)
    assert (task.folder / "training" / "model" / "model.json").is_file()
    window.click(window.ui.revertButton)
    window.until(lambda: not window.widget.panel.busy)
    assert not task.folder.exists()
    assert window.widget.panel.project.versions == []
    events = [one["event"] for one in window.widget.panel.project.history()]
    told_of = [event for event in events if event.startswith("fine-tuning")]
    assert told_of == ["fine-tuning finished", "fine-tuning reverted"]


def test_cancel_is_at_once_leaves_nothing_and_the_next_one_works(window: Window, tmp_path: Path):
    prepare(window, tmp_path / "livers")
    task = begin(window)
    window.click(window.ui.finetuneButton)
    assert not window.widget.panel.running
    assert told(window) == "Cancelled; the model is as it was."
    assert not window.ui.keepButton.enabled
    window.until(lambda: not task.folder.exists())
    assert begin(window).tableNode is not task.tableNode
    window.click(window.ui.finetuneButton)


@pytest.mark.slow
def test_scene_that_closes_in_the_middle_does_not_end_the_training(window: Window, tmp_path: Path):
    prepare(window, tmp_path / "livers")
    task = begin(window)
    slicer.mrmlScene.Clear(0)
    assert window.widget.panel.running
    assert window.ui.segmentationSelector.currentNode() is None
    window.ui.curveCheckBox.click()  # there is no chart any more
    window.ui.curveCheckBox.click()
    window.click(window.ui.stopButton)
    window.until(lambda: not window.widget.panel.running)
    assert task.state == "done"
    assert window.ui.keepButton.enabled

    window.click(window.ui.projectButton)  # close it without deciding, and open it again
    assert not window.ui.keepButton.enabled
    window.click(window.ui.projectButton)
    window.until(lambda: window.ui.keepButton.enabled)
    assert "not decided yet" in told(window)
    assert "held-out corrections" in window.ui.scoresLabel.text
    window.click(window.ui.keepButton)
    window.until(lambda: not window.widget.panel.busy)
    assert window.widget.panel.project.model.startswith("models/organs-v")


@pytest.mark.slow
def test_curve_is_shown_in_the_layout_if_wanted(
    window: Window, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shown: list[Any] = []
    plots = SimpleNamespace(logic=lambda: SimpleNamespace(ShowChartInLayout=shown.append))
    monkeypatch.setattr(slicer.modules, "plots", plots)
    prepare(window, tmp_path / "livers")
    task = begin(window)
    assert shown == [task.chartNode]
    window.ui.curveCheckBox.click()
    assert len(shown) == 1
    window.ui.curveCheckBox.click()
    assert len(shown) == 2
    window.click(window.ui.finetuneButton)


def test_checked_segments_are_vouched_for_and_follow_segment_editor(
    window: Window, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ui = window.ui
    _, segmentation = add_corrected(0, ("liver", "spleen"))
    ui.segmentationSelector.setCurrentNode(segmentation)
    assert [ui.checkedList.item(row).text() for row in range(2)] == ["liver", "spleen"]
    ui.checkedList.item(0).setCheckState(CHECKED)
    open_project(window, tmp_path / "organs")
    assert window.widget.panel.project.classes == {1: "liver", 2: "spleen"}

    editor: dict[str, Any] = {}
    widget = SimpleNamespace(
        setSegmentationNode=lambda node: editor.update(segmentation=node),
        setSourceVolumeNode=lambda node: editor.update(volume=node),
    )
    module = SimpleNamespace(
        widgetRepresentation=lambda: SimpleNamespace(self=lambda: SimpleNamespace(editor=widget))
    )
    monkeypatch.setattr(slicer.modules, "segmenteditor", module, raising=False)
    monkeypatch.setattr(slicer.util, "selectModule", lambda name: editor.update(module=name))
    window.click(ui.editButton)
    volume = slicer.util.getNode("CT0")
    assert editor == {"module": "SegmentEditor", "segmentation": segmentation, "volume": volume}
    segmentation.GetSegmentation().RemoveSegment("Segment_2")
    window.widget.enter()
    assert ui.checkedList.count == 1
    assert ui.checkedList.item(0).checkState() == CHECKED

    save(window, segmentation)
    assert told(window) == "The corrections of 'CT0' are saved."
    project = window.widget.panel.project
    (reference,) = project.images
    labels, vouched = project.corrections(reference).read(reference.bounds)
    expected = bright_cube(0) > 200
    np.testing.assert_array_equal(labels, expected)
    assert vouched[expected].all()
    assert 0 < vouched[~expected].sum() < (~expected).sum(), "a rim, and no more"

    window.click(ui.projectButton)
    assert window.widget.panel.project is None
    assert not ui.saveButton.enabled
    assert ui.imageSelector.count == 0


def test_new_segment_becomes_a_class_if_the_user_agrees(
    window: Window, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []
    answers = [False, True]

    def ask(text: str) -> bool:
        asked.append(text)
        return answers.pop(0)

    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", ask, raising=False)
    _, segmentation = add_corrected(0)
    window.ui.segmentationSelector.setCurrentNode(segmentation)
    open_project(window, tmp_path / "livers")
    window.ui.completeSelector.setCurrentNode(everything())
    segmentation.GetSegmentation().AddEmptySegment("", "tumour")
    save(window, segmentation)
    project = window.widget.panel.project
    assert "no class tumour" in asked[0]
    assert "no class of the project" in told(window)
    assert (project.classes, project.images) == ({1: "liver"}, ())
    save(window, segmentation)
    assert project.classes == {1: "liver", 2: "tumour"}
    assert window.ui.projectLabel.text.startswith("liver, tumour. Images: 1.")


@pytest.mark.slow
def test_what_cannot_be_saved_or_opened_is_said(window: Window, tmp_path: Path):
    ui = window.ui
    window.until(lambda: ui.projectButton.enabled)
    window.click(ui.projectButton)
    assert told(window) == "Choose a folder for the project."
    choose(ui.modelSelector, "organs")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("")
    ui.projectPath.currentPath = str(tmp_path / "full")
    window.click(ui.projectButton)
    window.until(lambda: "is not empty" in told(window))
    _, segmentation = add_corrected(0)
    ui.segmentationSelector.setCurrentNode(segmentation)
    open_project(window, tmp_path / "livers")
    save(window, segmentation)
    assert "Nothing is said to be right" in told(window)
    assert not ui.finetuneButton.enabled, "there is nothing to learn yet"
    second = Window()
    second.until(lambda: second.ui.projectButton.enabled)
    assert second.ui.projectPath.currentPath == str(tmp_path / "livers"), "remembered"
    second.click(second.ui.projectButton)
    second.until(lambda: "open" in told(second))
    assert second.widget.panel.project is None
    second.widget.cleanup()


@pytest.mark.slow
def test_what_was_said_to_be_right_stays_until_it_is_said_again(window: Window, tmp_path: Path):
    _, segmentation = add_corrected(0)
    window.ui.segmentationSelector.setCurrentNode(segmentation)
    open_project(window, tmp_path / "livers")
    box = everything()
    window.ui.completeSelector.setCurrentNode(box)
    save(window, segmentation)
    project = window.widget.panel.project
    (reference,) = project.images
    right, _ = project.corrections(reference).read(reference.bounds)

    volume = slicer.util.getNode("CT0")
    wrong = np.zeros((20, 36, 36), np.uint8)
    wrong[:3, :8, :8] = 1
    wanted = Results.segment_labels([1], [{"value": 1, "name": "liver"}], "semantic")
    guessed = Results.create_segmentation(volume, wrong, wanted, "a model's")
    window.ui.completeSelector.setCurrentNode(None)
    window.ui.segmentationSelector.setCurrentNode(guessed)
    window.ui.checkedList.item(0).setCheckState(CHECKED)
    save(window, guessed)
    labels, vouched = project.corrections(reference).read(reference.bounds)
    assert vouched.all()
    assert labels[:3, :8, :8].all(), "checked now"
    away = np.s_[6:, 12:, 12:]
    np.testing.assert_array_equal(labels[away], right[away])


@pytest.mark.slow
def test_image_of_a_project_is_loaded_with_its_corrections(window: Window, tmp_path: Path):
    ui = window.ui
    prepare(window, tmp_path / "livers")
    slicer.mrmlScene.Clear(0)
    ui.imageSelector.currentIndex = 1
    window.click(ui.loadButton)
    assert told(window) == "Reading 'CT1'"
    assert not ui.loadButton.enabled
    assert ui.inputSelector.currentNode() is None, "the main thread has read nothing"
    window.until(lambda: not window.widget.panel.busy)
    volume, segmentation = ui.inputSelector.currentNode(), ui.segmentationSelector.currentNode()
    assert volume.GetName() == "CT1"
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(volume), bright_cube(1))
    np.testing.assert_array_equal(labels_of(segmentation, volume), bright_cube(1) > 200)


def test_nodes_may_go_and_slicer_may_close_while_corrections_are_saved(
    window: Window, logic: Any, tmp_path: Path
):
    pairs = [add_corrected(seed) for seed in range(2)]
    window.ui.segmentationSelector.setCurrentNode(pairs[0][1])
    open_project(window, tmp_path / "livers")
    window.ui.completeSelector.setCurrentNode(everything())
    window.click(window.ui.saveButton)
    assert told(window) == "Saving the corrections"
    for node in pairs[0]:
        slicer.mrmlScene.RemoveNode(node)
    window.until(lambda: not window.widget.panel.busy)
    assert told(window) == "The corrections of 'CT0' are saved."
    window.ui.segmentationSelector.setCurrentNode(pairs[1][1])
    window.until(lambda: window.ui.saveButton.enabled)
    window.click(window.ui.saveButton)
    window.widget.cleanup()
    until_saved()
    with logic.client.open_project(tmp_path / "livers") as project:
        assert [image.name for image in project.images] == ["CT0", "CT1"]
        for seed, image in enumerate(project.images):
            labels, vouched = project.corrections(image).read(image.bounds)
            np.testing.assert_array_equal(labels, bright_cube(seed) > 200)
            assert vouched.all()


def test_window_closes_at_once_and_what_is_being_saved_is_saved(
    window: Window, logic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _, node = add_corrected(0)
    window.ui.segmentationSelector.setCurrentNode(node)
    open_project(window, tmp_path / "livers")
    window.ui.completeSelector.setCurrentNode(everything())
    store, closed = Projects.Corrected.store, threading.Event()

    def slow_store(found: Any, project: Any) -> Any:
        assert closed.wait(30), "closing the window waits for the disk"
        return store(found, project)

    monkeypatch.setattr(Projects.Corrected, "store", slow_store)
    window.click(window.ui.saveButton)
    window.widget.cleanup()
    closed.set()
    until_saved()
    with logic.client.open_project(tmp_path / "livers") as project:
        (image,) = project.images
        assert project.corrections(image).read(image.bounds)[1].all()


@pytest.mark.slow
def test_window_may_close_while_an_image_is_read(window: Window, tmp_path: Path):
    prepare(window, tmp_path / "livers")
    slicer.mrmlScene.Clear(0)
    window.click(window.ui.loadButton)
    opening = window.widget.panel.opening
    window.widget.cleanup()
    assert opening.state == "cancelled"
    for _ in range(20):
        window.widget.logic.mailbox.pump()
        time.sleep(0.05)
    assert slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode") is None


def until_saved() -> None:
    """Wait as Python does at its end."""
    for thread in threading.enumerate():
        if thread.name == "tttunet-close-project":
            assert not thread.daemon
            thread.join()


def test_objects_become_no_classes(window: Window, tmp_path: Path):
    ui, panel = window.ui, window.widget.panel
    window.until(lambda: ui.modelSelector.count > 0)
    choose(ui.modelSelector, "nuclei")
    volume, cells = add_corrected(0, ("nucleus 1", "nucleus 2"))
    Results.write_provenance(cells, volume, {"model": {"task": "instance"}})
    ui.segmentationSelector.setCurrentNode(cells)
    ui.projectPath.currentPath = str(tmp_path / "cells")
    window.click(ui.projectButton)
    window.until(lambda: not panel.busy)
    assert "A new project needs classes." in told(window)
    assert not (tmp_path / "cells").exists()

    open_project(window, tmp_path / "livers")
    ui.completeSelector.setCurrentNode(everything())
    save(window, cells)
    assert "The segment 'nucleus 1' is no class of the project." in told(window)
    assert panel.project.classes == {1: "liver"}
    window.click(ui.projectButton)


def test_project_of_objects_and_colours_are_refused_with_what_to_do(
    window: Window, run_python: Any, tmp_path: Path
):
    ui, panel = window.ui, window.widget.panel
    made = "import sys; from tttunet.projects import Project; Project.create(sys.argv[1]).close()"
    run_python("-c", made, tmp_path / "cells")
    window.until(lambda: ui.projectButton.enabled)
    ui.projectPath.currentPath = str(tmp_path / "cells")
    window.click(ui.projectButton)
    window.until(lambda: not panel.busy)
    assert told(window) == "This project has objects, not classes: correct it in napari."
    run_python(
        "-c",
        "import sys; from tttunet.projects import Project; Project.open(sys.argv[1])",
        tmp_path / "cells",
    )  # it is not held open

    volume = add_volume(np.zeros((4, 8, 8, 3), np.uint8), name="photograph")
    wanted = Results.segment_labels([1], [{"value": 1, "name": "liver"}], "semantic")
    labels = np.ones((4, 8, 8), np.uint8)
    segmentation = Results.create_segmentation(volume, labels, wanted, "liver")
    open_project(window, tmp_path / "livers")
    ui.completeSelector.setCurrentNode(everything())
    save(window, segmentation)
    assert told(window) == "'photograph' has several components. Choose a scalar one."
    slicer.mrmlScene.RemoveNode(volume)
    save(window, segmentation)
    assert told(window) == "No volume is chosen. Load a CT or MRI volume."
    assert panel.project.images == ()
