"""What the Batch and the Models dock are made of: errors, folded sections, work in the background.

Nothing here ever calls into a dock that is gone.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject, QSize, Qt, Signal
from qtpy.QtWidgets import (
    QFileDialog,
    QFrame,
    QLabel,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from tttunet.errors import TTTUNetError


class ErrorBox(QFrame):
    """One sentence and what to do about it, in a red border; details are folded away."""

    def __init__(self, name: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName(name)
        self.setStyleSheet(f"QFrame#{name} {{ border: 1px solid #d05050; border-radius: 3px; }}")
        self._text = wrapped_label("errorText")
        self._text.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._toggle = QToolButton()
        self._toggle.setText("Details")
        self._toggle.setObjectName("errorDetailsToggle")
        self._toggle.setCheckable(True)
        self._details = wrapped_label("errorDetails")
        self._details.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._toggle.toggled.connect(self._details.setVisible)
        layout = QVBoxLayout(self)
        for widget in (self._text, self._toggle, self._details):
            layout.addWidget(widget)
        self.hide()

    @property
    def text(self) -> str:
        """What is shown; empty if nothing is."""
        return "" if self.isHidden() else self._text.text()

    def show_error(self, message: str, hint: str = "", details: str = "") -> None:
        self._text.setText(f"{message} {plain_hint(hint)}".strip())
        self._details.setText(details)
        self._toggle.setChecked(False)
        self._details.hide()
        self._toggle.setVisible(bool(details))
        self.show()

    def show_exception(self, error: Exception) -> None:
        if isinstance(error, TTTUNetError):
            self.show_error(error.message, error.hint)
        else:
            self.show_error(f"Unexpected {type(error).__name__}: {error}")


class Fold(QWidget):
    """A section that is folded away until its title is clicked."""

    def __init__(self, title: str, content: QWidget, name: str) -> None:
        super().__init__()
        self.content = content
        self.toggle = QToolButton()
        self.toggle.setObjectName(name)
        self.toggle.setText(title)
        self.toggle.setCheckable(True)
        self.toggle.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.toggle.setAutoRaise(True)
        self.toggle.toggled.connect(self._fold)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.toggle)
        layout.addWidget(content)
        self._fold(False)

    def _fold(self, is_open: bool) -> None:
        arrow = Qt.ArrowType.DownArrow if is_open else Qt.ArrowType.RightArrow
        self.toggle.setArrowType(arrow)
        self.content.setVisible(is_open)


class Background(QObject):
    """Runs functions in threads and hands their results to the window's thread.

    Results for a dock that is gone are dropped.
    """

    _finished = Signal(object)

    def __init__(self, parent: QObject) -> None:
        super().__init__(parent)
        self._finished.connect(self._deliver, Qt.ConnectionType.QueuedConnection)

    def run(
        self,
        work: Callable[[], Any],
        then: Callable[[Any], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Call `work` in a thread, then `then(result)` or `failed(error)` in this one."""

        def do() -> None:
            try:
                answer = then, work()
            except Exception as error:
                answer = failed, error
            with contextlib.suppress(RuntimeError):  # the dock was closed meanwhile
                self._finished.emit(answer)

        threading.Thread(target=do, name="tttunet-dock", daemon=True).start()

    def _deliver(self, answer: tuple[Callable[[Any], None], Any]) -> None:
        function, value = answer
        function(value)


class Running:
    """The job of a dock: told to the dock while that exists, stopped when it goes.

    Args:
        dock: whose method `hear(event)` is called.
    """

    def __init__(self, dock: QWidget, hear: Callable[[Any], None]) -> None:
        self.job: Any = None
        alive = threading.Event()
        alive.set()
        method = weakref.WeakMethod(hear)

        def end(*_: object) -> None:
            alive.clear()
            if self.job is not None:
                self.job.cancel()

        def on_event(job: Any, event: Any) -> None:
            found = method()
            if alive.is_set() and found is not None and (self.job is None or job is self.job):
                found(event)

        dock.destroyed.connect(end)
        self.on_event = on_event

    @property
    def busy(self) -> bool:
        """Whether a job waits or runs; not any more once its last event is on its way."""
        return self.job is not None and self.job.outcome is None


def plain_hint(hint: str) -> str:
    """A hint of the command line in the words of a dock, which has no options that begin --."""
    if "--overwrite" in hint:
        return "Choose another name, or allow to replace it."
    if "--configuration" in hint:
        return hint.replace("with --configuration: ", "as the configuration: ")
    if "--fold" in hint:
        return "Choose the checkpoint file (.pth) in one of these folders."
    return hint.replace(" (--name)", "").replace("--output", "folder")


def wrapped_label(name: str, text: str = "") -> QLabel:
    """A plain text that needs no width of its own."""
    label = QLabel(text)
    label.setObjectName(name)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setWordWrap(True)
    label.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
    return label


def button(text: str, name: str, tip: str, clicked: Callable[[], None]) -> QPushButton:
    """A push button."""
    made = QPushButton(text)
    made.setObjectName(name)
    made.setToolTip(tip)
    made.clicked.connect(lambda *_: clicked())
    return made


def named(widget: Any, name: str, tip: str) -> Any:
    """Gives a widget its name (for tests and screen readers) and what it says under the mouse."""
    widget.setObjectName(name)
    widget.setAccessibleName(name.replace("_", " "))
    widget.setToolTip(tip)
    return widget


def scrolled(content: QWidget, dock: QWidget) -> None:
    """Fills a dock with something that may be higher than the screen."""

    class Area(QScrollArea):
        def minimumSizeHint(self) -> QSize:  # noqa: N802 (Qt's name)
            return QSize(280, 200)

        def sizeHint(self) -> QSize:  # noqa: N802
            return QSize(320, 600)

    area = Area()
    area.setWidgetResizable(True)
    area.setFrameShape(QFrame.Shape.NoFrame)
    area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    area.setWidget(content)
    layout = QVBoxLayout(dock)
    layout.setContentsMargins(0, 0, 0, 0)
    layout.addWidget(area)


def ask_for_path(
    dock: QWidget,
    title: str,
    chosen: Callable[[list[str]], None],
    *,
    folder: str = "",
    mode: QFileDialog.FileMode = QFileDialog.FileMode.ExistingFile,
    save_as: str = "",
    filters: str = "",
) -> QFileDialog:
    """Open a file dialog that blocks nothing; `chosen` hears the paths.

    Args:
        dock: the dialog's parent.
        folder: where it begins.
        mode: what can be chosen.
        save_as: proposed name of a new file; empty: existing ones are chosen.
        filters: as Qt writes them; the ending of the first is added to names without one.
    """
    dialog = QFileDialog(dock, title, folder)
    dialog.setObjectName("fileDialog")
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    if filters:
        dialog.setNameFilter(filters)
    if save_as:
        dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
        dialog.setFileMode(QFileDialog.FileMode.AnyFile)
        dialog.setDefaultSuffix(Path(save_as).suffix.lstrip("."))
        dialog.selectFile(save_as)
    else:
        dialog.setFileMode(mode)
    dialog.filesSelected.connect(lambda paths: chosen([str(Path(p)) for p in paths]))
    dialog.open()
    return dialog


def duration(seconds: float) -> str:
    """`8 s`, `2 min 5 s`, `1 h 10 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
