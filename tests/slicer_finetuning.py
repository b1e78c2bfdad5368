"""Corrections to learn from, and a training in the module's window; never beside napari."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import slicer

from slicer_nodes import add_volume, noise
from slicer_window import Window, choose
from TTTUNetLib import Results


def bright_cube(seed: int) -> np.ndarray:
    array = noise((20, 36, 36), seed) // 4
    array[6:14, 10:26, 10:26] += 400
    return array


def add_corrected(seed: int, names: tuple[str, ...] = ("liver",)) -> tuple[Any, Any]:
    """A volume and a segmentation of it that is right."""
    volume = add_volume(bright_cube(seed), "oblique", f"CT{seed}")
    classes = [{"value": value, "name": name} for value, name in enumerate(names, 1)]
    labels = (slicer.util.arrayFromVolume(volume) > 200).astype(np.uint8)
    wanted = Results.segment_labels(range(1, len(names) + 1), classes, "semantic")
    return volume, Results.create_segmentation(volume, labels, wanted, f"CT{seed} corrected")


def everything() -> Any:
    region = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "everything")
    region.SetSize(500, 500, 500)
    return region


def open_project(window: Window, folder: Path) -> None:
    window.until(lambda: window.ui.modelSelector.count > 0)
    choose(window.ui.modelSelector, "organs")
    window.ui.projectPath.currentPath = str(folder)
    window.click(window.ui.projectButton)
    window.until(lambda: window.ui.projectLabel.text != "")


def save(window: Window, segmentation: Any) -> None:
    window.ui.segmentationSelector.setCurrentNode(segmentation)
    window.click(window.ui.saveButton)
    window.until(lambda: not window.widget.panel.busy)


def prepare(window: Window, folder: Path) -> list[Any]:
    """An open project with three volumes that are right everywhere."""
    pairs = [add_corrected(seed) for seed in range(3)]
    window.ui.segmentationSelector.setCurrentNode(pairs[0][1])
    open_project(window, folder)
    window.ui.completeSelector.setCurrentNode(everything())
    for _, segmentation in pairs:
        save(window, segmentation)
    assert window.ui.imageSelector.count == 3
    choose(window.ui.startSelector, "organs")
    return [volume for volume, _ in pairs]


def begin(window: Window, points: int = 1) -> Any:
    """A training with some points of its curve."""
    window.click(window.ui.finetuneButton)
    window.until(lambda: window.widget.panel.task is not None)
    task = window.widget.panel.task
    table = task.tableNode
    window.until(lambda: table.GetNumberOfRows() >= points or task.finished)
    assert task.state == "running", task.error
    return task


def told(window: Window) -> str:
    return str(window.ui.finetuneLabel.text)
