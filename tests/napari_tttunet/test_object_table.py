"""The table on screen by itself, with objects that the core measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt

from napari_tttunet.object_table import ObjectModel, ObjectView
from tttunet.measuring import Grid, ObjectTable, measure
from tttunet.measuring.objects import finish


def table_of(side: int) -> ObjectTable:
    numbers = np.arange(1, side * side + 1, dtype=np.int32).reshape(side, side)
    grid = Grid("YX", "YX", np.eye(2, 3))
    return finish(measure(np.kron(numbers, np.ones((3, 3), np.int32)), grid))


def test_no_cell_is_asked_whether_all_are_chosen(
    qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    row_count = ObjectModel.rowCount

    def counted(*arguments: Any) -> int:
        asked.append(1)
        return row_count(*arguments)

    monkeypatch.setattr(ObjectModel, "rowCount", counted)
    view = ObjectView()
    qtbot.addWidget(view)
    view.set_table(table_of(60))
    view.show()
    qtbot.waitExposed(view)
    asked.clear()
    view.selectAll()
    qtbot.wait(200)
    assert 0 < len(asked) < 3600


def test_rows_that_are_copied(qtbot: Any) -> None:
    view = ObjectView()
    qtbot.addWidget(view)
    view.set_table(table_of(4))
    view.sortByColumn(0, Qt.SortOrder.DescendingOrder)
    view.choose(15)
    with qtbot.waitSignal(view.copied) as heard:
        qtbot.keyClick(view, Qt.Key.Key_Down, Qt.KeyboardModifier.ShiftModifier)
        qtbot.keyClick(view, Qt.Key.Key_C, Qt.KeyboardModifier.ControlModifier)
    assert heard.args[0].tolist() == [15, 14]
