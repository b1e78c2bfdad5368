"""What the Batch dock asks for: model, names, formats and options, as fields of a batch file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QCheckBox, QLineEdit, QSpinBox, QWidget

from napari_tttunet.settings import Settings
from napari_tttunet.widgets import (
    FoldingSection,
    choose,
    combo_box,
    device_name,
    explain,
    form_layout,
    show_text,
    side_by_side,
    small_button,
    text_label,
)

#: Formats of label files, and what they are called.
FORMATS = (
    ("auto", "Automatic"),
    (".ome.tif", "OME-TIFF (.ome.tif)"),
    (".nii.gz", "NIfTI (.nii.gz)"),
    (".nrrd", "NRRD (.nrrd)"),
    (".mha", "MetaImage (.mha)"),
)
ENDING = "_labels"
#: Fields of a batch file that have no control here, and what they usually are; those of a file
#: that was opened are kept.
_KEPT: dict[str, Any] = {
    "tile": [],
    "overlap": 0.25,
    "adaptation": "tile",
    "adaptation_map": False,
}


class BatchForm(QWidget):
    """Everything about a batch but its files.

    Attributes:
        base: the folder in which a relative output folder lies; empty: not known yet.
        changed: the user, or a file that was opened, changed something.
        names_changed: the same for what decides the names of results.
        browse: the user wants to choose the output folder in a dialog.
    """

    changed = Signal()
    names_changed = Signal()
    browse = Signal()

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._kept: dict[str, Any] = {}
        self._file_model: str | list[str] = ""
        self.base = ""
        self.model = combo_box("batch_model", "The model that segments every image.")
        self.output = explain(
            QLineEdit(),
            "batch_output",
            "Folder of the results. It is made if it does not exist; your images stay as they are. "
            "A name alone is a folder beside the first of the images.",
        )
        self.output.setPlaceholderText("choose a folder")
        browse = small_button(
            "Choose...", "batch_choose_output", "Choose the folder of the results."
        )
        browse.clicked.connect(lambda *_: self.browse.emit())
        self.ending = explain(
            QLineEdit(ENDING),
            "batch_ending",
            "What is added to the name of the image to name its labels.",
        )
        self.preview = text_label("batch_name_preview")
        self.format = combo_box(
            "batch_format",
            "The kind of file for the labels. Automatic: NIfTI, NRRD and MetaImage stay what they "
            "are, DICOM becomes NRRD, all others become OME-TIFF.",
            [(text, value) for value, text in FORMATS],
        )
        self.skip = explain(
            QCheckBox("Skip images whose results exist"),
            "batch_skip",
            "So a batch that was interrupted goes on. Without it, existing results are replaced.",
        )
        self.skip.setChecked(True)
        form = form_layout(self)
        form.addRow("Model", self.model)
        form.addRow("Save in", side_by_side(self.output, browse))
        form.addRow("Name ends in", self.ending)
        form.addRow(self.preview)
        form.addRow("Format", self.format)
        form.addRow(self.skip)
        form.addRow(self._options())
        self._remember()
        self.ending.textChanged.connect(lambda *_: self.names_changed.emit())
        self.format.currentIndexChanged.connect(lambda *_: self.names_changed.emit())

    def _options(self) -> FoldingSection:
        content = QWidget()
        form = form_layout(content, indent=8)
        self.overlay = explain(
            QCheckBox("Picture with outlines"),
            "batch_overlay",
            "Also write NAME_overlay.png: the image with the outlines of the objects.",
        )
        self.table = explain(
            QCheckBox("Table of the objects"),
            "batch_table",
            "Also write NAME_objects.csv: size, place and brightness of every object.",
        )
        self.mirror = explain(
            QCheckBox("Average over mirrored images"),
            "batch_mirror",
            "Looks at every place several times, mirrored (test-time augmentation): "
            "a little better, 4 times slower in 2D, 8 times in 3D.",
        )
        self.min_size = explain(
            QSpinBox(), "batch_min_size", "Smaller objects (pixels or voxels) are left out."
        )
        self.min_size.setRange(-1, 10_000_000)
        self.min_size.setValue(-1)
        self.min_size.setSpecialValueText("as the model says")
        self.channel = explain(
            QLineEdit(),
            "batch_channel",
            "Name or number (from 0) of the one channel to segment; empty: all channels.",
        )
        self.channel.setPlaceholderText("all")
        self.axes = explain(
            QLineEdit(),
            "batch_axes",
            "One letter per dimension (T time, C channel, Z, Y, X) if the files say it wrongly.",
        )
        self.axes.setPlaceholderText("as the files say")
        self.frames = explain(
            QCheckBox("Stacks and folders are films"),
            "batch_frames",
            "The pictures of a TIFF stack or of a folder are frames over time: they are read, "
            "segmented and written one by one, so that a film of any length fits in memory, and a "
            "folder gives one file of labels. Videos are always films.",
        )
        self.smoothing = explain(
            QSpinBox(),
            "batch_smoothing",
            "Average the probabilities of so many frames of a film around each, against flicker. "
            "For models of classes; 1 takes every frame by itself.",
        )
        self.smoothing.setRange(1, 15)  # LARGEST_WINDOW, without importing torch
        self.smoothing.setSingleStep(2)
        self.device = combo_box(
            "batch_device", "What computes: a graphics card is much faster if there is one."
        )
        self.show_devices({})
        self.kept_note = text_label("batch_kept")
        for box in (self.overlay, self.table, self.mirror, self.frames):
            form.addRow(box)
        form.addRow("Frames averaged", self.smoothing)
        form.addRow("Smallest", self.min_size)
        form.addRow("Channel", self.channel)
        form.addRow("Axes", self.axes)
        form.addRow("Device", self.device)
        form.addRow(self.kept_note)
        self.kept_note.hide()
        return FoldingSection(
            "More options", content, "batch_more", self._settings, "batch.more_options"
        )

    def _remember(self) -> None:
        """Begin as the last session ended, and keep what changes."""
        for name in ("skip", "overlay", "table", "mirror"):
            box = getattr(self, name)
            box.setChecked(self._settings.get(f"batch.{name}", box.isChecked()))
            box.toggled.connect(lambda on, name=name: self._store(name, on))
        for name in ("format", "device"):
            combo = getattr(self, name)
            choose(combo, self._settings.get(f"batch.{name}", "auto"))
            combo.currentIndexChanged.connect(
                lambda _, name=name, combo=combo: self._store(name, combo.currentData())
            )
        self.ending.setText(self._settings.get("batch.ending", ENDING))
        self.ending.textChanged.connect(lambda text: self._store("ending", text or ENDING))
        self.model.activated.connect(lambda _: self._store("model", self.model.currentData()))
        # Of these images, not of the next ones: they are not remembered.
        self.frames.toggled.connect(lambda *_: self.names_changed.emit())
        self.smoothing.valueChanged.connect(lambda *_: self.changed.emit())
        for edit in (self.output, self.channel, self.axes):
            edit.textChanged.connect(lambda *_: self.changed.emit())
        self.min_size.valueChanged.connect(lambda *_: self.changed.emit())

    def _store(self, name: str, value: Any) -> None:
        if value is not None:
            self._settings.set(f"batch.{name}", value)
            self._settings.save_soon()
        self.changed.emit()

    def show_preview(self, text: str) -> None:
        """Show what a name becomes; it may be broken where it has underscores."""
        show_text(self.preview, text.replace("_", "_\u200b"))

    def show_models(self, models: list[dict[str, Any]]) -> None:
        """Offer the models that can be used; the chosen one stays."""
        chosen = self.model.currentData() or self._settings.get("batch.model", "nuclei")
        self.model.clear()
        for model in models:
            if model["error"] is None:
                self.model.addItem(f"{model['name']} ({model['dim']}D)", model["name"])
                tip = model.get("title") or ""
                self.model.setItemData(self.model.count() - 1, tip, 3)  # Qt.ToolTipRole
        self._offer_model_of_file()
        choose(self.model, chosen)

    def _offer_model_of_file(self) -> None:
        """A batch file may name a model that is not in the library, or several to be averaged."""
        named = self._file_model
        if named and self.model.findData(named) < 0:
            names = [named] if isinstance(named, str) else named
            self.model.addItem(f"{len(names)} models" if len(names) > 1 else names[0], named)
            tip = "\n".join(names)
            self.model.setItemData(self.model.count() - 1, tip, 3)  # Qt.ToolTipRole

    def show_devices(self, about: Mapping[str, Any]) -> None:
        """Offer the devices that the worker has; only the sure ones before it ever started."""
        chosen = self.device.currentData() or self._settings.get("batch.device", "auto")
        used = about.get("device")
        self.device.blockSignals(True)
        self.device.clear()
        self.device.addItem(f"Automatic{f': {device_name(used, about)}' if used else ''}", "auto")
        for device in about.get("devices", ["cpu"]):
            self.device.addItem(device_name(device, about), device)
        choose(self.device, chosen, add=chosen != "auto")
        self.device.blockSignals(False)

    def folder(self) -> str:
        """The folder of the results, absolute if `base` is known; empty: none was chosen."""
        text = self.output.text().strip()
        return str(Path(self.base, os.path.expanduser(text))) if text else ""

    def show_folder(self) -> None:
        """Show where a relative folder lies."""
        if self.base and self.output.text().strip():
            self.output.setText(self.folder())

    def fields(self) -> dict[str, Any]:
        """The fields of a batch file, without `inputs`."""
        output = self.folder()
        min_size = self.min_size.value()
        decoding = {**self._kept.get("decoding", {})}
        if min_size >= 0:
            decoding["min_size"] = min_size
        return {
            **{name: self._kept[name] for name in _KEPT if name in self._kept},
            # Always a folder, also of a single image.
            "output": output.rstrip("/\\") + "/" if output else "",
            "model": self.model.currentData() or "nuclei",
            "ending": self.ending.text().strip() or ENDING,
            "format": self.format.currentData(),
            "overlay": self.overlay.isChecked(),
            "table": self.table.isChecked(),
            "axes": self.axes.text().strip().upper() or None,
            "channel": self.channel.text().strip() or None,
            "device": self.device.currentData(),
            "mirror": self.mirror.isChecked(),
            "decoding": decoding,
            "frames": self.frames.isChecked(),
            "smoothing": self.smoothing.value(),
            "existing": "skip" if self.skip.isChecked() else "overwrite",
        }

    def show_fields(self, fields: Mapping[str, Any]) -> None:
        """Show the content of a batch file; what has no control is kept and named."""
        self._file_model = fields["model"]
        self._offer_model_of_file()
        choose(self.model, self._file_model)
        self.output.setText(str(fields["output"]).rstrip("/\\") or "/")
        self.ending.setText(fields["ending"])
        choose(self.format, fields["format"])
        choose(self.device, fields["device"], add=True)
        for name in ("overlay", "table", "mirror", "frames"):
            getattr(self, name).setChecked(fields[name])
        self.smoothing.setValue(fields["smoothing"])
        self.axes.setText(fields["axes"] or "")
        self.channel.setText(fields["channel"] or "")
        self.skip.setChecked(fields["existing"] != "overwrite")
        decoding = dict(fields["decoding"])
        self.min_size.setValue(int(decoding.pop("min_size", -1)))
        unusual = {name: fields[name] for name, usual in _KEPT.items() if fields[name] != usual}
        self._kept = {**unusual, "decoding": decoding}
        unusual = {**unusual, **decoding}
        text = ", ".join(f"{name} {value}" for name, value in unusual.items())
        self.kept_note.setText(f"From the file: {text}")
        self.kept_note.setVisible(bool(unusual))
