"""The module's window under the stand-in, operated as a person does; never beside napari."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from PySide6 import QtCore, QtTest, QtWidgets

import slicer_standin

slicer_standin.install()

#: Seconds; a busy machine starts a worker slowly.
PATIENCE = 300.0


class Window:
    """The module's widget, operated as a person does."""

    def __init__(self) -> None:
        from TTTUNetLib.Widget import TTTUNetWidget

        self.parent = QtWidgets.QWidget()
        QtWidgets.QVBoxLayout(self.parent)
        self.widget = TTTUNetWidget(self.parent)
        self.widget.setup()
        self.parent.show()
        self.ui = self.widget.ui

    def until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, self.ui.statusLabel.text
            QtWidgets.QApplication.processEvents()
            time.sleep(0.005)

    def click(self, button: Any) -> None:
        assert button.enabled
        QtTest.QTest.mouseClick(button, QtCore.Qt.MouseButton.LeftButton)

    def ready(self, volume: Any) -> None:
        self.ui.inputSelector.setCurrentNode(volume)
        self.until(lambda: self.ui.applyButton.enabled)

    @property
    def running(self) -> bool:
        return self.widget.task is not None

    @property
    def status(self) -> str:
        return str(self.ui.statusLabel.text)


def choose(combo: Any, value: str) -> None:
    index = combo.findData(value)
    assert index >= 0, value
    combo.currentIndex = index
