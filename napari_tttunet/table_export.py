"""Saving and copying the table of objects, in another thread."""

from __future__ import annotations

import re
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QMimeData, Qt, Signal
from qtpy.QtWidgets import (
    QApplication,
    QFileDialog,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from napari_tttunet.dock_work import Background
from napari_tttunet.object_table import ObjectModel
from napari_tttunet.settings import Settings
from tttunet.errors import TTTUNetError
from tttunet.measuring.table import ObjectTable, text_lines, write_csv


class TableExport(QWidget):
    """Two buttons, and what came of them.

    Args:
        objects: the rows it shows, in their order, are written.
        settings: remember the folder.

    Attributes:
        name: of the labels, for the file's name.
        problem: a sentence for the user and details; empty: the last one is settled.
    """

    problem = Signal(str, str)

    def __init__(self, objects: ObjectModel, settings: Settings) -> None:
        super().__init__()
        self._objects, self._settings = objects, settings
        self.name = ""
        self._background = Background(self)
        self.save = QPushButton("Save table ...")
        self.save.setObjectName("results_save")
        self.save.setToolTip("Write the rows shown to a CSV file, for spreadsheets and R or Python")
        self.copy = QPushButton("Copy table")
        self.copy.setObjectName("results_copy")
        self.copy.setToolTip("Put the rows shown into the clipboard, to paste into a spreadsheet")
        self.outcome = QLabel()
        self.outcome.setObjectName("results_outcome")
        self.outcome.setWordWrap(True)
        self.outcome.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.outcome.hide()
        for widget, words in ((self.save, "Save"), (self.copy, "Copy"), (self.outcome, "Saved")):
            widget.setAccessibleName(f"{words} table")
        line = QHBoxLayout()
        line.addWidget(self.save)
        line.addWidget(self.copy)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(line)
        layout.addWidget(self.outcome)
        self.save.clicked.connect(self._ask_where)
        self.copy.clicked.connect(self.copy_table)

    def _ask_where(self) -> None:
        folder = Path(self._settings.get("results.folder", str(Path.home())))
        name = re.sub(r"[^\w.-]+", "_", self.name).strip("_") or "labels"
        dialog = QFileDialog(self, "Save the table", str(folder), "Table (*.csv)")
        dialog.setObjectName("results_save_dialog")
        dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
        dialog.setDefaultSuffix("csv")
        dialog.selectFile(f"{name}_objects.csv")
        dialog.fileSelected.connect(self.save_table)
        dialog.finished.connect(dialog.deleteLater)
        dialog.open()

    def save_table(self, path: str | Path) -> None:
        """Write the rows that are shown, as they are sorted, to a CSV file."""
        self._settings.set("results.folder", str(Path(path).absolute().parent))
        self._settings.save_soon()
        path = Path(path).absolute()
        self._start(partial(_save, path), self._objects.order, self._on_saved)

    def copy_table(self) -> None:
        """Put the rows that are shown into the clipboard."""
        self.copy_rows(self._objects.order)

    def copy_rows(self, order: np.ndarray) -> None:
        """Put some rows, given by their positions in the table, into the clipboard."""
        self._start(_copy, order, self._on_copied)

    def _start(self, function: Any, order: np.ndarray, listener: Any) -> None:
        if self._objects.table is None:
            return
        self.problem.emit("", "")
        self._say("Writing ...")
        steps = function(self._objects.table, order)
        self._background.run_steps(steps, listener, self._failed)

    def _say(self, words: str) -> None:
        self.outcome.setText(words)
        self.outcome.setVisible(bool(words))

    def _on_saved(self, saved: tuple[Path, int]) -> None:
        path, count = saved
        self._say(f"{count} rows saved to {path}")

    def _on_copied(self, copied: tuple[bytes, int]) -> None:
        text, count = copied
        data = QMimeData()
        data.setData("text/plain", text)  # as text, Qt would convert many megabytes here
        QApplication.clipboard().setMimeData(data)
        self._say(f"{count} rows copied: paste them into a spreadsheet")

    def _failed(self, error: Exception) -> None:
        self._say("")
        self.problem.emit(str(error), "" if isinstance(error, TTTUNetError) else repr(error))


def _save(
    path: Path, table: ObjectTable, order: np.ndarray
) -> Generator[int, None, tuple[Path, int]]:
    yield from write_csv(table, path, order)
    return path, len(order)


def _copy(table: ObjectTable, order: np.ndarray) -> Generator[int, None, tuple[bytes, int]]:
    lines = yield from text_lines(table, order)
    return "\n".join(lines).encode(), len(order)
