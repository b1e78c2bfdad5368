"""Small widgets that the docks share; Qt only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QObject, QSize, Qt, QTimer, Signal
from qtpy.QtWidgets import (
    QDoubleSpinBox,
    QFrame,
    QHBoxLayout,
    QLabel,
    QPlainTextEdit,
    QProgressBar,
    QScrollArea,
    QSizePolicy,
    QSlider,
    QSpinBox,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

_COLOURS = {"error": "#d9534f", "warning": "#e0a030", "info": "#5b8fc7"}
_STEPS = 1000
#: Milliseconds between two changes of the bar in napari's activity dock.
_ACTIVITY_EVERY = 200


def duration(seconds: float) -> str:
    """`9 s`, `3 min 20 s` or `2 h 5 min`."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s" if seconds >= 1 else "less than 1 s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def memory(size: float) -> str:
    """`40 MB` or `1.5 GB`."""
    return f"{size / 1e9:.1f} GB" if size >= 0.95e9 else f"{max(size / 1e6, 1):.0f} MB"


def explain(widget: QWidget, name: str, tooltip: str) -> Any:
    """Gives a control its name (for tests and screen readers) and its tooltip; returns it."""
    widget.setObjectName(name)
    widget.setToolTip(tooltip)
    if not widget.accessibleName():
        widget.setAccessibleName(name.replace("_", " "))
    return widget


class Scrolling(QScrollArea):
    """Shows a tall widget on a small screen; never scrolls sideways."""

    def __init__(self, content: QWidget, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._content = content
        self.setWidget(content)

    def minimumSizeHint(self) -> QSize:  # noqa: N802
        return QSize(min(self._content.minimumSizeHint().width() + 16, 320), 120)

    def sizeHint(self) -> QSize:  # noqa: N802
        hint = self._content.sizeHint()
        return QSize(max(hint.width() + 16, 300), hint.height() + 4)


class FoldingSection(QWidget):
    """A title that shows or hides what is below it.

    Attributes:
        toggled: the user opened (True) or closed it.
    """

    toggled = Signal(bool)

    def __init__(self, title: str, content: QWidget, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.content = content
        self.button = QToolButton()
        self.button.setText(title)
        self.button.setCheckable(True)
        self.button.setAutoRaise(True)
        self.button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.button.setStyleSheet("QToolButton { border: none; text-align: left; }")
        self.button.toggled.connect(self._show)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addWidget(self.button)
        layout.addWidget(content)
        self._show(False)

    def open(self, opened: bool = True) -> None:
        self.button.setChecked(opened)

    def _show(self, opened: bool) -> None:
        arrow = Qt.ArrowType.DownArrow if opened else Qt.ArrowType.RightArrow
        self.button.setArrowType(arrow)
        self.content.setVisible(opened)
        self.toggled.emit(opened)


class MessageLabel(QFrame):
    """One sentence and a hint in a coloured border, with details on request; hidden when empty."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("message")
        self.label = QLabel()
        self.label.setObjectName("message_text")
        self.label.setWordWrap(True)
        self.label.setTextFormat(Qt.TextFormat.PlainText)
        self.label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.more = QToolButton()
        self.more.setText("Details")
        self.more.setObjectName("message_details")
        self.more.setToolTip("Show what to send with a report of this problem")
        self.more.setCheckable(True)
        self.details = QPlainTextEdit()
        self.details.setReadOnly(True)
        self.details.setMaximumHeight(140)
        self.more.toggled.connect(self.details.setVisible)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(6, 4, 6, 4)
        for widget in (self.label, self.more, self.details):
            layout.addWidget(widget)
        self.kind = ""
        self.clear()

    @property
    def text(self) -> str:
        """What is shown; empty if nothing is."""
        return self.label.text() if self.kind else ""

    def clear(self) -> None:
        self.kind = ""
        self.label.clear()
        self.hide()

    def tell(self, kind: str, message: str, hint: str = "", details: str = "") -> None:
        """Show a message.

        Args:
            kind: `error`, `warning` or `info`.
            message: one sentence.
            hint: what to do.
            details: a traceback or the like.
        """
        self.kind = kind
        self.label.setText(f"{message} {hint}".strip())
        self.setStyleSheet(
            f"#message {{ border: 1px solid {_COLOURS[kind]}; border-radius: 3px; }}"
        )
        self.details.setPlainText(details)
        self.more.setVisible(bool(details))
        self.more.setChecked(False)
        self.details.setVisible(False)
        self.show()


class ProgressLine(QWidget):
    """A bar, the stage and the time left; hidden when nothing runs."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.bar = QProgressBar()
        self.bar.setObjectName("progress_bar")
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(10)
        self.label = QLabel()
        self.label.setObjectName("progress_text")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addWidget(self.bar)
        layout.addWidget(self.label)
        self.hide()

    def report(self, stage: str, fraction: float = 0.0, eta: float | None = None) -> None:
        """A stage of unknown length has the fraction 0."""
        self.bar.setRange(0, 100 if fraction > 0 else 0)
        self.bar.setValue(round(100 * fraction))
        text = stage[:1].upper() + stage[1:]
        if fraction > 0:
            text += f": {fraction:.0%}"
        if eta is not None and fraction < 1:
            text += f", {duration(eta)} left"
        self.label.setText(text)
        self.show()

    def finish(self) -> None:
        self.label.clear()
        self.hide()


class ActivityBar(QObject):
    """A bar in napari's activity dock, while it is open.

    napari handles all waiting events whenever such a bar changes. In the middle of something (a
    layer that is being removed, an event of the engine) that would draw what is half done, so
    changes wait until nothing else is under way.
    """

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._bar: Any = None
        self._wanted: tuple[str, int] | None = None
        self._drawing = False
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_ACTIVITY_EVERY)
        self._timer.timeout.connect(self._draw)

    def report(self, text: str, fraction: float) -> None:
        """Show what is under way; the first call opens the bar."""
        self._wanted = text, round(100 * fraction)
        if not self._timer.isActive():
            self._timer.start()

    def close(self) -> None:
        """Remove the bar."""
        self._wanted = None
        if not self._drawing:
            self._remove()

    def _draw(self) -> None:
        from napari.utils import progress

        if self._drawing or self._wanted is None:
            return
        self._drawing = True
        try:
            text, percent = self._wanted
            if self._bar is None:
                self._bar = progress(total=100, desc=text)
            elif self._bar.desc.removesuffix(": ") != text:
                self._bar.set_description(text)
            if percent > self._bar.n:
                self._bar.update(percent - self._bar.n)
        finally:
            self._drawing = False
        if self._wanted is None:  # it was closed meanwhile
            self._remove()

    def _remove(self) -> None:
        from napari.utils import progress

        bar, self._bar = self._bar, None
        if bar is not None and bar in progress._all_instances:  # else napari closed it
            bar.close()


class NumberSlider(QWidget):
    """A slider with the number beside it, to drag or to type.

    Args:
        low, high: of the slider; a whole number may be typed above `high`.
        whole: only whole numbers.

    Attributes:
        changed: the user changed the value.
    """

    changed = Signal()

    def __init__(
        self, low: float, high: float, whole: bool = False, parent: QWidget | None = None
    ) -> None:
        super().__init__(parent)
        self._low, self._high, self._whole = low, high, whole
        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.slider.setRange(0, int(high - low) if whole else _STEPS)
        self.box: Any = _whole_box(int(low)) if whole else _decimal_box(low, high)
        self.box.setKeyboardTracking(False)
        policy = QSizePolicy.Policy
        self.slider.setSizePolicy(policy.Expanding, policy.Fixed)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.slider)
        layout.addWidget(self.box)
        self.slider.valueChanged.connect(self._dragged)
        self.box.valueChanged.connect(self._typed)

    @property
    def value(self) -> float:
        return int(self.box.value()) if self._whole else round(float(self.box.value()), 2)

    def set(self, value: float) -> None:
        """Show a value without telling of it."""
        for widget in (self.slider, self.box):
            widget.blockSignals(True)
        self.box.setValue(int(value) if self._whole else float(value))
        self.slider.setValue(self._place(float(value)))
        for widget in (self.slider, self.box):
            widget.blockSignals(False)

    def _place(self, value: float) -> int:
        share = (min(value, self._high) - self._low) / (self._high - self._low)
        return round(share * self.slider.maximum())

    def _dragged(self, place: int) -> None:
        value = self._low + (self._high - self._low) * place / self.slider.maximum()
        self.box.blockSignals(True)
        self.box.setValue(round(value) if self._whole else value)
        self.box.blockSignals(False)
        self.changed.emit()

    def _typed(self, value: float) -> None:
        self.slider.blockSignals(True)
        self.slider.setValue(self._place(float(value)))
        self.slider.blockSignals(False)
        self.changed.emit()


