"""The module's window under the stand-in, with the real logic, scene and worker.

What the stand-in cannot show is in `slicer_standin`.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed: make test-slicer")
pytest.importorskip("PySide6.QtUiTools", reason="PySide6 is not installed: make test-slicer")

from PySide6 import QtWidgets  # noqa: E402

from slicer_nodes import add_volume, labels_of, noise  # noqa: E402
from slicer_window import Window, choose  # noqa: E402

pytestmark = pytest.mark.usefixtures("library")
SEGMENTATIONS = "vtkMRMLSegmentationNode"


def test_module_introduces_itself(scene: Any, monkeypatch: pytest.MonkeyPatch):
    from TTTUNet import TTTUNet
    from TTTUNetLib import Samples

    heard: list[tuple[str, Any]] = []
    application = SimpleNamespace(connect=lambda *told: heard.append(told))
    monkeypatch.setattr(slicer, "app", application, raising=False)
    module = TTTUNet(SimpleNamespace())
    assert module.parent.title == "TTT-UNet"
    assert module.parent.categories == ["Segmentation"]
    assert "Slicer's Python is not changed" in module.parent.helpText
    assert heard == [("startupCompleted()", Samples.register)]


@pytest.mark.slow
def test_module_passes_its_own_test(scene: Any, monkeypatch: pytest.MonkeyPatch):
    from TTTUNet import TTTUNetTest

    monkeypatch.setattr(slicer.util, "addVolumeFromArray", lambda a, name: add_volume(a, name=name))
    TTTUNetTest().runTest()


def test_from_an_empty_window_to_a_segmentation(window: Window):
    ui = window.ui
    assert not ui.applyButton.enabled
    window.until(lambda: ui.modelSelector.count > 0)
    assert not ui.applyButton.enabled, "there is no volume yet"
    volume = add_volume(noise((6, 33, 32)), name="CT")
    window.ready(volume)
    assert "napari-tttunet" in ui.environmentLabel.text
    choose(ui.modelSelector, "organs")
    assert ui.modelCard.text == "3D: liver. Licence: unknown."
    assert "liver" in ui.modelCard.toolTip

    window.click(ui.applyButton)
    assert window.running
    assert ui.applyButton.text == "Cancel"
    assert not ui.modelSelector.enabled
    assert ui.progressBar.visible
    window.until(lambda: not window.running)
    assert window.status == "1 segments in 'CT segmentation'"
    assert ui.applyButton.text == "Apply"
    assert not ui.progressBar.visible
    assert slicer.mrmlScene.GetNumberOfNodesByClass(SEGMENTATIONS) == 1
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLTableNode") == 1
    assert window.status in ui.logText.toPlainText()


@pytest.mark.slow
def test_cancel_is_at_once_and_the_next_run_works(window: Window):
    window.ready(add_volume(noise((60, 160, 160))))
    choose(window.ui.modelSelector, "organs")
    window.click(window.ui.applyButton)
    window.until(lambda: window.ui.progressBar.value > 0)
    assert "%" in window.status
    window.click(window.ui.applyButton)
    assert not window.running
    assert "nothing was changed" in window.status
    assert window.ui.applyButton.text == "Apply"

    window.ready(add_volume(noise((4, 32, 32))))
    window.click(window.ui.applyButton)
    window.until(lambda: not window.running)
    assert "segments in" in window.status
    assert slicer.mrmlScene.GetNumberOfNodesByClass(SEGMENTATIONS) == 1


@pytest.mark.slow
def test_region_of_interest_limits_the_result(window: Window):
    volume = add_volume(noise((8, 40, 40)))
    window.ready(volume)
    choose(window.ui.modelSelector, "organs")
    region = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "region")
    region.SetSize(20, 20, 3)
    region.SetCenter(-31.5 + 20, 12.25 + 20, 87 + 4)
    window.ui.roiSelector.setCurrentNode(region)
    window.click(window.ui.applyButton)
    window.until(lambda: not window.running)
    (node,) = slicer.util.getNodesByClass(SEGMENTATIONS)
    found = np.argwhere(labels_of(node, volume))
    assert (found.min(0) >= (3, 10, 10)).all()
    assert (found.max(0) <= (5, 30, 30)).all()


def test_what_cannot_be_done_is_said_below_the_button(window: Window):
    volume = add_volume(noise((4, 20, 20)), name="bent")
    grid = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "spline")
    volume.SetAndObserveTransformNodeID(grid.GetID())
    window.ready(volume)
    window.click(window.ui.applyButton)
    assert not window.running
    assert "non-linear transform" in window.status
    assert window.ui.applyButton.enabled


@pytest.mark.slow
def test_killed_worker_is_told_and_the_next_run_works(window: Window):
    window.ready(add_volume(noise((60, 160, 160))))
    choose(window.ui.modelSelector, "organs")
    window.click(window.ui.applyButton)
    window.until(lambda: window.ui.progressBar.value > 0)
    os.kill(window.widget.logic.client.engine.worker_pid, signal.SIGKILL)
    window.until(lambda: not window.running)
    assert "killed" in window.status
    window.ready(add_volume(noise((4, 32, 32))))
    window.click(window.ui.applyButton)
    window.until(lambda: not window.running)
    assert "segments in" in window.status


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["scene", "volume"])
def test_scene_or_volume_that_goes_away_ends_the_run(window: Window, loss: str):
    volume = add_volume(noise((60, 160, 160)))
    window.ready(volume)
    choose(window.ui.modelSelector, "organs")
    window.click(window.ui.applyButton)
    window.until(lambda: window.ui.progressBar.value > 0)
    if loss == "scene":
        slicer.mrmlScene.Clear(0)
    else:
        slicer.mrmlScene.RemoveNode(volume)
    assert not window.running
    window.until(lambda: not window.ui.applyButton.enabled)
    assert window.ui.inputSelector.currentNode() is None
    assert slicer.mrmlScene.GetNumberOfNodesByClass(SEGMENTATIONS) == 0
    window.ready(add_volume(noise((4, 32, 32))))
    window.click(window.ui.applyButton)
    window.until(lambda: not window.running)
    assert "segments in" in window.status


@pytest.mark.slow
def test_choices_are_kept_in_the_scene_and_for_the_next_one(window: Window):
    from TTTUNetLib import Parameters

    volume = add_volume(noise((4, 32, 32)))
    window.ready(volume)
    choose(window.ui.modelSelector, "organs")
    choose(window.ui.deviceSelector, "cpu")
    window.ui.mirrorCheckBox.click()
    window.ui.tableCheckBox.click()
    region = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "region")
    window.ui.roiSelector.setCurrentNode(region)
    node = Parameters.parameter_node()
    assert node.GetParameter("model") == "organs"
    assert node.GetNodeReference("Region") is region
    assert node.GetNodeReference("Input") is volume

    again = Window()
    again.until(lambda: again.ui.modelSelector.count > 0)
    assert again.ui.inputSelector.currentNode() is volume
    assert again.ui.roiSelector.currentNode() is region
    assert again.ui.modelSelector.currentText.startswith("organs")
    assert (again.ui.mirrorCheckBox.checked, again.ui.tableCheckBox.checked) == (True, False)
    again.widget.cleanup()

    slicer.mrmlScene.Clear(0)
    assert window.ui.mirrorCheckBox.checked, "the next scene begins with the last choice"
    assert window.ui.inputSelector.currentNode() is None
    node = Parameters.parameter_node()
    node.SetParameter("mirror", "perhaps")
    assert Parameters.load(window.widget.settings)[0].mirror, "nonsense is left out"


@pytest.mark.slow
def test_surfaces_and_no_table_if_so_chosen(window: Window):
    window.ready(add_volume(noise((6, 33, 32))))
    choose(window.ui.modelSelector, "organs")
    window.ui.tableCheckBox.click()
    window.ui.show3DCheckBox.click()
    window.click(window.ui.applyButton)
    window.until(lambda: not window.running)
    (node,) = slicer.util.getNodesByClass(SEGMENTATIONS)
    assert node.GetSegmentation().ContainsRepresentation("Closed surface")
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLTableNode") == 0
    window.ui.show3DCheckBox.click()
    assert not node.GetDisplayNode().GetVisibility3D()
    window.ui.show3DCheckBox.click()
    assert node.GetDisplayNode().GetVisibility3D()
    slicer.mrmlScene.RemoveNode(node)
    window.ui.show3DCheckBox.click()  # there is nothing to show any more
    assert window.widget._result is None


def test_engine_is_adopted_and_forgotten(
    scene: Any, worker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("TTTUNET_PYTHON")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    asked: list[str] = []
    monkeypatch.setattr(
        slicer.util, "confirmOkCancelDisplay", lambda text: asked.append(text), raising=False
    )
    window = Window()
    ui = window.ui
    assert ui.engineButton.collapsed
    window.until(lambda: "not installed" in ui.environmentLabel.text)
    assert not ui.engineButton.collapsed
    add_volume(noise((4, 32, 32)))
    assert not ui.applyButton.enabled

    window.click(ui.installButton)
    window.until(lambda: bool(asked))
    assert "Slicer's own Python is not changed" in asked[0]
    assert [*tmp_path.iterdir()] == [], "the user did not agree"

    ui.wheelsPath.currentPath = str(tmp_path)
    window.click(ui.installButton)
    window.until(lambda: "no wheels" in window.status)
    ui.pythonPath.currentPath = str(tmp_path / "nothing")
    window.click(ui.adoptButton)
    window.until(lambda: "does not exist" in ui.environmentLabel.text)
    ui.pythonPath.currentPath = worker
    window.click(ui.adoptButton)
    window.until(lambda: ui.modelSelector.count > 0)
    assert worker in ui.environmentLabel.text
    window.until(lambda: not gc.isenabled())

    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text: True)
    window.click(ui.removeButton)
    window.until(lambda: "not installed" in ui.environmentLabel.text)
    assert not ui.applyButton.enabled
    window.until(gc.isenabled)
    window.widget.cleanup()


def test_engine_that_is_closed_while_models_are_read_stays_closed(window: Window):
    logic = window.widget.logic
    window.until(lambda: logic.connected)
    assert window.ui.modelSelector.count == 0
    window.widget._disconnect()
    window.until(lambda: not any(t.name == "tttunet-close" for t in threading.enumerate()))
    end = time.monotonic() + 0.5
    window.until(lambda: time.monotonic() > end)
    assert not logic.connected
    assert window.ui.modelSelector.count == 0


@pytest.mark.slow
def test_installation_that_fails_leaves_the_engine_connected(
    window: Window, worker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    window.ready(add_volume(noise((4, 32, 32))))
    choose(window.ui.modelSelector, "organs")
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text: True, raising=False)
    window.widget.installer.root = tmp_path / "root"
    (tmp_path / "other-1.0-py3-none-any.whl").write_bytes(b"")
    window.ui.wheelsPath.currentPath = str(tmp_path)
    window.click(window.ui.installButton)
    window.until(lambda: "installation failed" in window.status)
    assert worker in window.ui.environmentLabel.text
    window.click(window.ui.applyButton)
    window.until(lambda: not window.running)
    assert "segments in" in window.status


@pytest.mark.slow
def test_reload_in_the_middle_ends_the_worker_and_reads_the_library_again(scene: Any):
    import sys

    window = Window()
    window.ready(add_volume(noise((60, 160, 160))))
    choose(window.ui.modelSelector, "organs")
    window.click(window.ui.applyButton)
    window.until(lambda: window.ui.progressBar.value > 0)
    engine = window.widget.logic.client.engine
    kept = {name: m for name, m in sys.modules.items() if name.startswith("TTTUNetLib")}
    window.widget.onReload()
    assert window.widget.reloaded
    assert not [name for name in sys.modules if name.startswith("TTTUNetLib")]
    assert "_Packages" not in [type(finder).__name__ for finder in sys.meta_path]
    sys.modules.update(kept)
    window.widget.cleanup()
    window.until(lambda: engine.worker_pid is None)
    assert slicer.mrmlScene.GetNumberOfNodesByClass(SEGMENTATIONS) == 0
    slicer.mrmlScene.Clear(0)
    QtWidgets.QApplication.processEvents()
