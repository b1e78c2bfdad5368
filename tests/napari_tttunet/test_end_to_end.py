"""A person at the window: a sample, the dock, Segment, accept, save, correct, by mouse and keys."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QRadioButton, QWidget

from napari_tttunet.keys import KEYS
from tttunet.imaging import load_labels

SAMPLES = Path(__file__).resolve().parents[2] / "resources" / "samples"
PLUGIN, SAMPLE = "napari-tttunet", "fluorescence_crowded"
PATIENCE = 240_000

pytestmark = pytest.mark.usefixtures("one_engine", "own_settings")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The labels that the command line finds in the same image."""
    folder = tmp_path_factory.mktemp("command")
    command = [sys.executable, "-m", "tttunet", "segment", str(SAMPLES / f"{SAMPLE}.png")]
    subprocess.run([*command, "--output", f"{folder}/"], check=True, capture_output=True)
    return load_labels(folder / f"{SAMPLE}_labels.ome.tif").array


class Window:
    """The viewer with the sample and the dock, opened as napari's menus open them."""

    def __init__(self, viewer: Any, qtbot: Any) -> None:
        self.viewer, self.qtbot = viewer, qtbot
        viewer.window.resize(1200, 800)
        viewer.open_sample(PLUGIN, SAMPLE)
        _, self.dock = viewer.window.add_plugin_dock_widget(PLUGIN, "Segment")
        self.canvas = viewer.window._qt_viewer.canvas.native
        self.until(lambda: self.button("segment").isEnabled())
        # The message about memory and time moves the buttons below it.
        self.until(lambda: "Needs about" in self.dock.view.need.text())
        viewer.reset_view()
        qtbot.wait(200)

    def button(self, name: str) -> Any:
        return self.dock.findChild(QWidget, name)

    def until(self, condition: Callable[[], bool]) -> None:
        self.qtbot.waitUntil(condition, timeout=PATIENCE)

    def press(self, name: str) -> None:
        """A key of ours on the canvas, as `keys` names it."""
        *modifiers, letter = KEYS[name].split("-")
        shift = Qt.KeyboardModifier.ShiftModifier
        held = shift if modifiers else Qt.KeyboardModifier.NoModifier
        self.qtbot.keyClick(self.canvas, letter, held)

    def at(self, layer: Any, pixel: tuple[int, ...]) -> QPoint:
        """Where the canvas shows a pixel."""
        camera = getattr(self.viewer, "scene", self.viewer).camera
        world = np.array(layer.data_to_world(pixel))[-2:] - np.array(camera.center)[-2:]
        middle = np.array([self.canvas.height(), self.canvas.width()]) / 2
        down, right = world * camera.zoom + middle
        return QPoint(round(right), round(down))

    def found(self) -> Any:
        self.until(lambda: not self.dock.run.running and self.dock.run.can_decode)
        return self.dock.labels


@pytest.fixture
def window(viewer: Any, qtbot: Any) -> Window:
    return Window(viewer, qtbot)


def objects(labels: np.ndarray) -> int:
    return len(np.unique(labels)) - 1