def _whole_box(low: int) -> QSpinBox:
    box = QSpinBox()
    box.setRange(low, 10_000_000)
    return box


def _decimal_box(low: float, high: float) -> QDoubleSpinBox:
    box = QDoubleSpinBox()
    box.setRange(low, high)
    box.setDecimals(2)
    box.setSingleStep(0.01)
    return box


class Cleanup:
    """What must be undone when a widget goes, whoever destroys it.

    Args:
        widget: its `destroyed` calls everything; nothing here refers to the widget.
    """

    def __init__(self, widget: QWidget) -> None:
        self._calls: list[Callable[[], object]] = []
        widget.destroyed.connect(lambda *_: self.close())

    def add(self, call: Callable[[], object]) -> None:
        self._calls.append(call)

    def connect(self, emitter: Any, callback: Callable[..., Any]) -> None:
        """Connect to an event of napari, until the widget goes."""
        emitter.connect(callback)
        self.add(lambda: emitter.disconnect(callback))

    def close(self) -> None:
        """Undo all, in the reverse order; a second call does nothing."""
        while self._calls:
            self._calls.pop()()


def in_background(
    work: Callable[[], Any], then: Callable[[Any], None], failed: Callable[[Exception], None]
) -> None:
    """Do something in a thread; `then` and `failed` are methods of QObjects, called in theirs."""
    from napari.qt.threading import create_worker

    create_worker(work, _connect={"returned": then, "errored": failed})
