"""What the Results dock looks like: its controls, without what they do."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QComboBox,
    QFormLayout,
    QFrame,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from napari_tttunet.histogram import Histogram
from napari_tttunet.object_table import ObjectView
from napari_tttunet.scores_view import ScoresView
from napari_tttunet.settings import Settings
from napari_tttunet.table_export import TableExport

_MARGIN = 6


class ResultsForm(QScrollArea):
    """The controls, in an area that scrolls on small screens."""

    def __init__(self, viewer: Any, settings: Settings, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._settings = settings
        self.setWidgetResizable(True)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        inside = QWidget()
        layout = QVBoxLayout(inside)
        layout.setContentsMargins(_MARGIN, _MARGIN, _MARGIN, _MARGIN)
        layout.addLayout(self._what())
        layout.addLayout(self._measuring())
        layout.addWidget(self._problem())
        layout.addLayout(self._objects(), 1)
        layout.addLayout(self._distribution())
        self.export = TableExport(self.view.objects, settings)
        self.export.problem.connect(self._on_problem)
        layout.addWidget(self.export)
        self.scores = ScoresView(viewer, settings)
        self.scores.problem.connect(self._on_problem)
        layout.addWidget(self._fold("Compare with true labels", "results_scores", self.scores))
        self.setWidget(inside)
        # Folded parts count too: nothing may be cut off at the right when they open.
        bar = self.verticalScrollBar().sizeHint().width()
        scores = self.scores.minimumSizeHint().width() + 2 * _MARGIN
        self.setMinimumWidth(max(inside.minimumSizeHint().width(), scores) + bar)
        self.settle()
        self.show_busy(False)

    # Building

    def _what(self) -> QFormLayout:
        self.labels = _named(QComboBox(), "results_labels", "Labels")
        self.labels.setPlaceholderText("no labels yet")
        self.labels.setToolTip("The labels whose objects are listed; follows the active layer")
        self.image = _named(QComboBox(), "results_image", "Brightness of")
        self.image.setToolTip("The image whose brightness is measured; of the labels' pixels")
        self.extent = _named(QComboBox(), "results_extent", "Objects extend")
        self.extent.addItem("through all slices (3D)", True)
        self.extent.addItem("over one slice (2D)", False)
        self.extent.setToolTip("Measure whole objects of a stack, or each of its slices by itself")
        self.extent.setCurrentIndex(0 if self._settings.get("results.volumes", True) else 1)
        self.axes = _named(QLineEdit(), "results_axes", "Axes")
        self.axes.setToolTip("What each axis of the labels is: T time, Z, Y, X; for example TZYX")
        more = QWidget()
        inner = QFormLayout(more)
        inner.setContentsMargins(0, 0, 0, 0)
        inner.addRow("Axes", self.axes)
        for combo in (self.labels, self.image, self.extent):
            combo.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        form = QFormLayout()
        form.addRow("Labels", self.labels)
        form.addRow("Brightness of", self.image)
        form.addRow("Objects extend", self.extent)
        form.addRow(self._fold("More options", "results_more", more))
        self._what_form = form
        return form

    def _measuring(self) -> QVBoxLayout:
        self.refresh = _named(QPushButton(), "results_refresh", "Refresh")
        self.progress = _named(QProgressBar(), "results_progress", "Progress")
        self.progress.setRange(0, 1000)
        self.progress.setTextVisible(False)
        self.progress.setMaximumHeight(6)
        kept = self.progress.sizePolicy()
        kept.setRetainSizeWhenHidden(True)  # nothing jumps while labels are painted
        self.progress.setSizePolicy(kept)
        self.summary = _named(QLabel(), "results_summary", "Summary")
        self.summary.setWordWrap(True)
        self.show_all = _named(QPushButton("Show all"), "results_show_all", "Show all")
        self.show_all.setToolTip("List the objects of all bars again")
        line = QHBoxLayout()
        line.addWidget(self.summary, 1)
        line.addWidget(self.show_all)
        layout = QVBoxLayout()
        for widget in (self.refresh, self.progress):
            layout.addWidget(widget)
        layout.addLayout(line)
        return layout

    def _problem(self) -> QFrame:
        self.problem = _named(QFrame(), "results_problem", "Problem")
        self.problem.setStyleSheet("#results_problem { border: 1px solid #d55e00; }")
        self.problem_text = _named(QLabel(), "results_problem_text", "Problem")
        self.problem_text.setWordWrap(True)
        self.problem_more = _named(QToolButton(), "results_problem_more", "Details")
        self.problem_more.setText("Details")
        self.problem_more.setCheckable(True)
        self.problem_details = _named(QPlainTextEdit(), "results_problem_details", "Details")
        self.problem_details.setReadOnly(True)
        self.problem_details.setMaximumHeight(100)
        self.problem_more.toggled.connect(self.problem_details.setVisible)
        layout = QVBoxLayout(self.problem)
        for widget in (self.problem_text, self.problem_more, self.problem_details):
            layout.addWidget(widget)
        return self.problem

    def _objects(self) -> QVBoxLayout:
        self.view = ObjectView()
        self.view.setMinimumHeight(180)
        layout = QVBoxLayout()
        layout.addWidget(self.view)
        return layout

    def _distribution(self) -> QVBoxLayout:
        self.column = _named(QComboBox(), "results_column", "Histogram of")
        self.column.setToolTip("The column of the histogram and of the summary")
        self.column.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.histogram = Histogram()
        form = QFormLayout()
        form.addRow("Histogram of", self.column)
        layout = QVBoxLayout()
        layout.addLayout(form)
        layout.addWidget(self.histogram)
        return layout

    def _fold(self, title: str, name: str, content: QWidget) -> QWidget:
        """A part that opens and closes, and is remembered."""
        button = _named(QToolButton(), name, title)
        button.setText(title)
        button.setToolTip(f"Show or hide: {title.lower()}")
        button.setCheckable(True)
        button.setAutoRaise(True)
        button.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        whole = QWidget()
        layout = QVBoxLayout(whole)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(button)
        layout.addWidget(content)
        toggle = partial(self._toggle, button, content, f"results.open.{name}")
        button.setChecked(self._settings.get(f"results.open.{name}", False))
        toggle(button.isChecked())
        button.toggled.connect(toggle)
        return whole

    def _toggle(self, button: QToolButton, content: QWidget, name: str, opened: bool) -> None:
        arrow = Qt.ArrowType
        button.setArrowType(arrow.DownArrow if opened else arrow.RightArrow)
        content.setVisible(opened)
        self._settings.set(name, opened)
        self._settings.save_soon()

    # What is shown

    def fill(self, combo: QComboBox, names: Sequence[str]) -> None:
        """Offer other names, without a signal; the first is chosen."""
        combo.blockSignals(True)
        combo.clear()
        combo.addItems(list(names))
        combo.blockSignals(False)

    def tell(self, words: str, details: str = "") -> None:
        """Show what is wrong."""
        self.problem_text.setText(words)
        self.problem_details.setPlainText(details)
        self.problem_more.setVisible(bool(details))
        self.problem_more.setChecked(False)
        self.problem_details.hide()
        self.problem.show()

    def settle(self) -> None:
        """Nothing is wrong any more."""
        self.problem.hide()

    def _on_problem(self, words: str, details: str) -> None:
        if words:
            self.tell(words, details)
        else:
            self.settle()

    def show_busy(self, busy: bool) -> None:
        self.refresh.setText("Cancel" if busy else "Refresh")
        self.refresh.setToolTip(
            "Stop measuring" if busy else "Measure the objects again, as the labels are now"
        )
        self.progress.setValue(0)
        self.progress.setVisible(busy)

    def show_extent(self, deep: bool) -> None:
        """Stacks can be measured in two ways, planes cannot."""
        for widget in (self.extent, self._what_form.labelForField(self.extent)):
            widget.setVisible(deep)

    def enable(self, labels: bool, objects: bool) -> None:
        """What can be used with and without labels, and with and without objects."""
        self.labels.setEnabled(labels)
        self.axes.setEnabled(labels)
        self.refresh.setEnabled(labels)
        for widget in (self.export, self.column, self.histogram):
            widget.setEnabled(objects)


def _named(widget: Any, name: str, words: str) -> Any:
    widget.setObjectName(name)
    widget.setAccessibleName(words)
    return widget
