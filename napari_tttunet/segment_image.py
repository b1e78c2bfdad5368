"""Which image is segmented, what its axes are, and which of its channels."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QLabel, QLineEdit, QWidget

from napari_tttunet.axes import data_shape, guess_axes, parse_axes
from napari_tttunet.dock_work import Cleanup
from napari_tttunet.layers import layer_spacing
from napari_tttunet.widgets import (
    combo_box,
    explain,
    form_layout,
    side_by_side,
    small_button,
    text_label,
)
from tttunet.errors import ImageError

_ALL = "All channels"


class ImageChoice(QWidget):
    """The image (that of the active layer, or a pinned one), its axes, and its channel.

    Args:
        viewer: napari's viewer.
        cleanup: of the dock; ends the connections to the viewer.

    Attributes:
        changed: another image, other axes, another channel, or other data in it.
        layer: the chosen Image layer, or None.
        problem: what is wrong with the axes, as message and hint; else empty.
    """

    changed = Signal()

    def __init__(self, viewer: Any, cleanup: Cleanup, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self.layer: Any = None
        self.problem: tuple[str, str] = ("", "")
        self._axes = ""
        self._as_rgb = True
        self._typed: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self._watching = Cleanup()
        self._build()
        layers = viewer.layers
        for emitter in (layers.events.inserted, layers.events.removed, layers.events.reordered):
            cleanup.connect(emitter, self._list_layers)
        cleanup.connect(layers.selection.events.active, self._follow)
        cleanup.add(self._watching.close)
        self._list_layers()

    def _build(self) -> None:
        self.form = form = form_layout(self)
        self.image = combo_box(
            "image",
            "The image to segment. It follows the selected layer until you choose one here.",
        )
        self.image.activated.connect(self._pick)
        self.pin = small_button(
            "Pin",
            "pin_image",
            "Pinned: keep this image whatever layer is selected. "
            "Not pinned: follow the selected layer.",
            checkable=True,
        )
        self.pin.toggled.connect(self._follow)
        form.addRow("Image", side_by_side(self.image, self.pin))
        self.axes_text = explain(
            QLineEdit(),
            "axes",
            "What each axis of the image is, one letter each: T time, C channel, Z, Y, X. "
            "Change it if it is wrong.",
        )
        self.axes_text.textEdited.connect(self._edited)
        form.addRow("Axes", self.axes_text)
        self.explanation = text_label("axes_explanation", "Where the axes come from")
        form.addRow(self.explanation)
        self.channel_choice = combo_box("channel", "The channel that shows what is to be found.")
        self.channel_choice.activated.connect(lambda _: self.changed.emit())
        self._channel_label = QLabel("Channel")
        form.addRow(self._channel_label, self.channel_choice)

    # What was chosen

    @property
    def axes(self) -> str:
        """One letter per axis; empty if there is no image or the text is wrong."""
        return self._axes

    @property
    def channel(self) -> str:
        """Number of the one channel; empty: all."""
        return str(self.channel_choice.currentData() or "")

    def size_of(self, letter: str) -> int:
        """Size of an axis; 1 if there is none of this name."""
        place = self._axes.find(letter)
        return data_shape(self.layer)[place] if place >= 0 and self.layer is not None else 1

    @property
    def unit(self) -> str | None:
        """`micrometer`, `millimeter`, or None: the image has no physical size."""
        return layer_spacing(self.layer, self._axes).unit if self.layer is not None else None

    def set_model(self, entry: Mapping[str, Any]) -> None:
        """The channels that the model takes decide what is offered."""
        rgb = entry.get("channels") == "rgb"
        if rgb != self._as_rgb:
            self._as_rgb = rgb
            self._list_channels()

    # Layers

    def _list_layers(self, *_: Any) -> None:
        from napari.layers import Image

        found = [layer for layer in self._viewer.layers if isinstance(layer, Image)]
        ours = [layer for layer in found if not _is_made_here(layer)]
        self.image.clear()
        for layer in ours:
            self.image.addItem(layer.name, layer)
        self.image.setEnabled(bool(ours))
        if self.layer not in ours:
            self.pin.setChecked(False)
            self._choose(None)
        self._follow()

    def _follow(self, *_: Any) -> None:
        layers = [self.image.itemData(i) for i in range(self.image.count())]
        active = self._viewer.layers.selection.active
        if not self.pin.isChecked() and active in layers:
            self._choose(active)
        elif self.layer is None and layers:
            self._choose(layers[-1])
        if self.layer is not None:
            self.image.setCurrentIndex(layers.index(self.layer))

    def _pick(self, index: int) -> None:
        self._choose(self.image.itemData(index))
        self.pin.setChecked(True)

    def _choose(self, layer: Any) -> None:
        if layer is self.layer:
            return
        self._watching.close()
        self.layer = layer
        if layer is not None:
            for name in ("data", "axis_labels", "units", "scale"):
                if hasattr(layer.events, name):
                    self._watching.connect(getattr(layer.events, name), self._show)
            self._watching.connect(layer.events.name, self._renamed)
        self._show()

    def _renamed(self, *_: Any) -> None:
        for i in range(self.image.count()):
            self.image.setItemText(i, self.image.itemData(i).name)

    # Axes and channels

    def _show(self, *_: Any) -> None:
        layer = self.layer
        self.axes_text.setEnabled(layer is not None)
        if layer is None:
            self.axes_text.clear()
            self._settle("", "", "")
            return
        text = self._typed.get(layer)
        if text is not None:
            self.axes_text.setText(text)
            self._parse(text)
            return
        try:
            guess = guess_axes(layer, self._viewer.dims.axis_labels)
        except ImageError as error:
            self.axes_text.clear()
            self._settle("", error.message, error.hint)
            return
        self.axes_text.setText(guess.axes)
        sizes = ", ".join(
            f"{letter} {size}" for letter, size in zip(guess.axes, data_shape(layer), strict=False)
        )
        doubt = "" if guess.certain else " Please check."
        self.explanation.setText(f"{sizes}. {guess.reason}.{doubt}")
        self._settle(guess.axes, "", "")

    def _edited(self, text: str) -> None:
        if self.layer is None:
            return
        if text.strip():
            self._typed[self.layer] = text
            self._parse(text)
        else:  # emptied: guess again
            self._typed.pop(self.layer, None)
            self._show()

    def _parse(self, text: str) -> None:
        try:
            axes = parse_axes(text, self.layer)
        except ImageError as error:
            self._settle("", error.message, error.hint)
            return
        sizes = ", ".join(
            f"{letter} {size}" for letter, size in zip(axes, data_shape(self.layer), strict=False)
        )
        self.explanation.setText(f"{sizes}. As you typed.")
        self._settle(axes, "", "")

    def _settle(self, axes: str, message: str, hint: str) -> None:
        self._axes, self.problem = axes, (message, hint)
        self.axes_text.setStyleSheet("border: 1px solid #d9534f;" if message else "")
        if message or self.layer is None:
            self.explanation.clear()
        self.explanation.setVisible(bool(self.explanation.text()))
        self._list_channels()
        self.changed.emit()

    def _list_channels(self) -> None:
        count = self.size_of("C")
        before = self.channel_choice.currentText()
        self.channel_choice.clear()
        shown = count > 1
        if shown:
            if count == 3 or not self._as_rgb:
                self.channel_choice.addItem(_ALL, "")
            own = self.layer.metadata.get("tttunet") or {}
            names = own.get("channel_names") or self.layer.metadata.get("channel_names") or ()
            for number in range(count):
                name = f": {names[number]}" if len(names) == count else ""
                self.channel_choice.addItem(f"{number}{name}", str(number))
            self.channel_choice.setCurrentIndex(max(self.channel_choice.findText(before), 0))
        self.channel_choice.setVisible(shown)
        self._channel_label.setVisible(shown)


def _is_made_here(layer: Any) -> bool:
    """Whether a layer shows the plugin's probabilities or uncertainty."""
    own = layer.metadata.get("tttunet")
    return isinstance(own, dict) and "shows" in own
