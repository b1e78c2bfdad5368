"""The Results dock: the objects of a Labels layer as a table and a histogram, and their scores."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels
from qtpy.QtWidgets import QApplication, QWidget

from napari_tttunet.axes import data_shape, parse_axes
from napari_tttunet.dock_work import Cleanup, delayed, weakly
from napari_tttunet.layers import real_viewer
from napari_tttunet.measure import Plan, axes_of_labels, channels_under, plan_measurement
from napari_tttunet.object_places import click_listener, go_to, label_at, row_of_label
from napari_tttunet.object_table import number_text
from napari_tttunet.result_layers import is_preview
from napari_tttunet.results_comparison import is_comparison, is_covered
from napari_tttunet.results_form import ResultsForm
from napari_tttunet.session import session
from napari_tttunet.settings import Settings
from tttunet.engine.messages import Cancelled, Done, Progress, Queued, Started
from tttunet.errors import TTTUNetError
from tttunet.measuring import ObjectTable

if TYPE_CHECKING:
    import napari.viewer

#: Layers of at most so many pixels are measured whenever they change.
AUTOMATIC_PIXELS = 2**23
#: Milliseconds without a change before labels are measured again.
_PAUSE = 400
_PLACE_EVENTS = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")
_EMPTY = "Segment an image, or open or draw labels, to begin."


class ResultsDock(QWidget):
    """Follows the active Labels layer of a viewer.

    Args:
        napari_viewer: its viewer.
    """

    def __init__(self, napari_viewer: napari.viewer.Viewer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer = real_viewer(napari_viewer)
        self._settings = Settings()
        self._layer: Any = None
        self._layers: list[Any] = []
        self._images: list[Any] = []
        #: What was measured last: its circumstances, and the checksum of its labels.
        self._known: tuple[Any, str] | None = None
        self._number = 0
        self._busy_choosing = False
        #: Outlives the widget: whoever still calls can ask it.
        self._state: dict[str, Any] = {"closed": False, "job": None}
        self._timer = delayed(self, _PAUSE, self._measure_if_changed)
        self._cleanup = Cleanup(self)
        self._of_layer, self._of_names = Cleanup(), Cleanup()
        self.form = ResultsForm(self._viewer, self._settings, self)
        self._connect()
        self._list_layers()
        self._on_active()

    @property
    def table(self) -> ObjectTable | None:
        return self.form.view.objects.table

    @property
    def busy(self) -> bool:
        return self._state["job"] is not None

    def _connect(self) -> None:
        form = self.form
        form.labels.activated.connect(self._on_labels)
        form.image.activated.connect(self._on_image)
        form.extent.activated.connect(self._on_extent)
        form.axes.editingFinished.connect(self._on_axes)
        form.refresh.clicked.connect(self._on_refresh)
        form.view.chosen.connect(self._go_to)
        form.column.activated.connect(self._on_column)
        form.histogram.chosen.connect(self._on_bar)
        form.show_all.clicked.connect(partial(form.histogram.choose, None))
        layers = self._viewer.layers
        for event in (layers.events.inserted, layers.events.removed, layers.events.reordered):
            self._cleanup.connect(event, self._list_layers)
        self._cleanup.connect(layers.selection.events.active, self._on_active)
        callbacks = self._viewer.mouse_drag_callbacks
        on_drag = click_listener(weakly(self._clicked))
        callbacks.append(on_drag)
        self._cleanup.add(partial(_take_out, callbacks, on_drag))
        self._cleanup.add(self._of_layer.close)
        self._cleanup.add(self._of_names.close)
        self._cleanup.add(partial(_shut, self._state))

    # Which labels

    def _list_layers(self, event: Any = None) -> None:
        self._layers = [
            layer
            for layer in self._viewer.layers
            if isinstance(layer, Labels) and not is_comparison(layer) and not is_preview(layer)
        ]
        self._of_names.close()
        for layer in self._viewer.layers:
            self._of_names.connect(layer.events.name, self._list_layers)
        self.form.fill(self.form.labels, [layer.name for layer in self._layers])
        if self._layer not in self._layers:
            self._follow(self._layers[-1] if self._layers else None)
        self._mark_layer()
        self._list_images()
        self.form.scores.list_truths()

    def _on_active(self, event: Any = None) -> None:
        active = self._viewer.layers.selection.active
        if active in self._layers and active is not self._layer:
            self._follow(active)

    def _on_labels(self, index: int) -> None:
        if 0 <= index < len(self._layers):
            self._follow(self._layers[index])

    def _follow(self, layer: Any) -> None:
        self._of_layer.close()
        self.cancel()
        self._layer, self._known = layer, None
        self.form.settle()
        self.form.export.name = "" if layer is None else layer.name
        self._show_table(None)
        if layer is not None:
            self._listen_to(layer)
            try:
                axes = axes_of_labels(layer, self._viewer.dims.axis_labels)
            except TTTUNetError as error:
                self.form.tell(error.message, error.hint)
                axes = ""
            self.form.axes.setText(axes)
            self._mark_layer()
            self._list_images()
        self._on_what()

    def _listen_to(self, layer: Any) -> None:
        events = layer.events
        pairs = [(getattr(events, name), self._on_moved) for name in _PLACE_EVENTS]
        pairs += [(event, self._on_changed) for event in (events.data, events.paint)]
        # Undo, and `refresh` after a change of the array, are told by this alone.
        pairs.append((events.set_data, self._on_drawn))
        pairs.append((events.selected_label, self._on_selected_label))
        for event, callback in pairs:
            self._of_layer.connect(event, callback)

    def _mark_layer(self) -> None:
        index = self._layers.index(self._layer) if self._layer in self._layers else -1
        self.form.labels.setCurrentIndex(index)

    def _list_images(self) -> None:
        """Offer the images that have a pixel under every pixel of the labels."""
        chosen = self._image()
        first = not self._images
        wanted = self._settings.get("results.brightness", True)
        self._images = [
            layer
            for layer in self._viewer.layers
            if isinstance(layer, Image)
            and self._layer is not None
            and channels_under(
                self._layer, self.form.axes.text(), layer, self._viewer.dims.axis_labels
            )
        ]
        self.form.fill(self.form.image, ["none", *(layer.name for layer in self._images)])
        if chosen in self._images:
            self.form.image.setCurrentIndex(self._images.index(chosen) + 1)
        elif first and self._images and wanted:
            self.form.image.setCurrentIndex(len(self._images))
        self.form.image.setEnabled(bool(self._images))
        if self._image() is not chosen and self._layer is not None:
            self._on_changed()

    def _image(self) -> Any:
        index = self.form.image.currentIndex() - 1
        return self._images[index] if 0 <= index < len(self._images) else None

    def _on_image(self) -> None:
        self._remember("results.brightness", self._image() is not None)
        self._on_what()

    def _on_extent(self) -> None:
        self._remember("results.volumes", self._volumes)
        self._on_what()

    @property
    def _volumes(self) -> bool:
        return bool(self.form.extent.currentData())

    def _on_axes(self) -> None:
        if self._layer is None:
            return
        try:
            axes = parse_axes(self.form.axes.text(), self._layer)
        except TTTUNetError as error:
            self.form.tell(error.message, error.hint)
            return
        self.form.settle()
        self.form.axes.setText(axes)
        self._list_images()
        self._on_what()

    def _on_what(self) -> None:
        """Another layer, or something else of it, is to be measured."""
        layer, axes = self._layer, self.form.axes.text()
        deep = layer is not None and "Z" in axes and len(axes) == layer.ndim
        deep = deep and data_shape(layer)[axes.index("Z")] > 1
        self.form.show_extent(deep)
        self.form.enable(layer is not None, bool(self.table))
        self.form.scores.set_labels(layer, axes, self._volumes)
        if layer is None:
            self.form.summary.setText(_EMPTY)
        elif self._small():
            self.measure()
        else:
            self.form.summary.setText("A large layer: press Refresh to measure its objects.")

    def _small(self) -> bool:
        return int(np.prod(data_shape(self._layer), dtype=np.int64)) <= AUTOMATIC_PIXELS

    # When labels change

    def _on_changed(self, event: Any = None) -> None:
        if self._layer is None:
            return
        self.form.scores.labels_changed(self._layer)
        if self._small():
            self._timer.start()
        elif self.table is not None:
            self.form.summary.setText("The labels have changed since: press Refresh.")

    def _on_moved(self, event: Any = None) -> None:
        self.form.scores.list_truths()
        self._on_changed()

    def _on_drawn(self, event: Any = None) -> None:
        if self._layer is not None and self._small():
            self._timer.start()

    def _measure_if_changed(self) -> None:
        if self.busy or QApplication.mouseButtons():
            self._timer.start()  # not in the middle of a stroke
        elif self._layer is not None:
            self.measure(only_if_changed=True)

    # Measuring

    def _on_refresh(self) -> None:
        if self.busy:
            self.cancel()
            self.form.summary.setText("Cancelled: press Refresh to measure.")
        else:
            self.measure()

    def measure(self, only_if_changed: bool = False) -> None:
        """Let the engine measure the objects.

        Args:
            only_if_changed: do nothing if pixels and place are those that were measured last.
        """
        self.cancel()
        if self._layer is None:
            return
        self.form.settle()
        self._list_images()  # any of them may have been moved
        try:
            plan = plan_measurement(
                self._layer,
                self.form.axes.text(),
                self._volumes,
                self._image(),
                self._viewer.dims.axis_labels,
            )
        except TTTUNetError as error:
            self._show_table(None)
            self.form.tell(error.message, error.hint)
            return
        known = self._known if only_if_changed else None
        checksum = known[1] if known and known[0] == plan.circumstances else ""
        channels = [(channel.name, channel) for channel in plan.channels]
        try:
            self._state["job"] = session().engine.measure(
                plan.labels,
                plan.grid,
                channels,
                known=checksum if self._small() else None,
                on_event=self._listener(plan, quiet=only_if_changed),
            )
        except RuntimeError as error:
            self.form.tell("The engine has ended.", "Restart napari.", str(error))
            return
        if not only_if_changed:
            self.form.summary.setText("Measuring ...")
        self.form.show_busy(True)

    def cancel(self) -> None:
        """Stop measuring; the table stays as it is."""
        self._number += 1
        _stop(self._state)
        self._timer.stop()
        self.form.show_busy(False)

    def _listener(self, plan: Plan, quiet: bool) -> Callable[[Any, Any], None]:
        """Neither keeps this dock alive nor disturbs a later measurement."""
        dock, number = weakref.ref(self), self._number
        circumstances = plan.circumstances

        def hear(_: Any, event: Any) -> None:
            found = dock()
            if found is None or found._number != number or found._state["closed"]:
                return
            if isinstance(event, Done):
                found._on_measured(circumstances, event.result)
            elif isinstance(event, Cancelled):  # the engine was closed
                found.cancel()
            elif hasattr(event, "message") and hasattr(event, "hint"):  # failed or lost
                found._on_failed(event)
            else:
                found._on_progress(event, quiet)

        return hear

    def _on_progress(self, event: Any, quiet: bool) -> None:
        if isinstance(event, Progress):
            self.form.show_progress(event.fraction)
        elif quiet:
            return
        elif isinstance(event, Queued) and event.ahead:
            self.form.summary.setText("Waiting for another job ...")
        elif isinstance(event, Started):
            words = "Starting the engine ..." if event.cold else "Measuring ..."
            self.form.summary.setText(words)

    def _on_measured(self, circumstances: Any, result: dict[str, Any]) -> None:
        self._state["job"] = None
        self.form.show_busy(False)
        checksum = result["checksum"]
        self._known = None if checksum is None else (circumstances, checksum)
        if result["changed"]:
            self._show_table(result["table"])

    def _on_failed(self, event: Any) -> None:
        self.cancel()
        self.form.summary.clear()
        self.form.tell(event.message, event.hint, getattr(event, "details", ""))

    # Showing

    def _show_table(self, table: ObjectTable | None) -> None:
        form = self.form
        form.view.set_table(table)
        columns = () if table is None else table.columns[1:]
        form.fill(form.column, [column.header for column in columns])
        if table is not None:
            wanted = self._settings.get("results.column", table.size_key)
            if wanted in ("area", "volume"):
                wanted = table.size_key
            keys = [column.key for column in columns]
            form.column.setCurrentIndex(keys.index(wanted if wanted in keys else table.size_key))
        self._show_column()
        if table is not None and self._layer is not None:
            self._on_selected_label()
        form.enable(self._layer is not None, bool(table))

    def _show_column(self) -> None:
        values = self._values()
        self.form.histogram.set_values(np.zeros(0) if values is None else values)
        self.form.view.keep(None)
        self._summarise()

    def _values(self) -> np.ndarray | None:
        index = self.form.column.currentIndex()
        if self.table is None or index < 0:
            return None
        return self.table.values[self.table.columns[index + 1].key]

    def _on_column(self, index: int) -> None:
        if self.table is not None:
            self._remember("results.column", self.table.columns[index + 1].key)
            self._show_column()
            self._on_selected_label()

    def _on_bar(self, span: tuple[float, float, bool] | None) -> None:
        values = self._values()
        if values is None:
            return
        if span is None:
            self.form.histogram.forget()
            self.form.view.keep(None)
        else:
            low, high, last = span
            self.form.view.keep((values >= low) & ((values < high) | (last & (values <= high))))
        self._summarise()
        self._on_selected_label()

    def _summarise(self) -> None:
        table, values = self.table, self._values()
        order = self.form.view.objects.order
        filtered = table is not None and len(order) < len(table)
        self.form.show_all.setVisible(filtered)
        if table is None or values is None or self._layer is None:
            self.form.summary.clear()
        elif not len(table):
            self.form.summary.setText(
                f"No objects in '{self._layer.name}': segment its image or draw some."
            )
        else:
            column = table.columns[self.form.column.currentIndex() + 1]
            shown = values[order]
            unit = f" {column.unit}" if column.unit else ""
            mean, median = number_text(float(shown.mean())), number_text(float(np.median(shown)))
            count = f"{len(order)} of {len(table)}" if filtered else str(len(table))
            plural = "" if len(table) == 1 else "s"
            self.form.summary.setText(
                f"{count} object{plural} \u00b7 {column.title}: mean {mean}{unit}, "
                f"median {median}{unit}"
            )

    # Between the table and the canvas

    def _go_to(self, source: int) -> None:
        """Select an object in its layer and move the viewer there."""
        table, layer, viewer = self.table, self._layer, self._viewer
        if table is None or layer is None:
            return
        self._busy_choosing = True
        try:
            layer.selected_label = int(table.values["label"][source])
            go_to(viewer, layer, table.centres[source])
        finally:
            self._busy_choosing = False

    def _on_selected_label(self, event: Any = None) -> None:
        """Go to the row of the label that is selected in the layer."""
        table = self.table
        if self._busy_choosing or table is None or self._layer is None:
            return
        row = row_of_label(self._viewer, self._layer, table, self._layer.selected_label)
        self.form.view.choose(row)

    def _clicked(self, event: Any) -> None:
        """A click on the canvas, which is not painting or drawing, chooses the object there."""
        layer, active = self._layer, self._viewer.layers.selection.active
        painting = active is not None and str(getattr(active, "mode", "pan_zoom")) != "pan_zoom"
        if layer is None or painting or not (layer.visible or is_covered(layer)):
            return
        label = label_at(layer, event)
        if label:
            layer.selected_label = label
            self._on_selected_label()

    def _remember(self, name: str, value: Any) -> None:
        self._settings.set(name, value)
        self._settings.save_soon()


# What outlives the dock


def _stop(state: dict[str, Any]) -> None:
    if state["job"] is not None:
        state["job"].cancel()
        state["job"] = None


def _shut(state: dict[str, Any]) -> None:
    state["closed"] = True
    _stop(state)


def _take_out(callbacks: list[Any], callback: Any) -> None:
    if callback in callbacks:
        callbacks.remove(callback)
