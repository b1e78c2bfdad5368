"""The folded parts of the Segment dock: thresholds and options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QCheckBox,
    QDoubleSpinBox,
    QLabel,
    QSizePolicy,
    QSlider,
    QSpinBox,
    QWidget,
)

from napari_tttunet.layers import levels, suggest_level
from napari_tttunet.settings import Settings
from napari_tttunet.widgets import (
    choose,
    combo_box,
    device_name,
    explain,
    form_layout,
    side_by_side,
    text_label,
)
from tttunet.errors import ImageError

#: Per threshold of the decoding: label, tooltip, lowest and highest value, whole numbers.
_SLIDERS: dict[str, tuple[str, str, float, float, bool]] = {
    "foreground": (
        "Threshold",
        "How sure the network must be that a pixel belongs to an object. "
        "Lower: larger and more objects.",
        0.05,
        0.95,
        False,
    ),
    "prominence": (
        "Joining",
        "How readily touching objects are taken for one. Lower: more are split.",
        0.02,
        0.9,
        False,
    ),
    "confidence": (
        "Certainty",
        "Objects that the network is less sure of are left out. Lower: more objects.",
        0.0,
        0.98,
        False,
    ),
    "min_size": ("Smallest", "Objects of fewer pixels are left out.", 0, 500, True),
}
#: How TTT layers adapt: text and mode, see `tttunet.layers.adaptation.Mode`.
_ADAPTATION = (
    ("To every tile anew", "tile"),
    ("On through the whole image", "image"),
    ("In both directions", "both"),
    ("Not at all", "off"),
)
#: What a map of the adaptation shows, see `result_layers.adaptation_image`.
_ADAPTED = (
    ("What was unlike, before adapting", "before"),
    ("What stayed unlike, after it", "after"),
    ("What adapting changed", "difference"),
)
_NO_TTT = "The chosen model has no TTT layers, so it does not adapt to an image."
_ADAPTATION_TIP = (
    "How the model adjusts itself to your image while it looks at it. On the images that "
    "it was checked on, this makes no measurable difference."
)
_MAP_TIP = (
    "Adds a coarse image layer that is bright where the image is unlike what the model knows, by "
    "its own measure. Takes somewhat longer."
)
_AUTOMATIC = "Automatic"
_STEPS = 1000


class ThresholdSliders(QWidget):
    """What decides which pixels become which object, without running the network again.

    Attributes:
        changed: the user moved a slider.
    """

    changed = Signal()

    def __init__(self, settings: Settings, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._settings, self._model = settings, ""
        self._defaults: dict[str, Any] = {}
        form = form_layout(self, indent=8)
        self.sliders: dict[str, NumberSlider] = {}
        for name, (label, tooltip, low, high, whole) in _SLIDERS.items():
            slider = explain(NumberSlider(low, high, whole), name, tooltip)
            explain(slider.slider, f"{name}_slider", tooltip)
            explain(slider.box, f"{name}_box", tooltip)
            slider.changed.connect(self._changed)
            form.addRow(label, slider)
            self.sliders[name] = slider

    def set_model(self, entry: Mapping[str, Any]) -> None:
        """Show the thresholds of a model, or what was chosen for it before."""
        self._model = str(entry.get("name", ""))
        self._defaults = dict(entry.get("decoding") or {})
        remembered: dict[str, Any] = self._settings.get(f"segment.decoding.{self._model}", {})
        for name, slider in self.sliders.items():
            value = remembered.get(name, self._defaults.get(name, slider.value))
            slider.set(value if isinstance(value, int | float) else slider.value)

    def decoding(self) -> dict[str, Any]:
        """What differs from the model's own thresholds."""
        if not self._defaults:
            return {}
        return {
            name: slider.value
            for name, slider in self.sliders.items()
            if slider.value != self._defaults.get(name)
        }

    def _changed(self) -> None:
        self._settings.set(f"segment.decoding.{self._model}", self.decoding())
        self._settings.save_soon()
        self.changed.emit()