def middle_of_a_lone_object(labels: np.ndarray) -> tuple[int, int]:
    """The middle pixel of the object that is nearest to the middle of the image."""
    centre = np.array(labels.shape) / 2
    places = np.argwhere(labels)
    nearest = places[((places - centre) ** 2).sum(axis=1).argmin()]
    own = np.argwhere(labels == labels[tuple(nearest)])
    row, column = own[((own - own.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return int(row), int(column)


def test_sample_segment_accept_save_remove_undo(
    window: Window, expected: np.ndarray, tmp_path: Path
) -> None:
    viewer, qtbot = window.viewer, window.qtbot
    qtbot.mouseClick(window.button("segment"), Qt.MouseButton.LeftButton)
    labels = window.found()
    assert labels in viewer.layers
    assert objects(labels.data) == objects(expected) > 50
    np.testing.assert_array_equal(labels.data, expected)
    assert f"{objects(expected)} objects" in window.dock.view.result.text()

    name = labels.name
    window.press("accept")
    assert labels.metadata["tttunet"]["accepted"]
    assert labels.name == f"{name} \N{CHECK MARK}"
    assert window.button("accept").text() == "Accepted"

    for suffix, reader in ((".ome.tif", "napari"), (".nii.gz", PLUGIN)):
        viewer.layers.selection.active = labels
        path = str(tmp_path / f"cells_labels{suffix}")
        assert viewer.layers.save(path, selected=True, plugin=PLUGIN) == [path]
        (back,) = viewer.open(path, plugin=reader, layer_type="labels")
        np.testing.assert_array_equal(np.squeeze(back.data), labels.data)
        viewer.layers.remove(back)

    viewer.layers.selection.active = labels
    before, pixel = labels.data.copy(), middle_of_a_lone_object(labels.data)
    number = before[pixel]
    controls = viewer.window._qt_window.findChildren(QRadioButton)
    fill = next(b for b in controls if b.property("mode") == "fill" and b.isVisible())
    qtbot.mouseClick(fill, Qt.MouseButton.LeftButton)
    assert labels.mode == "fill"
    qtbot.keyClick(window.canvas, "X")  # napari's key that chooses the background
    assert labels.selected_label == 0
    qtbot.mouseMove(window.canvas, window.at(labels, pixel))
    qtbot.mouseClick(window.canvas, Qt.MouseButton.LeftButton, pos=window.at(labels, pixel))
    np.testing.assert_array_equal(labels.data, np.where(before == number, 0, before))
    qtbot.keyClick(window.canvas, "Z", Qt.KeyboardModifier.ControlModifier)
    np.testing.assert_array_equal(labels.data, before)

    window.press("toggle_labels")
    assert not labels.visible
    window.press("toggle_labels")
    assert labels.visible


def camera(viewer: Any) -> Any:
    return getattr(viewer, "scene", viewer).camera


def test_next_and_previous_object_by_key(window: Window) -> None:
    window.qtbot.mouseClick(window.button("segment"), Qt.MouseButton.LeftButton)
    window.found()
    seen = []
    for key in ("next_object", "next_object", "previous_object"):
        text = window.dock.view.result.text()
        window.press(key)
        window.until(lambda text=text: window.dock.view.result.text() != text)
        seen.append((window.dock.view.result.text(), tuple(camera(window.viewer).center)))
    assert seen[0] == seen[2]
    assert seen[0][1] != seen[1][1]
    assert "1 of" in seen[0][0]
    assert "the most doubtful first" in seen[0][0]


def test_a_second_run_replaces_the_labels_of_the_first(window: Window) -> None:
    window.viewer.layers.selection.active = window.viewer.layers[SAMPLE]
    for _ in range(2):
        window.qtbot.mouseClick(window.button("segment"), Qt.MouseButton.LeftButton)
        window.until(lambda: window.dock.run.running)
        window.found()
    assert [layer.name for layer in window.viewer.layers] == [
        SAMPLE,
        f"{SAMPLE}: true labels",
        f"{SAMPLE}: nuclei",
    ]


@functools.cache
def no_real_input() -> str:
    if sys.platform != "linux" or not shutil.which("xdotool"):
        return "xdotool is not installed: sudo apt-get install xdotool"
    return ""


@pytest.mark.skipif(bool(no_real_input()), reason=no_real_input())
def test_with_the_mouse_and_keyboard_of_the_x_server(window: Window, expected: np.ndarray) -> None:
    def xdotool(*words: object) -> None:
        subprocess.run(["xdotool", *map(str, words)], check=True, timeout=20)

    def click(widget: Any, at: QPoint) -> None:
        place = widget.mapToGlobal(at)
        xdotool("mousemove", place.x(), place.y(), "click", 1)

    main = window.viewer.window._qt_window
    xdotool("windowfocus", int(main.winId()))
    segment = window.button("segment")
    click(segment, segment.rect().center())
    window.until(lambda: window.dock.run.can_decode or window.dock.run.running)
    labels = window.found()
    assert objects(labels.data) == objects(expected)
    click(window.canvas, window.canvas.rect().center())
    window.until(window.canvas.hasFocus)
    for visible in (False, True):
        xdotool("key", KEYS["toggle_labels"].lower())
        window.until(lambda visible=visible: labels.visible is visible)
    xdotool("key", KEYS["accept"].lower())
    window.until(lambda: labels.metadata["tttunet"]["accepted"])
