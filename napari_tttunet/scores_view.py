"""The part of the Results dock that compares labels with true labels."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from napari.layers import Labels
from qtpy.QtCore import Signal
from qtpy.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QFormLayout,
    QGridLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_tttunet.comparison import (
    COLOURS,
    Foreground,
    Scores,
    class_scores,
    object_scores,
    pair_of,
)
from napari_tttunet.measure import channels_under
from napari_tttunet.results_comparison import ComparisonLayers, is_comparison
from napari_tttunet.session import session
from napari_tttunet.settings import Settings
from napari_tttunet.widgets import explain
from tttunet.engine.messages import Cancelled, Done, Progress, Started
from tttunet.errors import TTTUNetError
from tttunet.measuring.agreement import DIFFERENT, FALSE, MATCHED, MISSED

_LEGEND = {
    "instance": {
        MATCHED: "matched",
        MISSED: "missed",
        FALSE: "false",
        DIFFERENT: "found, but with another outline",
    },
    "semantic": {
        MATCHED: "same class",
        MISSED: "missed",
        FALSE: "false",
        DIFFERENT: "another class",
    },
}
_MOST_CLASSES = 20
#: Of scores side by side.
_COLUMNS = 2


class ScoresView(QWidget):
    """Compares the dock's labels with another Labels layer, in the engine.

    Attributes:
        problem: a sentence for the user and details; empty: the last one is settled.
    """

    problem = Signal(str, str)

    def __init__(self, viewer: Any, settings: Settings, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer, self._settings = viewer, settings
        self._layer: Any = None
        self._axes, self._volumes = "", True
        self._truths: list[Any] = []
        self._running: dict[str, Any] = {"jobs": {}, "closed": False}
        self._results: dict[str, dict[str, Any]] = {}
        self._compared: tuple[Any, Any, str] | None = None
        self._comparisons = ComparisonLayers(viewer)
        self._number = 0
        self.destroyed.connect(partial(_shut, self._running))
        self._build()
        self._enable()

    def _build(self) -> None:
        self.truth = _control(
            QComboBox(),
            "truth",
            "True labels",
            "Labels that are right, drawn on the same pixels, e.g. by an expert",
        )
        self.truth.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.truth.currentIndexChanged.connect(self._enable)
        self.kind = _control(
            QComboBox(),
            "compare_as",
            "Compare as",
            "Objects: each label is one object. Classes: each label is a kind.",
        )
        self.kind.addItem("Objects, one by one", "instance")
        self.kind.addItem("Classes, pixel by pixel", "semantic")
        self.kind.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        chosen = self._settings.get("results.compare_as", "instance")
        self.kind.setCurrentIndex(max(self.kind.findData(chosen), 0))
        self.kind.currentIndexChanged.connect(self._on_kind)
        self.threshold = _control(
            QDoubleSpinBox(),
            "threshold",
            "Overlap needed",
            "Two objects match if the pixels they share are at least this part of all pixels of "
            "both (intersection over union)",
        )
        self.threshold.setRange(0.05, 1.0)
        self.threshold.setSingleStep(0.05)
        self.threshold.setValue(self._settings.get("results.threshold", 0.5))
        self.threshold.valueChanged.connect(partial(self._remember, "results.threshold"))
        form = QFormLayout()
        form.setContentsMargins(0, 0, 0, 0)
        form.addRow("True labels", self.truth)
        form.addRow("Compare as", self.kind)
        form.addRow("Overlap needed", self.threshold)
        self.button = _control(QPushButton("Compare"), "compare", "Compare", "")
        self.progress = _control(QProgressBar(), "compare_progress", "Progress", "")
        self.progress.setTextVisible(False)
        self.progress.setMaximumHeight(6)
        self.progress.hide()
        self.button.clicked.connect(self._on_button)
        self.note = _control(QLabel(), "compare_note", "State of the comparison", "")
        self.note.setWordWrap(True)
        self.grid = QGridLayout()
        self.grid.setContentsMargins(0, 0, 0, 0)
        self.legend = _control(QLabel(), "legend", "Legend", "")
        self.legend.setWordWrap(True)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(form)
        for widget in (self.button, self.progress, self.note):
            layout.addWidget(widget)
        layout.addLayout(self.grid)
        layout.addWidget(self.legend)
        self._on_kind()

    # What is compared

    def set_labels(self, layer: Any, axes: str, volumes: bool) -> None:
        """The labels to be compared; None: none. What was compared before is forgotten."""
        if (layer, axes, volumes) != (self._layer, self._axes, self._volumes):
            self.cancel()
            self._show(None)
        self._layer, self._axes, self._volumes = layer, axes, volumes
        self.list_truths()

    def list_truths(self) -> None:
        """Offer the Labels layers whose pixels coincide with the dock's labels."""
        chosen = self._truth()
        self._truths = [
            layer
            for layer in self._viewer.layers
            if isinstance(layer, Labels)
            and self._layer is not None
            and layer is not self._layer
            and not is_comparison(layer)
            and channels_under(self._layer, self._axes, layer)
        ]
        self.truth.blockSignals(True)
        self.truth.clear()
        self.truth.addItems([layer.name for layer in self._truths])
        # With a placeholder, Qt itself chooses none.
        kept = self._truths.index(chosen) if chosen in self._truths else 0
        self.truth.setCurrentIndex(kept if self._truths else -1)
        self.truth.blockSignals(False)
        if self._compared and not all(x in self._viewer.layers for x in self._compared[:2]):
            self.cancel()
            self._show(None)
        self._enable()

    def labels_changed(self, layer: Any) -> None:
        """Say that scores are of labels as they were."""
        if self._compared and layer in self._compared[:2] and self.grid.count():
            self.note.setText("The labels have changed since: compare again.")

    def _truth(self) -> Any:
        index = self.truth.currentIndex()
        return self._truths[index] if 0 <= index < len(self._truths) else None

    # Running

    @property
    def busy(self) -> bool:
        return bool(self._running["jobs"])

    def compare(self) -> None:
        """Start comparing; what is wrong with the layers is told by `problem`."""
        self.cancel()
        layer, truth, task = self._layer, self._truth(), str(self.kind.currentData())
        if layer is None or truth is None:
            return
        self.problem.emit("", "")
        try:
            pair = pair_of(layer, self._axes, truth, self._volumes)
            ours: Any
            true: Any
            ours, true = pair.objects() if task == "instance" else (pair.pred, pair.truth)
            self._number += 1
            self._results, self._compared = {}, (layer, truth, task)
            evaluate = session().engine.evaluate
            jobs = self._running["jobs"]
            options = {"threshold": round(self.threshold.value(), 2)}
            # Entered before it is known to run: nothing is heard before this method ends.
            hear = self._hear(task)
            jobs[task] = evaluate(ours, true, task, hear, painted=True, **options)
            if task == "instance":
                ours, true = Foreground(pair.pred), Foreground(pair.truth)
                jobs["foreground"] = evaluate(ours, true, "semantic", self._hear("foreground"))
        except TTTUNetError as error:
            self.cancel()
            self.problem.emit(str(error), "")
        except RuntimeError as error:
            self.cancel()
            self.problem.emit("The engine has ended. Restart napari.", str(error))
        self._enable()

    def cancel(self) -> None:
        """Stop what runs; nothing of it is shown."""
        self._number += 1
        _stop(self._running)
        if self._running["closed"]:
            return
        self.progress.hide()
        self._enable()

    def _hear(self, name: str) -> Callable[[Any, Any], None]:
        """A listener that neither keeps this widget alive nor disturbs a later comparison."""
        view, number = weakref.ref(self), self._number

        def hear(_: Any, event: Any) -> None:
            found = view()
            if found is not None and found._number == number and not found._running["closed"]:
                found._on_event(name, event)

        return hear

    def _on_event(self, name: str, event: Any) -> None:
        if isinstance(event, Done):
            self._running["jobs"].pop(name, None)
            self._results[name] = event.result
            if not self._running["jobs"]:
                self._show_result()
        elif isinstance(event, Started):
            self.note.setText("Starting the engine ..." if event.cold else "Reading the labels ...")
        elif isinstance(event, Progress):
            self.note.setText("Comparing ...")
        elif isinstance(event, Cancelled):
            self.cancel()
        elif hasattr(event, "message") and hasattr(event, "hint"):  # failed or lost
            self.cancel()
            self.note.clear()
            self.problem.emit(
                f"{event.message} {event.hint}".strip(), getattr(event, "details", "")
            )

    def _show_result(self) -> None:
        assert self._compared is not None
        layer, truth, task = self._compared
        if task == "instance":
            scores = object_scores(self._results["instance"], self._results["foreground"])
        else:
            scores = class_scores(self._results["semantic"])
        self._show(scores, task)
        self.note.setText("As the labels are now:")
        self._enable()
        if layer in self._viewer.layers:
            painted = self._results[task]["painted"]
            self._comparisons.show(layer, truth, painted, self._axes, task)

    # Showing

    def _show(self, scores: Scores | None, task: str = "instance") -> None:
        while (item := self.grid.takeAt(0)) is not None:
            if (widget := item.widget()) is not None:
                widget.hide()
                widget.setParent(None)  # nobody shall find it until Qt deletes it
                widget.deleteLater()
        self.note.clear()
        self.legend.clear()
        if scores is None:
            self._compared = None
            return
        for position, (name, value, tip) in enumerate(scores.rows[:_MOST_CLASSES]):
            number = "none" if value != value else f"{value:.3f}"
            label = QLabel(f"{name} <b>{number}</b>")
            label.setObjectName(f"results_score_{name.lower().replace(' ', '_')}")
            label.setToolTip(tip)
            self.grid.addWidget(label, *divmod(position, _COLUMNS))
        if len(scores.rows) > _MOST_CLASSES:
            more = QLabel(f"and {len(scores.rows) - _MOST_CLASSES} more classes")
            self.grid.addWidget(more, self.grid.rowCount(), 0, 1, _COLUMNS)
        parts = []
        for kind, words in _LEGEND[task].items():
            count = f"{scores.counts[kind]} " if kind in scores.counts else ""
            square = f"<span style='color:{COLOURS[kind]}'>\u25a0</span>"
            parts.append(f"<nobr>{square} {count}{words}</nobr>")
        self.legend.setText(" &nbsp; ".join(parts))

    def _enable(self) -> None:
        ready = self._truth() is not None
        self.truth.setEnabled(bool(self._truths))
        self.button.setEnabled(ready or self.busy)
        self.button.setText("Cancel" if self.busy else "Compare")
        tip = "Add a Labels layer on the same pixels, for example true labels drawn by an expert"
        self.button.setToolTip("Score the labels and colour what was missed" if ready else tip)
        self.progress.setRange(0, 0)
        self.progress.setVisible(self.busy)
        if self.truth.count() == 0:
            self.truth.setPlaceholderText("no other labels of this image")

    def _on_button(self) -> None:
        if self.busy:
            self.cancel()
            self._show(None)
            self.note.setText("Cancelled.")
        else:
            self.compare()

    def _on_kind(self) -> None:
        self._remember("results.compare_as", self.kind.currentData())
        self.threshold.setEnabled(self.kind.currentData() == "instance")

    def _remember(self, name: str, value: Any) -> None:
        self._settings.set(name, value)
        self._settings.save_soon()


def _stop(running: dict[str, Any]) -> None:
    for job in running["jobs"].values():
        job.cancel()
    running["jobs"].clear()


def _shut(running: dict[str, Any], *_: Any) -> None:
    running["closed"] = True
    _stop(running)


def _control(widget: Any, name: str, words: str, tip: str) -> Any:
    widget.setAccessibleName(words)
    return explain(widget, f"results_{name}", tip)
