"""The Fine-tune dock as a person uses it, for tests: by its controls, keys and the mouse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QWidget

from napari_tttunet import sample_data
from napari_tttunet.keys import FINETUNE_KEYS
from tttunet.projects import Project, Region, vouch_object

#: Milliseconds; longer than anything takes, on a busy machine too.
PATIENCE = 240_000


def make_project(folder: Path, size: int = 128, width: int = 80, objects: int = 0) -> Path:
    """A project with a corner of a sample image, whose left side is complete.

    Args:
        folder: in which the project's folder `cells` is made.
        size: of the corner, in pixels.
        width: of the complete side.
        objects: mark so many objects as checked instead; 0: the side is complete.
    """
    (data, _, _), (truth, _, _) = sample_data.fluorescence()
    data, truth = data[:size, :size], truth[:size, :size].astype(np.int32)
    with Project.create(folder / "cells", model="nuclei", classes={1: "nucleus"}) as project:
        corrections = project.corrections(project.add_image(data, axes="YX", name="fluorescence"))
        if not objects:
            corrections.complete(Region(((0, size), (0, width))), truth[:, :width])
        else:
            vouched = np.zeros(truth.shape, np.uint8)
            counts = np.bincount(truth.ravel())
            counts[0] = 0
            for number in np.argsort(-counts)[:objects]:
                vouched = vouch_object(truth, vouched, int(number))
            labels = np.where(vouched, truth, 0)
            corrections.write(((0, size), (0, size)), labels, vouched)
    return folder / "cells"


class Tuning:
    """A Fine-tune dock in a viewer."""

    def __init__(self, viewer: Any, qtbot: Any) -> None:
        from napari_tttunet.finetune_dock import FinetuneDock

        self.viewer, self.qtbot = viewer, qtbot
        self.dock = FinetuneDock(viewer)
        viewer.window.resize(1300, 900)
        viewer.window.add_dock_widget(self.dock, name="Fine-tune")
        self.canvas = viewer.window._qt_viewer.canvas.native
        self.until(lambda: bool(self.dock.models))

    def find(self, name: str) -> Any:
        found = self.dock.findChild(QWidget, name)
        assert found is not None, name
        return found

    def click(self, name: str) -> None:
        button = self.find(name)
        assert button.isVisible(), name
        self.until(button.isEnabled)
        self.qtbot.mouseClick(button, Qt.MouseButton.LeftButton)

    def until(self, condition: Callable[[], bool]) -> None:
        try:
            self.qtbot.waitUntil(condition, timeout=PATIENCE)
        except self.qtbot.TimeoutError as error:
            said = f"{self.used} / {self.dock.view.progress.text} / {self.message}"
            raise AssertionError(f"Waited in vain; the dock says: {said}") from error

    @property
    def message(self) -> str:
        return self.dock.view.message.text

    @property
    def used(self) -> str:
        return self.dock.view.used.text()

    def at(self, layer: Any, pixel: tuple[float, ...]) -> QPoint:
        """Where the canvas shows a pixel."""
        camera = getattr(self.viewer, "scene", self.viewer).camera
        world = np.array(layer.data_to_world(pixel))[-2:] - np.array(camera.center)[-2:]
        middle = np.array([self.canvas.height(), self.canvas.width()]) / 2
        down, right = world * camera.zoom + middle
        return QPoint(round(right), round(down))

    def drag(self, layer: Any, *pixels: tuple[float, ...]) -> None:
        """Press the mouse on a pixel, draw a line through others, and let go."""
        points = [self.at(layer, pixel) for pixel in pixels]
        left = Qt.MouseButton.LeftButton
        self.qtbot.mouseMove(self.canvas, points[0])
        self.qtbot.mousePress(self.canvas, left, pos=points[0])
        for point in points[1:]:
            self.qtbot.mouseMove(self.canvas, point)
            self.qtbot.wait(20)
        self.qtbot.mouseRelease(self.canvas, left, pos=points[-1])
        self.qtbot.wait(50)

    def press(self, name: str, layer: Any = None, pixel: tuple[float, ...] = ()) -> None:
        """A key of ours, with the mouse at a pixel."""
        if layer is not None:
            self.qtbot.mouseMove(self.canvas, self.at(layer, pixel))
            self.qtbot.wait(30)
        *modifiers, letter = FINETUNE_KEYS[name].split("-")
        shift = Qt.KeyboardModifier.ShiftModifier
        held = shift if modifiers else Qt.KeyboardModifier.NoModifier
        self.qtbot.keyClick(self.canvas, letter, held)

    def type_in(self, name: str, text: str) -> None:
        field = self.find(name)
        field.clear()
        self.qtbot.keyClicks(field, text)

    def choose(self, name: str, value: Any) -> None:
        combo = self.find(name)
        place = combo.findData(value)
        assert place >= 0, value
        combo.setCurrentIndex(place)

    def new_project(
        self, folder: Path, name: str = "cells", task: str = "", classes: str = ""
    ) -> Path:
        """Make a project by the form; without `task` and `classes`, as it proposes."""
        self.click("new_project")
        if task:
            self.choose("project_task", task)
        if classes:
            self.type_in("project_classes", classes)
        self.type_in("project_name", name)
        self.type_in("project_parent", str(folder))
        self.click("project_create")
        self.until(lambda: self.dock.work.project is not None)
        self.until(lambda: self.find("project").currentText() == name)
        return folder / name

    def open_project(self, folder: Path) -> Any:
        """Open a project that has an image; its labels."""
        self.dock.open_project(folder)
        self.until(lambda: self.dock.work.annotation is not None)
        self.until(lambda: self.find("finetune").isEnabled())
        self.qtbot.wait(50)
        self.viewer.reset_view()
        self.qtbot.wait(100)
        return self.dock.work.annotation.layer

    def saved(self) -> None:
        """Wait until everything is on the disk."""
        work = self.dock.work
        self.until(lambda: work._saver is not None and not work._saver.pending)

    def tiny_budget(self, steps: int = 4) -> None:
        """Some steps only, of the last layer."""
        if not self.find("steps").isVisible():
            self.click("expert_button")
        self.find("steps").setValue(steps)
        parts = self.find("parts")
        parts.setCurrentIndex(parts.findData("head"))
        self.find("learning_rate").setText("0.0003")
        self.find("replay").setChecked(False)

    def finished(self) -> None:
        """Wait for the end of a fine-tuning."""
        decision, message = self.dock.decision, self.dock.view.message
        self.until(lambda: decision.run is not None or message.kind == "error")
        assert message.kind != "error", self.message
