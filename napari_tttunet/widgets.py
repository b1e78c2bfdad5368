"""The parts that the docks are made of: labelled controls, folded sections, messages, progress.

Qt only; what docks do in the background is in `dock_work`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qtpy.QtCore import QSize, Qt
from qtpy.QtWidgets import (
    QComboBox,
    QFormLayout,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_tttunet.dock_work import delayed
from napari_tttunet.settings import Settings
from tttunet.errors import TTTUNetError

#: Per kind of message, the most serious first.
_COLOURS = {"error": "#d9534f", "warning": "#e0a030", "info": "#5b8fc7"}
#: Of a progress bar.
_STEPS = 1000
_POLICY = QSizePolicy.Policy


# Words


def duration(seconds: float) -> str:
    """`9 s`, `3 min 20 s` or `2 h 5 min`."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s" if seconds >= 1 else "less than 1 s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def roughly(seconds: float) -> str:
    """`about 9 s` or `less than 1 s`, on one line where the text around it is broken."""
    about = "about " if seconds >= 1 else ""
    return about + duration(seconds).replace(" ", "\N{NO-BREAK SPACE}")


def memory(size: float) -> str:
    """`40 MB` or `1.5 GB`."""
    return f"{size / 1e9:.1f} GB" if size >= 0.95e9 else f"{max(size / 1e6, 1):.0f} MB"


def plain_hint(hint: str) -> str:
    """A hint of the command line in the words of a dock, which has no options that begin --."""
    if "--overwrite" in hint:
        return "Choose another name, or allow to replace it."
    if "--configuration" in hint:
        return hint.replace("with --configuration: ", "as the configuration: ")
    if "--fold" in hint:
        return "Choose the checkpoint file (.pth) in one of these folders."
    return hint.replace(" (--name)", "").replace("--output", "folder")


def device_name(device: str, about: Mapping[str, Any]) -> str:
    """`CPU`, or the name of a graphics card; `about` is the engine's."""
    return about.get("device_names", {}).get(device) or device.upper()


# Controls


def explain(widget: QWidget, name: str, tooltip: str = "") -> Any:
    """Gives a control its name (for tests and screen readers) and its tooltip; returns it."""
    widget.setObjectName(name)
    widget.setToolTip(tooltip)
    if not widget.accessibleName():
        widget.setAccessibleName(name.replace("_", " "))
    return widget


def text_label(name: str, tooltip: str = "", text: str = "") -> QLabel:
    """Plain text that is broken into lines, needs no width of its own, and can be copied."""
    label: QLabel = explain(QLabel(text), name, tooltip)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    label.setWordWrap(True)
    label.setSizePolicy(_POLICY.Ignored, _POLICY.Minimum)
    return label


def show_text(label: QLabel, text: str) -> None:
    """Show a text; without one there is no gap either."""
    label.setText(text)
    label.setVisible(bool(text))


def combo_box(name: str, tooltip: str, choices: Iterable[tuple[str, Any]] = ()) -> QComboBox:
    """A combo box that long entries do not widen; `choices` are texts and data."""
    combo: QComboBox = explain(QComboBox(), name, tooltip)
    combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    combo.setMinimumContentsLength(12)
    combo.setSizePolicy(_POLICY.Expanding, _POLICY.Fixed)
    for text, data in choices:
        combo.addItem(text, data)
    return combo


def choose(combo: QComboBox, value: Any, add: bool = False) -> None:
    """Choose the entry with this data, if there is one; with `add` it is made."""
    place = combo.findData(value)
    if place < 0 and add and value:
        combo.addItem(str(value), value)
        place = combo.count() - 1
    if place >= 0:
        combo.setCurrentIndex(place)


def form_layout(parent: QWidget | None = None, indent: int = 0) -> QFormLayout:
    """Labels beside controls that take all the width, with no margins but `indent` at the left."""
    form = QFormLayout(parent) if parent is not None else QFormLayout()
    form.setContentsMargins(indent, 0, 0, 0)
    form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
    return form


