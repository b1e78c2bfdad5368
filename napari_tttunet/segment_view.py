"""The controls of the Segment dock and how they are laid out; what they do is in the dock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_tttunet.legend import Legend
from napari_tttunet.result_layers import is_accepted, is_result
from napari_tttunet.segment_image import ImageChoice
from napari_tttunet.segment_options import MoreOptions, ThresholdSliders
from napari_tttunet.settings import Settings
from napari_tttunet.widgets import (
    FoldingSection,
    MessageLabel,
    ProgressLine,
    align_labels,
    choose,
    combo_box,
    explain,
    form_layout,
    show_text,
    side_by_side,
    small_button,
    text_label,
)

_WHERE = (("Whole image", "whole"), ("What I see now", "view"), ("Rectangles I drew", "shapes"))
_ALL, _ONE = ("All slices and frames", "all"), ("Only this slice", "current")
_SOME = ("From one slice to another", "range")
#: Of a box for the number of a slice: napari's own minimum makes the dock wider.
_NUMBER_WIDTH = 72
#: What 'What I see now' means where the viewer shows a volume.
ALL_IS_SEEN = "In the 3D view, all of the image counts as seen."
_TIPS = {
    "accept": "Mark these labels as right: they get a tick and are never replaced.",
    "next_object": "Go to the next place to check: the most doubtful objects and gaps come first.",
    "previous_object": "Go back to the object before.",
    "toggle_labels": "Show or hide the labels.",
    "segment_view": "Find the objects in the image.",
}


class SegmentView(QWidget):
    """All controls.

    Args:
        image: the choice of the image.
        settings: remembers choices.
        legend: of the classes that were found.

    Attributes:
        changed: the region was changed.
    """

    changed = Signal()

    def __init__(
        self,
        image: ImageChoice,
        settings: Settings,
        legend: Legend,
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self._settings, self.legend = settings, legend
        self.thresholds = ThresholdSliders(settings)
        self.options = MoreOptions(settings)
        self.message, self.progress = MessageLabel(), ProgressLine()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(8, 8, 8, 8)
        layout.addWidget(image)
        model, where = self._model_form(), self._where_form()
        self._forms = [image.form, model, where]
        layout.addLayout(model)
        self.card = explain(QLabel(), "model_card", "What to know about this model")
        self.card.setWordWrap(True)
        self.card.setTextFormat(Qt.TextFormat.RichText)
        self.card.hide()
        self.card_button.toggled.connect(self.card.setVisible)
        layout.addWidget(self.card)
        layout.addLayout(where)
        layout.addWidget(
            FoldingSection(
                "More options",
                self.options,
                "more_options_button",
                settings,
                "segment.more_options",
            )
        )
        self.need = text_label("need", "The memory and the time that it will take")
        layout.addWidget(self.need)
        layout.addLayout(self._buttons())
        layout.addWidget(self.progress)
        layout.addWidget(self.message)
        self.result = text_label("result", "What was found")
        self.result.hide()
        layout.addWidget(self.result)
        layout.addWidget(legend)
        self.adjust = FoldingSection(
            "Adjust the result",
            self.thresholds,
            "adjust_button",
            settings,
            "segment.adjust",
            opened=True,
        )
        layout.addWidget(self.adjust)
        layout.addWidget(self._checking())
        self.copy_command = explain(
            QPushButton("Copy as command line"),
            "copy_command",
            "Copies a command that does the same in a terminal; "
            "only for images that were opened from a file.",
        )
        layout.addWidget(self.copy_command)
        layout.addStretch(1)

    def _model_form(self) -> QFormLayout:
        form = form_layout()
        self.model = combo_box("model", "The model that finds the objects")
        self.card_button = small_button(
            "Card",
            "model_info",
            "Show what this model was trained on, and how good it is",
            checkable=True,
        )
        form.addRow("Model", side_by_side(self.model, self.card_button))
        self.title = text_label("model_title", "What the model is for")
        form.addRow(self.title)
        self.dimensions = text_label(
            "dimensions", "Whether slices are segmented one by one or together"
        )
        form.addRow(self.dimensions)
        return form

    def _where_form(self) -> QFormLayout:
        form = form_layout()
        self.where = combo_box("where", "The part of the image that is segmented", _WHERE)
        form.addRow("Where", self.where)
        self.shapes = combo_box(
            "shapes", "The layer in which you drew rectangles; the selected ones count, or all"
        )
        self._shapes_label = QLabel("Drawn in")
        form.addRow(self._shapes_label, self.shapes)
        self.planes = combo_box(
            "planes",
            "All slices and time points, only those that the sliders stand at, or some slices",
            (_ALL, _ONE, _SOME),
        )
        self._planes_label = QLabel("Slices")
        form.addRow(self._planes_label, self.planes)
        self.first_slice, self.last_slice = QSpinBox(), QSpinBox()
        explain(self.first_slice, "first_slice", "The first slice that is segmented")
        explain(self.last_slice, "last_slice", "The last slice that is segmented")
        self._range = QWidget()
        row = side_by_side(self.first_slice, QLabel("to"), self.last_slice, stretch=1)
        row.setStretch(2, 1)
        self._range.setLayout(row)
        self._range_label = QLabel("From")
        form.addRow(self._range_label, self._range)
        for box in (self.first_slice, self.last_slice):
            box.setMinimumWidth(_NUMBER_WIDTH)
            box.valueChanged.connect(lambda _: self.changed.emit())
        for combo in (self.where, self.planes):
            choose(combo, self._settings.get(f"segment.{combo.objectName()}", ""))
            combo.activated.connect(self._picked)
        self.shapes.activated.connect(self._picked)
        return form

    def _picked(self, *_: Any) -> None:
        for combo in (self.where, self.planes):
            self._settings.set(f"segment.{combo.objectName()}", combo.currentData())
        self._settings.save_soon()
        self.changed.emit()

    def _buttons(self) -> QHBoxLayout:
        self.segment = explain(QPushButton("Segment"), "segment", _TIPS["segment_view"])
        self.segment.setStyleSheet("font-weight: bold; padding: 5px;")
        self.cancel = explain(
            QPushButton("Cancel"), "cancel", "Stop; labels that were there before stay as they are"
        )
        self.cancel.setStyleSheet("padding: 5px;")
        return side_by_side(self.segment, self.cancel)

    def _checking(self) -> QWidget:
        self.checking = QWidget()
        self.previous = explain(QPushButton("Previous"), "previous_object")
        self.next = explain(QPushButton("Next"), "next_object")
        self.toggle = explain(QPushButton("Show/hide"), "toggle_labels")
        self.accept = explain(QPushButton("Accept"), "accept")
        row = side_by_side(self.previous, self.next, self.toggle, self.accept, stretch=0)
        row.setSpacing(4)
        for button in (self.previous, self.next, self.toggle, self.accept):
            button.setMinimumWidth(40)
        self.checking.setLayout(row)
        return self.checking

    def name_keys(self, text: Callable[[str], str]) -> None:
        """Say in the tooltips which key does the same."""
        for button in (self.previous, self.next, self.toggle, self.accept):
            name = button.objectName()
            button.setToolTip(_TIPS[name] + text(name))
        key = text("segment_view").replace("Key:", "Key for what you see now:")
        self.segment.setToolTip(_TIPS["segment_view"] + key)

    def showEvent(self, event: Any) -> None:  # noqa: N802 (Qt's name)
        super().showEvent(event)
        # Not before: napari's style has a font of its own.
        align_labels(self._forms)

    # State

    @property
    def where_choice(self) -> str:
        return str(self.where.currentData())

    @property
    def planes_choice(self) -> str:
        """`all` where the image has no slices."""
        return "all" if self.planes.isHidden() else str(self.planes.currentData())

    @property
    def slices(self) -> tuple[int, int]:
        """The first and the last slice of `range`."""
        return self.first_slice.value(), self.last_slice.value()

    def list_models(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Offer the models of the library; damaged ones are shown, but cannot be chosen."""
        self.model.clear()
        for entry in entries:
            dim = f" ({entry['dim']}D)" if entry["dim"] else ""
            self.model.addItem(entry["name"] + dim, entry["name"])
            if entry["error"] is not None:
                item = self.model.model().item(self.model.count() - 1)  # type: ignore[attr-defined]
                item.setEnabled(False)
                item.setToolTip(str(entry["error"]))

    def show_model(self, entry: Mapping[str, Any], card: str) -> None:
        self.card.setText(card)
        show_text(self.title, str(entry.get("title") or ""))
        self.model.setToolTip(card or "The model that finds the objects")
        self.card_button.setEnabled(bool(card))
        self.adjust.setVisible(entry.get("task") == "instance")

    def list_shapes(self, layers: Sequence[Any]) -> None:
        chosen = self.shapes.currentData()
        self.shapes.clear()
        for layer in layers:
            self.shapes.addItem(layer.name, layer)
        if layers:
            place = layers.index(chosen) if chosen in layers else len(layers) - 1
            self.shapes.setCurrentIndex(place)

    def show_dimensions(
        self, entry: Mapping[str, Any], image: ImageChoice, in_3d: bool = False
    ) -> None:
        """Say how slices and frames are taken, and offer the choices that make sense."""
        slices, frames = image.size_of("Z"), image.size_of("T")
        text = ""
        if entry.get("dim") == 2 and slices > 1:
            text = f"2D model: each of the {slices} slices on its own."
        elif entry.get("dim") == 3:
            text = "3D model: all slices together."
            if slices == 1:
                text = "3D model, but the image has no Z axis: choose a 2D model."
        if frames > 1:
            text += f" {frames} time points, one by one."
        if self.where_choice == "view" and in_3d:
            text += f" {ALL_IS_SEEN}"
        show_text(self.dimensions, text.strip())
        self._offer_planes(frames, slices, entry.get("dim") == 3)
        drawn = self.where_choice == "shapes"
        self.shapes.setVisible(drawn)
        self._shapes_label.setVisible(drawn)

    def _offer_planes(self, frames: int, slices: int, together: bool) -> None:
        """The choices of slices that this image has for a model that takes them `together`."""
        offered = [_ALL]
        offered += [_ONE] if frames > 1 or (slices > 1 and not together) else []
        offered += [_SOME] if slices > 1 else []
        if [self.planes.itemData(i) for i in range(self.planes.count())] != [
            data for _, data in offered
        ]:
            self.planes.clear()
            for text, data in offered:
                self.planes.addItem(text, data)
            choose(self.planes, self._settings.get("segment.planes", "all"))
        shown = len(offered) > 1
        self.planes.setVisible(shown)
        self._planes_label.setVisible(shown)
        ranged = shown and self.planes.currentData() == "range"
        self._range.setVisible(ranged)
        self._range_label.setVisible(ranged)
        if self.last_slice.maximum() != slices - 1:
            for box, value in ((self.first_slice, 0), (self.last_slice, slices - 1)):
                box.blockSignals(True)
                box.setMaximum(slices - 1)
                box.setValue(value)
                box.blockSignals(False)

    def show_running(self, running: bool, ready: bool) -> None:
        self.segment.setVisible(not running)
        self.segment.setEnabled(ready and not running)
        self.cancel.setVisible(running)
        self.thresholds.setEnabled(not running)

    def show_labels(self, labels: Any) -> None:
        """Offer to look at labels, and to accept them if a model made them; None: nothing."""
        self.checking.setVisible(labels is not None)
        if labels is not None:
            self.accept.setEnabled(is_result(labels))
            self.accept.setText("Accepted" if is_accepted(labels) else "Accept")