class MoreOptions(QWidget):
    """Options that most people never need.

    Attributes:
        changed: the user changed something.
    """

    changed = Signal()

    def __init__(self, settings: Settings, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._settings = settings
        self._form = form_layout(self, indent=8)
        self.mirror = self._check(
            "mirror",
            "Average over mirrored images",
            "Looks at every place several times, mirrored (test-time augmentation): "
            "a little better, 4 times slower in 2D, 8 times in 3D.",
        )
        self.tile = explain(
            QSpinBox(),
            "tile",
            "Pixels per side of the pieces that the image is cut into. Smaller needs less memory.",
        )
        self.tile.setRange(0, 4096)
        self.tile.setSingleStep(32)
        self.tile.setSpecialValueText(_AUTOMATIC)
        self.tile.setKeyboardTracking(False)
        self.tile.setValue(settings.get("segment.tile", 0))
        self.tile.valueChanged.connect(self._changed)
        self._form.addRow("Tile size", self.tile)
        self.device = combo_box(
            "device",
            "What computes: a graphics card is much faster if there is one.",
            [(_AUTOMATIC, "auto")],
        )
        self.device.activated.connect(self._changed)
        self._form.addRow("Device", self.device)
        self.used = text_label(
            "device_used", "The device that will be used", "Shown when the engine has started"
        )
        self._form.addRow("", self.used)
        self.probabilities = self._check(
            "probabilities",
            "Also show probabilities",
            "Adds an image layer: how sure the network is that a pixel belongs to an object. "
            "Of several classes, each gets a hidden layer of its own, too.",
        )
        self.uncertainty = self._check(
            "uncertainty",
            "Also show uncertainty",
            "Adds an image layer that is bright where the network hesitates: look there first.",
        )
        self.adaptation = combo_box("adaptation", _ADAPTATION_TIP, _ADAPTATION)
        choose(self.adaptation, settings.get("segment.adaptation", "tile"))
        self.adaptation.activated.connect(self._changed)
        self._form.addRow("Adaptation", self.adaptation)
        self.adaptation_map = self._check(
            "adaptation_map", "Show where the model adapted", _MAP_TIP
        )
        self.adapted = combo_box("adapted", "What the layer shows", _ADAPTED)
        choose(self.adapted, settings.get("segment.adapted", "before"))
        self.adapted.activated.connect(self._changed)
        self._form.addRow("", self.adapted)
        self.adapted.setVisible(self.adaptation_map.isChecked())
        self.level = combo_box(
            "level", "The resolution of the pyramid that is segmented; finer takes longer."
        )
        self.level.activated.connect(lambda _: self.changed.emit())
        self._level_label = QLabel("Resolution")
        self._form.addRow(self._level_label, self.level)
        self.set_layer(None, "")

    def _check(self, name: str, text: str, tooltip: str) -> QCheckBox:
        box = explain(QCheckBox(text), name, tooltip)
        box.setChecked(self._settings.get(f"segment.{name}", False))
        box.toggled.connect(self._changed)
        self._form.addRow(box)
        return box

    def _changed(self, *_: Any) -> None:
        for box in (self.mirror, self.probabilities, self.uncertainty, self.adaptation_map):
            self._settings.set(f"segment.{box.objectName()}", box.isChecked())
        for combo in (self.adaptation, self.adapted):
            self._settings.set(f"segment.{combo.objectName()}", combo.currentData())
        self.adapted.setVisible(self.adaptation_map.isChecked())
        self._settings.set("segment.tile", self.tile.value())
        self._settings.set("segment.device", self.device.currentData())
        self._settings.save_soon()
        self.changed.emit()

    def set_model(self, entry: Mapping[str, Any]) -> None:
        """Offer what the model can do."""
        adapts = bool(entry.get("adapts", True))
        for widget, tip in (
            (self.adaptation, _ADAPTATION_TIP),
            (self.adaptation_map, _MAP_TIP),
            (self.adapted, "What the layer shows"),
        ):
            widget.setEnabled(adapts)
            widget.setToolTip(tip if adapts else _NO_TTT)

    @property
    def adaptation_mode(self) -> str:
        """How the model is to adapt."""
        return str(self.adaptation.currentData()) if self.adaptation.isEnabled() else "tile"

    @property
    def adaptation_shown(self) -> str:
        """`before`, `after` or `difference`; empty: no map is wanted."""
        wanted = self.adaptation_map.isEnabled() and self.adaptation_map.isChecked()
        return str(self.adapted.currentData()) if wanted else ""

    def tile_size(self) -> tuple[int, ...]:
        return (self.tile.value(),) if self.tile.value() else ()

    def set_devices(self, about: Mapping[str, Any]) -> None:
        """Offer the devices that the engine told of, and say which one will be used."""
        if not about:
            return
        wanted = self.device.currentData()
        if self.device.count() == 1:
            wanted = self._settings.get("segment.device", "auto")
        self.device.clear()
        self.device.addItem(_AUTOMATIC, "auto")
        for device in about.get("devices", ()):
            self.device.addItem(device_name(device, about), device)
        self.device.setCurrentIndex(max(self.device.findData(wanted), 0))
        self.show_used(about)

    def show_used(self, about: Mapping[str, Any]) -> None:
        """Which device will be used, as a sentence."""
        if about:
            chosen = self.device.currentData()
            device = about.get("device", "cpu") if chosen == "auto" else chosen
            count = about.get("threads", 1)
            threads = f", {count} thread{'s' * (count != 1)}" if device == "cpu" else ""
            self.used.setText(f"Will run on {device_name(device, about)}{threads}")

    def set_layer(self, layer: Any, axes: str) -> None:
        """Offer the resolutions of a multiscale layer."""
        self.level.clear()
        several = layer is not None and getattr(layer, "multiscale", False)
        self.level.setVisible(several)
        self._level_label.setVisible(several)
        if not several:
            return
        for level in levels(layer):
            self.level.addItem(" \N{MULTIPLICATION SIGN} ".join(map(str, level.shape)), level.index)
        try:
            self.level.setCurrentIndex(suggest_level(layer, axes))
        except (ImageError, ValueError):
            self.level.setCurrentIndex(0)


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
        self.setLayout(side_by_side(self.slider, self.box))
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