def align_labels(forms: Iterable[QFormLayout]) -> None:
    """Controls of forms that are below each other begin at the same place."""
    role = QFormLayout.ItemRole.LabelRole
    items = [form.itemAt(row, role) for form in forms for row in range(form.rowCount())]
    labels = [label for item in items if item is not None and (label := item.widget())]
    width = max(label.sizeHint().width() for label in labels)
    for label in labels:
        label.setMinimumWidth(width)


def side_by_side(*widgets: QWidget, stretch: int = 1) -> QHBoxLayout:
    """A row without margins; the first widget gets the spare width."""
    row = QHBoxLayout()
    row.setContentsMargins(0, 0, 0, 0)
    for place, widget in enumerate(widgets):
        row.addWidget(widget, 0 if place else stretch)
    return row


def small_button(text: str, name: str, tooltip: str, checkable: bool = False) -> QPushButton:
    """A button beside a control, just as wide as its text; napari draws tool buttons as text."""
    button: QPushButton = explain(QPushButton(text), name, tooltip)
    button.setCheckable(checkable)
    button.setFixedWidth(button.fontMetrics().horizontalAdvance(text) + 20)
    return button


def button_grid(buttons: Sequence[QPushButton]) -> QGridLayout:
    """Buttons in two columns of the same width, however narrow the dock is."""
    grid = QGridLayout()
    grid.setContentsMargins(0, 0, 0, 0)
    for place, button in enumerate(buttons):
        button.setSizePolicy(_POLICY.Ignored, _POLICY.Fixed)
        grid.addWidget(button, place // 2, place % 2)
    return grid


# Arrangement


class Scrolling(QScrollArea):
    """Shows a tall widget on a small screen; never scrolls sideways.

    Args:
        content: what is shown.
        dock: a widget that it fills.
    """

    def __init__(self, content: QWidget, dock: QWidget) -> None:
        super().__init__()
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._content = content
        self.setWidget(content)
        layout = QVBoxLayout(dock)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self)

    def minimumSizeHint(self) -> QSize:  # noqa: N802 (Qt's name)
        return QSize(min(self._content.minimumSizeHint().width() + 16, 320), 120)

    def sizeHint(self) -> QSize:  # noqa: N802
        hint = self._content.sizeHint()
        return QSize(max(hint.width() + 16, 300), hint.height() + 4)


class FoldingSection(QWidget):
    """A title that shows or hides what is below it.

    Args:
        title: on the button.
        content: what is shown or hidden.
        name: of the button.
        settings: remember there, as `key`, whether it is open.
        opened: at the first time.
    """

    def __init__(
        self,
        title: str,
        content: QWidget,
        name: str,
        settings: Settings | None = None,
        key: str = "",
        opened: bool = False,
    ) -> None:
        super().__init__()
        self.content = content
        self._settings, self._key = settings, key
        self.button = explain(QToolButton(), name, f"Show or hide: {title.lower()}")
        self.button.setText(title)
        self.button.setCheckable(True)
        self.button.setAutoRaise(True)
        self.button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.button.setStyleSheet("QToolButton { border: none; text-align: left; }")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addWidget(self.button)
        layout.addWidget(content)
        self.button.setChecked(settings.get(key, opened) if settings is not None else opened)
        self._show(self.button.isChecked())
        self.button.toggled.connect(self._toggled)

    def _toggled(self, opened: bool) -> None:
        self._show(opened)
        if self._settings is not None:
            self._settings.set(self._key, opened)
            self._settings.save_soon()

    def _show(self, opened: bool) -> None:
        arrow = Qt.ArrowType.DownArrow if opened else Qt.ArrowType.RightArrow
        self.button.setArrowType(arrow)
        self.content.setVisible(opened)


# What happens


