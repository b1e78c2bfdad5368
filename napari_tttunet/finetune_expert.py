"""What decides a fine-tuning beside the labels: the folded part of the Fine-tune dock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtGui import QDoubleValidator
from qtpy.QtWidgets import QCheckBox, QDoubleSpinBox, QLineEdit, QSpinBox, QWidget

from napari_tttunet.widgets import choose, combo_box, explain, form_layout

_PARTS = (
    ("All weights (recommended)", "auto"),
    ("Decoder", "decoder"),
    ("Last layer", "head"),
)
#: Percent of the labels that are held out, by default.
_SHARE = 25


class Expert(QWidget):
    """What decides a fine-tuning beside the labels.

    Attributes:
        changed: the user changed something that the time depends on.
    """

    changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        form = form_layout(self, 12)
        self.parts = combo_box("parts", "Which weights of the network move", _PARTS)
        self.rate = explain(QLineEdit(), "learning_rate", "At the beginning; empty: automatic")
        self.rate.setPlaceholderText("automatic")
        self.rate.setValidator(QDoubleValidator(0.0, 1.0, 9))
        self.minutes = explain(
            QDoubleSpinBox(), "minutes", "The training ends after so long at the latest"
        )
        self.minutes.setRange(0.0, 1e5)
        self.minutes.setDecimals(1)
        self.steps = explain(QSpinBox(), "steps", "The training ends after so many steps")
        self.steps.setRange(0, 10**6)
        for box in (self.minutes, self.steps):
            box.setSpecialValueText("automatic")
        self.share = explain(
            QSpinBox(),
            "share",
            "So much of what is checked is not trained on: it decides which model is the best, and "
            "tells its score. More makes the score surer and leaves less to learn from.",
        )
        self.share.setRange(5, 90)
        self.share.setValue(_SHARE)
        self.blend = explain(
            QSpinBox(),
            "blend",
            "So much of the trained weights goes into the new model; the rest is of the model to "
            "start from. Less forgets less, and learns less. A last layer that begins anew is not "
            "mixed.",
        )
        self.blend.setRange(0, 100)
        self.blend.setSpecialValueText("automatic")
        for box in (self.share, self.blend):
            box.setSuffix(" %")
        self.replay = explain(
            QCheckBox("Train on earlier data too"),
            "replay",
            "Keeps the model from forgetting what it knew, if such data lie beside it.",
        )
        self.replay.setChecked(True)
        self.preview = explain(
            QCheckBox("Preview what I see"),
            "preview",
            "Every few seconds, the model of the moment is tried on the middle of your view.",
        )
        self.preview.setChecked(True)
        self.seed = explain(
            QSpinBox(), "seed", "Decides what is held out, and the order of the training"
        )
        self.seed.setRange(0, 2**31 - 1)
        form.addRow("Trained part", self.parts)
        form.addRow("Learning rate", self.rate)
        form.addRow("Minutes", self.minutes)
        form.addRow("Steps", self.steps)
        form.addRow("Held out", self.share)
        form.addRow("New weights", self.blend)
        form.addRow("Seed", self.seed)
        form.addRow(self.replay)
        form.addRow(self.preview)
        for box in (self.minutes, self.steps, self.share):
            box.valueChanged.connect(lambda _: self.changed.emit())

    def options(self) -> dict[str, Any]:
        """Arguments of `tttunet.finetune`; what is automatic is left out."""
        options: dict[str, Any] = {
            "parts": self.parts.currentData(),
            "seed": self.seed.value(),
            "share": self.share.value() / 100,
            "replay": self.replay.isChecked(),
        }
        rate, _ = self.rate.locale().toDouble(self.rate.text())
        if rate > 0:
            options["learning_rate"] = rate
        if self.blend.value() > 0:
            options["blend"] = self.blend.value() / 100
        if self.minutes.value() > 0:
            options["max_minutes"] = self.minutes.value()
        if self.steps.value() > 0:
            options["steps"] = self.steps.value()
        return options

    def show_options(self, options: Mapping[str, Any]) -> None:
        """Show what `options` returned; without any, what is shown stays."""
        if not options:
            return
        choose(self.parts, options.get("parts", "auto"))
        self.replay.setChecked(bool(options.get("replay", True)))
        rate = _number(options, "learning_rate")
        self.rate.setText(self.rate.locale().toString(rate, "g", 6) if rate > 0 else "")
        self.minutes.setValue(_number(options, "max_minutes"))
        self.steps.setValue(int(_number(options, "steps")))
        self.seed.setValue(int(_number(options, "seed")))
        self.share.setValue(round(100 * _number(options, "share")) or _SHARE)
        self.blend.setValue(round(100 * _number(options, "blend")))


def _number(options: Mapping[str, Any], name: str) -> float:
    """A number that a person may have written into the project's file by hand; 0: none."""
    value = options.get(name, 0)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0
