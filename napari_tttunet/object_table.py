"""The table of objects: 100 000 rows at once, sorted and filtered by numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from qtpy.QtCore import (
    QAbstractTableModel,
    QItemSelectionModel,
    QModelIndex,
    QPersistentModelIndex,
    Qt,
    Signal,
)
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import QAbstractItemView, QHeaderView, QTableView, QWidget

from tttunet.measuring.table import ObjectTable

_Index = QModelIndex | QPersistentModelIndex


def number_text(value: Any) -> str:
    """A number as it is shown: whole, or with four digits."""
    if isinstance(value, int | np.integer):
        return str(int(value))
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"


class ObjectModel(QAbstractTableModel):
    """What a view shows of an `ObjectTable`; texts are made for visible cells only.

    Attributes:
        table: None: nothing was measured.
        order: int64, positions in `table` of the rows shown, from top to bottom.
    """

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.table: ObjectTable | None = None
        self.order = np.zeros(0, np.int64)
        self._kept: np.ndarray | None = None
        self._sorted_by, self._descending = "", False

    def set_table(self, table: ObjectTable | None) -> None:
        """Show another table, sorted as the last one was; all its rows."""
        self.beginResetModel()
        self.table, self._kept = table, None
        self._arrange()
        self.endResetModel()

    def keep(self, kept: np.ndarray | None) -> None:
        """Show the rows of a mask over `table`; None: all."""
        self.beginResetModel()
        self._kept = kept
        self._arrange()
        self.endResetModel()

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        if self.table is None or not 0 <= column < len(self.table.columns):
            return
        self.layoutAboutToBeChanged.emit()
        before = [(index, self._source(index)) for index in self.persistentIndexList()]
        self._sorted_by = self.table.columns[column].key
        self._descending = order == Qt.SortOrder.DescendingOrder
        self._arrange()
        for index, source in before:
            self.changePersistentIndex(index, self.index(self.row_of(source), index.column()))
        self.layoutChanged.emit()

    def row_of(self, source: int) -> int:
        """The row that shows a position in `table`; -1: none does."""
        found = np.flatnonzero(self.order == source)
        return int(found[0]) if len(found) else -1

    def _source(self, index: _Index) -> int:
        return int(self.order[index.row()])

    def _arrange(self) -> None:
        if self.table is None:
            self.order = np.zeros(0, np.int64)
            return
        order = np.arange(len(self.table))
        values = self.table.values.get(self._sorted_by)
        if values is not None:
            # Numbers that are not known come last, whichever way.
            keys = -values.astype(float) if self._descending else values
            order = np.argsort(keys, kind="stable")
        self.order = order if self._kept is None else order[self._kept[order]]

    # What Qt asks

    def rowCount(self, parent: _Index = QModelIndex()) -> int:  # noqa: B008, N802
        return 0 if parent.isValid() else len(self.order)

    def columnCount(self, parent: _Index = QModelIndex()) -> int:  # noqa: B008, N802
        return 0 if parent.isValid() or self.table is None else len(self.table.columns)

    def data(self, index: _Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if self.table is None or not index.isValid():
            return None
        if role == Qt.ItemDataRole.DisplayRole:
            values = self.table.values[self.table.columns[index.column()].key]
            return number_text(values[self.order[index.row()]])
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        return None

    def headerData(  # noqa: N802
        self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole
    ) -> Any:
        if self.table is None or orientation != Qt.Orientation.Horizontal:
            return None
        if role == Qt.ItemDataRole.DisplayRole:
            return self.table.columns[section].header
        if role == Qt.ItemDataRole.ToolTipRole:
            column = self.table.columns[section]
            return f"{column.header}: {column.tip}. Click to sort."
        return None


class ObjectView(QTableView):
    """The table on screen.

    Attributes:
        chosen: the user went to a row; its position in the table.
        copied: the user wants rows in the clipboard; int64, their positions in the table.
    """

    chosen = Signal(int)
    copied = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("results_table")
        self.setAccessibleName("Objects")
        self.setToolTip(
            "Click a row to go to the object, a header to sort.\n"
            f"{QKeySequence(QKeySequence.StandardKey.Copy).toString()} copies the chosen rows."
        )
        self.objects = ObjectModel(self)
        self.setModel(self.objects)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setWordWrap(False)
        rows, columns = self.verticalHeader(), self.horizontalHeader()
        rows.hide()
        rows.setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        rows.setDefaultSectionSize(self.fontMetrics().height() + 6)
        columns.setResizeContentsPrecision(8)  # rows; each takes its time
        # With the table's own one, a header asks for every cell whether it is chosen: seconds.
        columns.setSelectionModel(QItemSelectionModel(self.objects, self))
        columns.setSortIndicator(-1, Qt.SortOrder.AscendingOrder)
        self.setSortingEnabled(True)
        self._quiet = False
        self.selectionModel().currentRowChanged.connect(self._on_current)

    def set_table(self, table: ObjectTable | None) -> None:
        """Show another table; the chosen row is forgotten without a signal."""
        before = self.objects.columnCount()
        self._quiet = True
        self.objects.set_table(table)
        self._quiet = False
        if table is not None and before != len(table.columns):
            self.resizeColumnsToContents()

    def keep(self, kept: np.ndarray | None) -> None:
        """Show the rows of a mask over the table; None: all."""
        self._quiet = True
        self.objects.keep(kept)
        self._quiet = False

    def choose(self, source: int) -> None:
        """Go to the row of a position in the table, without a signal; -1: to none."""
        row = self.objects.row_of(source)
        self._quiet = True
        if row < 0:
            self.clearSelection()
            self.setCurrentIndex(QModelIndex())
        else:
            # Another column of the row may be the current one.
            column = max(self.currentIndex().column(), 0)
            index = self.objects.index(row, column)
            self.setCurrentIndex(index)
            self.selectRow(row)
            self.scrollTo(index)
        self._quiet = False

    def chosen_rows(self) -> np.ndarray:
        """Positions in the table of the rows that are selected, from top to bottom."""
        chosen = np.zeros(len(self.objects.order), bool)
        selection = self.selectionModel().selection()  # `selectedRows` takes long for 100 000
        for part in selection:  # type: ignore[attr-defined]  # Qt for Python can
            chosen[part.top() : part.bottom() + 1] = True
        return self.objects.order[chosen]

    def keyPressEvent(self, event: Any) -> None:  # noqa: N802
        if event.matches(QKeySequence.StandardKey.Copy) and self.objects.table is not None:
            self.copied.emit(self.chosen_rows())
            event.accept()
            return
        super().keyPressEvent(event)

    def _on_current(self, current: _Index, _: _Index) -> None:
        if current.isValid() and not self._quiet:
            self.chosen.emit(int(self.objects.order[current.row()]))