class MessageLabel(QFrame):
    """One sentence and a hint in a coloured border, with details on request; hidden when empty."""

    def __init__(self) -> None:
        super().__init__()
        self.setObjectName("message")
        self.label = text_label("message_text")
        self.more = explain(
            QToolButton(), "message_details", "Show what to send with a report of this problem"
        )
        self.more.setText("Details")
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
        self._told = delayed(self, 0, self._scroll_here)
        self.clear()

    @property
    def text(self) -> str:
        """What is shown; empty if nothing is."""
        return self.label.text() if self.kind else ""

    def clear(self) -> None:
        self.kind = ""
        self.label.clear()
        self.details.clear()
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
        self.label.setText(f"{message} {plain_hint(hint)}".strip())
        self.setStyleSheet(
            f"#message {{ border: 1px solid {_COLOURS[kind]}; border-radius: 3px; }}"
        )
        self.details.setPlainText(details)
        self.more.setVisible(bool(details))
        self.more.setChecked(False)
        self.details.setVisible(False)
        self.show()
        self._told.start()  # when it has its place

    def add(self, kind: str, message: str, hint: str = "") -> None:
        """Show a message behind what is shown already, once; details stay as they are."""
        text = f"{message} {plain_hint(hint)}".strip()
        if text in self.text:
            return
        kinds = list(_COLOURS)
        worst = min(kind, self.kind or kind, key=kinds.index)
        self.tell(worst, f"{self.text} {text}".strip(), "", self.details.toPlainText())

    def _scroll_here(self) -> None:
        above = self.parentWidget()
        while above is not None and not isinstance(above, Scrolling):
            above = above.parentWidget()
        if above is not None and self.kind:
            above.ensureWidgetVisible(self)

    def tell_error(self, error: Exception) -> None:
        """Show what went wrong."""
        if isinstance(error, TTTUNetError):
            self.tell("error", error.message, error.hint)
        else:
            self.tell("error", f"Unexpected {type(error).__name__}: {error}")

    def tell_failure(self, event: Any) -> None:
        """Show why a job of the engine failed or was lost."""
        self.tell("error", event.message, event.hint, getattr(event, "details", ""))


class ProgressLine(QWidget):
    """A bar while something runs, and a line of text; hidden when there is nothing to tell.

    Args:
        name: of the bar; that of the text is `{name}_text`.
        button: shown beside the bar, with it.
    """

    def __init__(self, name: str = "progress", button: QPushButton | None = None) -> None:
        super().__init__()
        self.bar = explain(QProgressBar(), name, "How far it is")
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(10)
        self.label = text_label(f"{name}_text")
        self._moving = QWidget()
        self._moving.setLayout(side_by_side(self.bar, *([button] if button else [])))
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addWidget(self._moving)
        layout.addWidget(self.label)
        self.finish()

    @property
    def text(self) -> str:
        return self.label.text()

    def report(self, stage: str, fraction: float = 0.0, eta: float | None = None) -> None:
        """Show a stage of a job; one of unknown length has the fraction 0."""
        text = stage[:1].upper() + stage[1:]
        if fraction > 0:
            text += f": {fraction:.0%}"
        if eta is not None and fraction < 1:
            text += f", {duration(eta)} left"
        self.move_to(fraction, text)

    def move_to(self, fraction: float, text: str) -> None:
        """Show the bar, and a text of one's own."""
        # Qt would draw the window at once, and again at the next event.
        self.bar.setUpdatesEnabled(False)
        self.bar.setRange(0, _STEPS if fraction > 0 else 0)
        self.bar.setValue(round(_STEPS * fraction))
        self.bar.setUpdatesEnabled(True)
        self._moving.show()
        self.say(text)

    def say(self, text: str) -> None:
        """Show another text; the bar stays as it is."""
        show_text(self.label, text)
        self.setVisible(bool(text) or not self._moving.isHidden())

    def finish(self, text: str = "") -> None:
        """Hide the bar; `text` stays."""
        self._moving.hide()
        self.say(text)
