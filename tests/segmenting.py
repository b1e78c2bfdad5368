"""The Segment dock as a person uses it, for tests: by its controls."""

from __future__ import annotations

from typing import Any

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QWidget

from napari_tttunet import sample_data
from napari_tttunet.geometry import Transform

#: Milliseconds; longer than anything takes, on a busy machine too.
PATIENCE = 240_000


class Dock:
    """A Segment dock in a viewer."""

    def __init__(self, viewer: Any, qtbot: Any) -> None:
        from napari_tttunet.segment_dock import SegmentDock

        self.viewer, self.qtbot = viewer, qtbot
        self.widget = SegmentDock(viewer)
        viewer.window.add_dock_widget(self.widget, name="Segment")

    def find(self, name: str) -> Any:
        found = self.widget.findChild(QWidget, name)
        assert found is not None, name
        return found

    def click(self, name: str) -> None:
        button = self.find(name)
        assert button.isVisible(), name
        assert button.isEnabled(), name
        self.qtbot.mouseClick(button, Qt.MouseButton.LeftButton)

    def choose(self, name: str, value: Any) -> None:
        combo = self.find(name)
        index = combo.findData(value)
        assert index >= 0, value
        combo.setCurrentIndex(index)
        combo.activated.emit(index)

    def until(self, condition: Any) -> None:
        self.qtbot.waitUntil(condition, timeout=PATIENCE)

    def ready(self) -> None:
        self.until(lambda: self.find("segment").isEnabled())

    def message(self) -> str:
        return self.find("message").text

    def start(self) -> None:
        self.ready()
        self.click("segment")
        assert self.widget.run.running, self.message()

    def segment(self) -> Any:
        self.start()
        self.until(lambda: not self.widget.run.running)
        return self.labels()

    def labels(self) -> Any:
        return self.widget.labels

    def names(self) -> list[str]:
        return [layer.name for layer in self.viewer.layers]


def add_sample(viewer: Any, sample: str = "fluorescence", size: int = 128, **arguments: Any) -> Any:
    """A corner of a sample image as a layer."""
    data, given, _ = getattr(sample_data, sample)()[0]
    given = {**given, "metadata": {}, **arguments}
    given.pop("axis_labels", None)
    return viewer.add_image(data[:size, :size], **given)


def same_place(labels: Any, image: Any) -> None:
    np.testing.assert_array_equal(Transform.of(labels).matrix, Transform.of(image).matrix)
    assert tuple(labels.units) == tuple(image.units)
