"""What the Results dock looks like: its controls, without what they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qtpy.QtWidgets import (
    QComboBox,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_tttunet.histogram import Histogram
from napari_tttunet.object_table import ObjectView
from napari_tttunet.scores_view import ScoresView
from napari_tttunet.settings import Settings
from napari_tttunet.table_export import TableExport
from napari_tttunet.widgets import FoldingSection, MessageLabel, Scrolling, explain

_MARGIN = 6


class ResultsForm(Scrolling):
    """The controls, in an area that scrolls on small screens and fills the dock."""

    def __init__(self, viewer: Any, settings: Settings, dock: QWidget) -> None:
        inside = QWidget()
        super().__init__(inside, dock)
        self._settings = settings
        layout = QVBoxLayout(inside)
        layout.setContentsMargins(_MARGIN, _MARGIN, _MARGIN, _MARGIN)
        layout.addLayout(self._what())
        layout.addLayout(self._measuring())
        self.problem = MessageLabel()
        layout.addWidget(self.problem)
        layout.addLayout(self._objects(), 1)
        layout.addLayout(self._distribution())
        self.export = TableExport(self.view.objects, settings)
        self.export.problem.connect(self._on_problem)
        self.view.copied.connect(self.export.copy_rows)
        layout.addWidget(self.export)
        self.scores = ScoresView(viewer, settings)
        self.scores.problem.connect(self._on_problem)
        layout.addWidget(
            FoldingSection(
                "Compare with true labels",
                self.scores,
                "results_scores",
                settings,
                "results.open.results_scores",
            )
        )
        # Folded parts count too: nothing may be cut off at the right when they open.
        bar = self.verticalScrollBar().sizeHint().width()
        scores = self.scores.minimumSizeHint().width() + 2 * _MARGIN
        self.setMinimumWidth(max(inside.minimumSizeHint().width(), scores) + bar)
        self.settle()
        self.show_busy(False)

    # Building

    def _what(self) -> QFormLayout:
        self.labels = _control(
            QComboBox(),
            "labels",
            "Labels",
            "The labels whose objects are listed; follows the active layer",
        )
        self.labels.setPlaceholderText("no labels yet")
        self.image = _control(
            QComboBox(),
            "image",
            "Brightness of",
            "The image whose brightness is measured; of the labels' pixels",
        )
        self.extent = _control(
            QComboBox(),
            "extent",
            "Objects extend",
            "Measure whole objects of a stack, or each of its slices by itself",
        )
        self.extent.addItem("through all slices (3D)", True)
        self.extent.addItem("over one slice (2D)", False)
        self.extent.setCurrentIndex(0 if self._settings.get("results.volumes", True) else 1)
        self.axes = _control(
            QLineEdit(),
            "axes",
            "Axes",
            "What each axis of the labels is: T time, Z, Y, X; for example TZYX",
        )
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
        form.addRow(
            FoldingSection(
                "More options", more, "results_more", self._settings, "results.open.results_more"
            )
        )
        self._what_form = form
        return form

    def _measuring(self) -> QVBoxLayout:
        self.refresh = _control(QPushButton(), "refresh", "Refresh", "")
        self.progress = _control(QProgressBar(), "progress", "Progress", "How much is measured")
        self.progress.setRange(0, 1000)
        self.progress.setTextVisible(False)
        self.progress.setMaximumHeight(6)
        kept = self.progress.sizePolicy()
        kept.setRetainSizeWhenHidden(True)  # nothing jumps while labels are painted
        self.progress.setSizePolicy(kept)
        self.summary = _control(QLabel(), "summary", "Summary", "")
        self.summary.setWordWrap(True)
        tip = "List the objects of all bars again"
        self.show_all = _control(QPushButton("Show all"), "show_all", "Show all", tip)
        line = QHBoxLayout()
        line.addWidget(self.summary, 1)
        line.addWidget(self.show_all)
        layout = QVBoxLayout()
        for widget in (self.refresh, self.progress):
            layout.addWidget(widget)
        layout.addLayout(line)
        return layout

    def _objects(self) -> QVBoxLayout:
        self.view = ObjectView()
        self.view.setMinimumHeight(120)  # with the rest, it fits into a window of 900 pixels
        layout = QVBoxLayout()
        layout.addWidget(self.view)
        return layout

    def _distribution(self) -> QVBoxLayout:
        tip = "The column of the histogram and of the summary"
        self.column = _control(QComboBox(), "column", "Histogram of", tip)
        self.column.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.histogram = Histogram()
        form = QFormLayout()
        form.addRow("Histogram of", self.column)
        layout = QVBoxLayout()
        layout.addLayout(form)
        layout.addWidget(self.histogram)
        return layout

    # What is shown

    def fill(self, combo: QComboBox, names: Sequence[str]) -> None:
        """Offer other names, without a signal; the first is chosen."""
        combo.blockSignals(True)
        combo.clear()
        combo.addItems(list(names))
        combo.blockSignals(False)

    def tell(self, words: str, hint: str = "", details: str = "") -> None:
        """Show what is wrong."""
        self.problem.tell("error", words, hint, details)

    def settle(self) -> None:
        """Nothing is wrong any more."""
        self.problem.clear()

    def _on_problem(self, words: str, details: str) -> None:
        if words:
            self.tell(words, "", details)
        else:
            self.settle()

    def show_busy(self, busy: bool) -> None:
        self.refresh.setText("Cancel" if busy else "Refresh")
        self.refresh.setToolTip(
            "Stop measuring" if busy else "Measure the objects again, as the labels are now"
        )
        self.show_progress(0)
        self.progress.setVisible(busy)

    def show_progress(self, fraction: float) -> None:
        # Else the bar draws at once, which draws the whole window, the canvas included.
        self.progress.setUpdatesEnabled(False)
        self.progress.setValue(round(1000 * fraction))
        self.progress.setUpdatesEnabled(True)

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


def _control(widget: Any, name: str, words: str, tip: str) -> Any:
    widget.setAccessibleName(words)
    return explain(widget, f"results_{name}", tip)
