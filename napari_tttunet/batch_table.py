"""The files of a batch and where each of them is, as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qtpy.QtCore import QAbstractTableModel, Qt, Signal
from qtpy.QtGui import QColor, QKeySequence, QPainter
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableView, QWidget

from tttunet.engine.messages import FileStatus
from tttunet.errors import TTTUNetError

COLUMNS = ("File", "State", "Result")
#: States of a file that is over.
OVER = ("done", "skipped", "failed")
_COLOURS = {"done": "#4caf6d", "failed": "#e06c60", "running": "#5a9fe0"}
_WORDS = {state: state for state in (*OVER, "waiting")} | {"running": "working"}


@dataclass
class FileRow:
    """A file.

    Attributes:
        path: of the image.
        state: `waiting`, `running`, or one of `OVER`.
        text: the number of objects, or why it failed.
        labels: the label file, once it is known.
        fraction: of a file that is running.
        notes: what the worker said about it.
    """

    path: str
    state: str = "waiting"
    text: str = ""
    labels: str = ""
    fraction: float = 0.0
    notes: list[str] = field(default_factory=list)


def find_files(inputs: Sequence[str], ending: str, frames: bool = False) -> list[FileRow]:
    """A row per image of files, folders and globs; what cannot be used is `failed`, with a reason.

    With `frames` a folder of pictures is one film.

    Reads folders: not for the window's thread.
    """
    from tttunet.inference.files import expand_inputs

    rows: dict[str, FileRow] = {}
    for text in inputs:
        try:
            paths = expand_inputs([text], ending, frames)
        except TTTUNetError as error:
            rows[text] = FileRow(text, "failed", str(error))
        else:
            for path in paths:
                rows.setdefault(str(path.resolve()), FileRow(str(path)))
    return list(rows.values())


def label_name(source: str, ending: str, format: str, frames: bool = False) -> str:
    """The name of the label file that an image will get, by the rules of the batch itself.

    Raises:
        TTTUNetError: the ending cannot be part of a name.
    """
    import tempfile

    from tttunet.inference.files import plan_jobs

    suffix = "" if format == "auto" else format
    # Only the name counts; the folder is one that surely exists.
    job = plan_jobs(
        [Path(source)],
        tempfile.gettempdir(),
        existing="overwrite",
        ending=ending,
        suffix=suffix,
        frames=frames,
    )[0]
    return job.labels.name


def results_folder(path: str) -> str:
    """Where results are proposed to go: `labels` in a chosen folder, or beside a file or series.

    Looks into the folder: not for the window's thread.
    """
    from tttunet.imaging.itk import is_dicom

    chosen = Path(path)
    single = not chosen.is_dir() or is_dicom(chosen)
    return str((chosen.parent if single else chosen) / "labels")


class FileTable(QAbstractTableModel):
    """Rows of files; at most one of them runs."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.rows: list[FileRow] = []
        self._places: dict[str, int] = {}

    def reset(self, rows: list[FileRow]) -> None:
        self.beginResetModel()
        self.rows = rows
        self._places = {row.path: i for i, row in enumerate(rows)}
        self.endResetModel()

    def restart(self, paths: Sequence[str]) -> None:
        """The files `paths` wait again."""
        for path in paths:
            row = self.rows[self._places[path]]
            row.state, row.text, row.fraction, row.notes = "waiting", "", 0.0, []
        self._changed(0, len(self.rows) - 1)

    def update(self, status: FileStatus) -> None:
        """Take over what the worker says about a file."""
        place = self._places.get(status.source)
        if place is None:
            return
        row = self.rows[place]
        row.state, row.text, row.labels = status.state, status.text, status.labels
        row.fraction = 0.0
        self._changed(place, place)

    def progress(self, fraction: float) -> None:
        """How far the running file is."""
        place = self.running
        if place is not None:
            self.rows[place].fraction = min(1.0, max(0.0, fraction))
            self._changed(place, place)

    def note(self, text: str) -> None:
        """Something that was said while a file ran."""
        place = self.running
        if place is not None:
            self.rows[place].notes.append(text)

    def interrupt(self, state: str, text: str = "") -> None:
        """The running file stopped."""
        place = self.running
        if place is not None:
            row = self.rows[place]
            row.state, row.text, row.fraction = state, text, 0.0
            self._changed(place, place)

    @property
    def running(self) -> int | None:
        """The row of the file that runs."""
        return next((i for i, row in enumerate(self.rows) if row.state == "running"), None)

    def paths(self, *states: str) -> list[str]:
        """The files in one of the given states."""
        return [row.path for row in self.rows if row.state in states]

    def count(self, *states: str) -> int:
        return len(self.paths(*states))

    def _changed(self, first: int, last: int) -> None:
        self.dataChanged.emit(self.index(first, 0), self.index(last, len(COLUMNS) - 1))

    # Qt's interface

    def rowCount(self, parent: Any = None) -> int:  # noqa: N802
        return 0 if parent is not None and parent.isValid() else len(self.rows)

    def columnCount(self, parent: Any = None) -> int:  # noqa: N802
        return 0 if parent is not None and parent.isValid() else len(COLUMNS)

    def headerData(self, section: int, orientation: Any, role: int = 0) -> Any:  # noqa: N802
        if role == Qt.ItemDataRole.DisplayRole and orientation == Qt.Orientation.Horizontal:
            return COLUMNS[section]
        return None

    def data(self, index: Any, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        row = self.rows[index.row()]
        if role == Qt.ItemDataRole.DisplayRole:
            # The first column names the file: there is no room to say it again.
            text = row.text.removeprefix(f"'{row.path}' ")
            return (Path(row.path).name, _state(row), text)[index.column()]
        if role == Qt.ItemDataRole.ToolTipRole:
            hint = "Double click opens the image and its labels." if row.state == "done" else ""
            return "\n".join(filter(None, (row.path, row.text, *row.notes, hint)))
        if role == Qt.ItemDataRole.ForegroundRole and index.column() == 1:
            colour = _COLOURS.get(row.state)
            return QColor(colour) if colour else None
        return None


def _state(row: FileRow) -> str:
    # A small image is one tile: there is nothing to tell before it is done.
    return f"{row.fraction:.0%}" if row.fraction > 0 else _WORDS[row.state]


class FileView(QTableView):
    """The table on the screen; says what to do while it is empty.

    Attributes:
        removed: rows that the user wants out of the batch.
    """

    removed = Signal(list)

    def __init__(self, table: FileTable, empty: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._empty = empty
        self.setModel(table)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setShowGrid(False)
        self.setWordWrap(False)
        self.setTextElideMode(Qt.TextElideMode.ElideRight)
        self.verticalHeader().hide()
        header = self.horizontalHeader()
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        header.setSectionResizeMode(1, QHeaderView.ResizeMode.Fixed)
        header.setSectionResizeMode(2, QHeaderView.ResizeMode.Stretch)
        header.setHighlightSections(False)
        header.resizeSection(1, 64)
        self.verticalHeader().setDefaultSectionSize(24)
        self.setMinimumHeight(130)

    def selected(self) -> list[int]:
        return sorted(index.row() for index in self.selectionModel().selectedRows())

    def keyPressEvent(self, event: Any) -> None:  # noqa: N802
        if event.matches(QKeySequence.StandardKey.Delete) and self.selected():
            self.removed.emit(self.selected())
        else:
            super().keyPressEvent(event)

    def paintEvent(self, event: Any) -> None:  # noqa: N802
        super().paintEvent(event)
        if not self.model().rowCount():
            painter = QPainter(self.viewport())
            painter.setOpacity(0.7)
            flags = Qt.AlignmentFlag.AlignCenter | Qt.TextFlag.TextWordWrap
            area = self.viewport().rect().adjusted(12, 12, -12, -12)
            painter.drawText(area, int(flags), self._empty)
            painter.end()


def dropped_paths(mime: Any) -> list[str]:
    """The files and folders that are being dragged."""
    return [str(Path(url.toLocalFile())) for url in mime.urls() if url.isLocalFile()]


class DropMixin:
    """Takes files that are dropped on a dock.

    Attributes:
        on_drop: called with the paths.
    """

    on_drop: Callable[[list[str]], None]

    def dragEnterEvent(self, event: Any) -> None:  # noqa: N802
        if dropped_paths(event.mimeData()):
            event.acceptProposedAction()

    def dropEvent(self, event: Any) -> None:  # noqa: N802
        event.acceptProposedAction()
        self.on_drop(dropped_paths(event.mimeData()))
