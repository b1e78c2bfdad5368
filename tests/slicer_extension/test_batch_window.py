"""Several volumes in the window: of the scene, and of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed: make test-slicer")
pytest.importorskip("PySide6.QtUiTools", reason="PySide6 is not installed: make test-slicer")

from PySide6 import QtCore  # noqa: E402

from slicer_nodes import add_volume, noise, save  # noqa: E402
from slicer_window import Window, choose  # noqa: E402

SEGMENTATIONS = "vtkMRMLSegmentationNode"


def check(window: Window, *rows: int) -> None:
    for row in rows:
        window.ui.batchList.item(row).setCheckState(QtCore.Qt.CheckState.Checked)


def ready(window: Window) -> None:
    window.until(lambda: window.ui.batchFolderButton.enabled)
    choose(window.ui.modelSelector, "organs")


def told(window: Window) -> str:
    return str(window.ui.batchLabel.text)


def segmented() -> list[str]:
    return [node.GetName() for node in slicer.util.getNodesByClass(SEGMENTATIONS)]


def test_checked_volumes_are_segmented_and_one_that_cannot_be_is_told(window: Window):
    ui = window.ui
    assert not ui.batchNodesButton.enabled
    for seed in range(3):
        add_volume(noise((4, 32, 32), seed), name=f"CT{seed}")
    bent = add_volume(noise((4, 20, 20)), name="bent")
    grid = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "spline")
    bent.SetAndObserveTransformNodeID(grid.GetID())
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    names = [ui.batchList.item(row).text() for row in range(ui.batchList.count)]
    assert names == ["CT0", "CT1", "CT2", "bent"]
    ready(window)
    window.click(ui.batchNodesButton)
    assert told(window) == "Check the volumes to segment."
    check(window, 0, 2, 3)
    window.click(ui.batchNodesButton)
    assert ui.batchNodesButton.text == "Cancel"
    assert not ui.applyButton.enabled
    assert not ui.finetuneButton.enabled
    assert ui.batchProgress.visible
    window.until(lambda: window.widget.batch.task is None)
    assert told(window).startswith("Volumes segmented: 2.\nbent: ")
    assert "non-linear" in told(window)
    assert segmented() == ["CT0 segmentation", "CT2 segmentation"]
    assert ui.batchProgress.value == 100


@pytest.mark.slow
def test_batch_is_cancelled_and_what_is_done_stays(window: Window):
    add_volume(noise((4, 32, 32)), name="small")
    add_volume(noise((60, 160, 160)), name="large")
    ready(window)
    check(window, 0, 1)
    window.click(window.ui.batchNodesButton)
    window.until(lambda: segmented() == ["small segmentation"])
    window.click(window.ui.batchNodesButton)
    assert told(window) == "Cancelled; what was done stays."
    assert window.ui.batchNodesButton.text == "Segment the checked volumes"
    assert segmented() == ["small segmentation"]


@pytest.mark.slow
def test_scene_that_closes_ends_a_batch_of_its_volumes(window: Window):
    add_volume(noise((60, 160, 160)), name="large")
    ready(window)
    check(window, 0)
    window.click(window.ui.batchNodesButton)
    slicer.mrmlScene.Clear(0)
    assert window.widget.batch.task is None
    assert window.ui.batchList.count == 0
    assert not window.ui.batchNodesButton.enabled


@pytest.mark.slow
def test_folder_goes_on_where_it_was(window: Window, tmp_path: Path):
    ui = window.ui
    ready(window)
    window.click(ui.batchFolderButton)
    assert "There is no folder" in told(window)
    (tmp_path / "in").mkdir()
    for seed in range(2):
        volume = add_volume(noise((4, 32, 32), seed))
        save(volume, tmp_path / "in" / f"CT{seed}.nrrd")
    slicer.mrmlScene.Clear(0)
    ui.batchInputPath.currentPath = str(tmp_path / "in")
    ui.batchOutputPath.currentPath = str(tmp_path / "out")
    for expected in ("done: 2, there before: 0, failed: 0", "done: 0, there before: 2, failed: 0"):
        window.click(ui.batchFolderButton)
        assert ui.batchFolderButton.text == "Cancel"
        window.until(lambda: window.widget.batch.task is None)
        assert expected in told(window)
    assert len([*(tmp_path / "out").glob("*.nrrd")]) == 2
    assert "CT1.nrrd: done" in ui.logText.toPlainText()
    assert segmented() == []


@pytest.mark.slow
def test_choices_of_maps_and_of_a_segment_count(window: Window):
    ui = window.ui
    volume = add_volume(noise((8, 40, 36)), name="CT")
    window.ready(volume)
    choose(ui.modelSelector, "organs")
    assert not ui.regionSegmentSelector.enabled
    window.click(ui.applyButton)
    window.until(lambda: not window.running)
    whole: Any = slicer.util.getNode("CT segmentation")
    ui.roiSelector.setCurrentNode(whole)
    texts = [ui.regionSegmentSelector.itemText(i) for i in range(ui.regionSegmentSelector.count)]
    assert texts == ["all segments", "liver"]
    choose(ui.regionSegmentSelector, "liver")
    for box in (ui.probabilityCheckBox, ui.uncertaintyCheckBox, ui.adaptationCheckBox):
        box.click()
    window.click(ui.applyButton)
    assert not ui.regionSegmentSelector.enabled
    window.until(lambda: not window.running)
    assert "segments in" in window.status
    for name in ("CT liver probability", "CT uncertainty", "CT adaptation"):
        assert slicer.util.getNode(name).GetParentTransformNode() is None
