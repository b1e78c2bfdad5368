"""The Results dock as a person uses it, for tests: by its controls."""

from __future__ import annotations

from typing import Any

from napari.layers import Layer
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QWidget

from napari_tttunet.results_dock import ResultsDock

#: Milliseconds; longer than anything takes, on a busy machine too.
PATIENCE = 240_000


def opened(viewer: Any) -> ResultsDock:
    dock = ResultsDock(viewer)
    viewer.window.add_dock_widget(dock, name="Results")
    return dock


def find(dock: QWidget, name: str) -> Any:
    found = dock.findChild(QWidget, name)
    assert found is not None, name
    return found


def click(qtbot: Any, dock: QWidget, name: str) -> None:
    button = find(dock, name)
    assert button.isEnabled(), name
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def open_sample(viewer: Any, sample: Any) -> tuple[Any, Any]:
    image, labels = (Layer.create(*one) for one in sample())
    labels.visible = True
    viewer.add_layer(image)
    viewer.add_layer(labels)
    return image, labels


def measured(qtbot: Any, dock: ResultsDock) -> Any:
    qtbot.waitUntil(lambda: dock.table is not None and not dock.busy, timeout=PATIENCE)
    return dock.table
