"""The Segment dock in a real viewer, with a real worker and the shipped model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QWidget

from napari_tttunet import sample_data
from napari_tttunet.geometry import Transform

PATIENCE = 60_000


@pytest.fixture(scope="module", autouse=True)
def _one_engine(qapp: Any) -> Any:
    """The worker stays warm for all tests of this file, and keeps to one core."""
    from napari_tttunet.session import close_session

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
        close_session()


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TTTUNET_SETTINGS", str(tmp_path / "settings.json"))


class Dock:
    """A Segment dock as a person uses it: by its controls."""

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


@pytest.fixture
def dock(viewer: Any, qtbot: Any) -> Dock:
    return Dock(viewer, qtbot)


def add_sample(viewer: Any, name: str = "fluorescence", size: int = 128, **arguments: Any) -> Any:
    """A corner of a sample image as a layer."""
    data, given, _ = getattr(sample_data, name)()[0]
    given = {**given, "metadata": {}, **arguments}
    given.pop("axis_labels", None)
    return viewer.add_image(data[:size, :size], **given)


def same_place(labels: Any, image: Any) -> None:
    np.testing.assert_array_equal(Transform.of(labels).matrix, Transform.of(image).matrix)
    assert tuple(labels.units) == tuple(image.units)


def test_open_sample_press_segment(viewer: Any, dock: Dock) -> None:
    assert "Open an image" in dock.find("need").text()
    assert not dock.find("segment").isEnabled()
    image = viewer.open_sample("napari-tttunet", "fluorescence")[0]
    image.scale, image.translate, image.rotate = (0.5, 0.25), (3, 4), 30
    viewer.layers.selection.active = image
    dock.until(lambda: "Needs about" in dock.find("need").text())
    labels = dock.segment()
    assert dock.message() == ""
    assert 25 <= len(np.unique(labels.data)) - 1 <= 45, "33 in truth"
    assert labels.data.shape == image.data.shape[:2]
    same_place(labels, image)
    record = labels.metadata["tttunet"]
    assert record["model"]["name"] == "nuclei"
    assert record["model"]["sha256"]
    assert {"tile", "device", "date", "decoding", "backend", "software"} <= set(record)
    assert record["count"] == labels.data.max()
    assert not any("preview" in name for name in dock.names())
    viewer.screenshot("/tmp/s3/shots/segment.png", canvas_only=False, flash=False)
