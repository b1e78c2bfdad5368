"""A legend of labels that are classes: the colour, the name and the size of each."""

from __future__ import annotations

from typing import Any

import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import (
    QApplication,
    QHeaderView,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from napari_tttunet.axes import data_shape
from napari_tttunet.class_labels import classes_of, count_labels, pixel_size, size_text
from napari_tttunet.dock_work import Background, Cleanup, delayed
from napari_tttunet.geometry import full_bounds
from napari_tttunet.measure import axes_of_labels
from napari_tttunet.regions import plane_bounds
from napari_tttunet.widgets import explain, text_label
from tttunet.errors import ImageError

#: Milliseconds without a change before the labels are counted again.
_PAUSE = 400
#: Rows that are shown without a scroll bar: the 13 organs of the abdomen.
_MOST_ROWS = 14
_SWATCH = 12
_NONE = "\N{EN DASH}"
_PLACE_EVENTS = ("scale", "translate", "rotate", "shear", "affine", "units")


class Legend(QWidget):
    """Follows one Labels layer; hidden for labels that are no classes.

    Labels are counted in a thread, again whenever they change; of a film, the frame that the
    slider stands at counts.

    Args:
        viewer: napari's viewer.

    Attributes:
        counts: pixels by label as they were counted last; None: not yet.
    """

    def __init__(self, viewer: Any, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._layer: Any = None
        self._axes = ""
        self._busy = self._stale = False
        self._seen: tuple[Any, ...] = ()
        self.counts: dict[int, int] | None = None
        self._background = Background(self)
        self._timer = delayed(self, _PAUSE, self._count)
        self._of_layer = Cleanup()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        self.title = text_label("legend_title", "What the numbers of the legend are of")
        self.rows = explain(
            QTreeWidget(), "legend", "What was found. Click a name to paint with its label."
        )
        self._arrange_rows()
        layout.addWidget(self.title)
        layout.addWidget(self.rows)
        self.rows.itemClicked.connect(self._clicked)
        cleanup = Cleanup(self)
        cleanup.add(self._of_layer.close)
        cleanup.connect(viewer.dims.events.point, self._moved)
        self.hide()

    def _arrange_rows(self) -> None:
        rows = self.rows
        rows.setColumnCount(2)
        rows.setHeaderHidden(True)
        rows.setRootIsDecorated(False)
        rows.setUniformRowHeights(True)
        rows.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        header = rows.header()
        header.setStretchLastSection(False)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        header.setSectionResizeMode(1, QHeaderView.ResizeMode.ResizeToContents)

    # Which labels

    def follow(self, layer: Any) -> None:
        """Show the classes of a Labels layer; None: hide."""
        if layer is not None and not classes_of(layer):
            layer = None
        if layer is self._layer:
            return
        self._of_layer.close()
        self._layer, self.counts, self._seen = layer, None, self._view
        self.setVisible(layer is not None)
        if layer is None:
            self._timer.stop()
            self.rows.clear()
            return
        try:
            self._axes = axes_of_labels(layer, self._viewer.dims.axis_labels)
        except ImageError:
            self.hide()
            return
        events = layer.events
        for event in (events.data, events.paint):
            self._of_layer.connect(event, self._changed)
        # Undo, and `refresh` after a change of the array, are told by this alone.
        self._of_layer.connect(events.set_data, self._drawn)
        for name in _PLACE_EVENTS:
            self._of_layer.connect(getattr(events, name), self._show)
        self._of_layer.connect(events.colormap, self._show)
        self._of_layer.connect(events.selected_label, self._mark)
        self._show()
        self._count()

    def _changed(self, *_: Any) -> None:
        self._timer.start()

    def _drawn(self, *_: Any) -> None:
        seen = self._view
        if seen == self._seen:  # else only another slice of the same labels is shown
            self._timer.start()
        self._seen = seen

    @property
    def _view(self) -> tuple[Any, ...]:
        dims = self._viewer.dims
        return tuple(dims.point), tuple(dims.order), dims.ndisplay

    def _moved(self, *_: Any) -> None:
        if self._layer is not None and self._frames > 1:
            self._timer.start()

    @property
    def _frames(self) -> int:
        place = self._axes.find("T")
        return data_shape(self._layer)[place] if place >= 0 else 1

    # Counting

    def _count(self) -> None:
        layer = self._layer
        if layer is None:
            return
        if QApplication.mouseButtons():
            self._timer.start()  # not in the middle of a stroke
            return
        if self._busy:
            self._stale = True
            return
        bounds = list(full_bounds(data_shape(layer)))
        if self._frames > 1:
            try:
                here = plane_bounds(self._viewer, layer, self._axes)
            except ImageError:
                return  # the slider stands beside the labels
            bounds[self._axes.index("T")] = here[self._axes.index("T")]
        self._busy, self._stale = True, False
        self._background.run_steps(
            count_labels(layer.data, tuple(bounds)),
            lambda counts: self._counted(layer, counts),
            lambda _: self._counted(layer, None),
        )

    def _counted(self, layer: Any, counts: dict[int, int] | None) -> None:
        self._busy = False
        if layer is self._layer and counts is not None:
            self.counts = counts
            self._show()
        if self._stale or layer is not self._layer:
            self._timer.start()

    # Showing

    def _show(self, *_: Any) -> None:
        layer = self._layer
        if layer is None:
            return
        names, counts = classes_of(layer), self.counts or {}
        size, unit = pixel_size(layer, self._axes)
        self.title.setText("Sizes, at this time point" if self._frames > 1 else "Sizes")
        self.rows.clear()
        for value in sorted({*names, *counts}):
            count = counts.get(value, 0)
            text = size_text(count * size, unit) if count else _NONE
            row = QTreeWidgetItem([names.get(value, f"label {value}"), text])
            row.setData(0, Qt.ItemDataRole.UserRole, value)
            row.setIcon(0, _swatch(layer.colormap.map(value)))
            row.setTextAlignment(1, Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            row.setDisabled(self.counts is not None and not count)
            row.setToolTip(0, f"Label {value}")
            self.rows.addTopLevelItem(row)
        height = self.rows.sizeHintForRow(0) * min(self.rows.topLevelItemCount(), _MOST_ROWS)
        self.rows.setFixedHeight(height + 2 * self.rows.frameWidth())
        self._mark()

    def _mark(self, *_: Any) -> None:
        """Select the row of the label that is painted with."""
        chosen = None if self._layer is None else self._layer.selected_label
        for place in range(self.rows.topLevelItemCount()):
            row = self.rows.topLevelItem(place)
            if row is not None:
                row.setSelected(row.data(0, Qt.ItemDataRole.UserRole) == chosen)

    def _clicked(self, row: QTreeWidgetItem, _: int) -> None:
        if self._layer is not None:
            self._layer.selected_label = row.data(0, Qt.ItemDataRole.UserRole)


def _swatch(colour: Any) -> QIcon:
    picture = QPixmap(_SWATCH, _SWATCH)
    picture.fill(QColor.fromRgbF(*(float(part) for part in np.ravel(colour))))
    return QIcon(picture)
