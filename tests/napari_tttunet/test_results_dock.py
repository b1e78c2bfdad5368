"""The Results dock in a real viewer, with the labels of the samples: table and histogram."""

from __future__ import annotations

import csv
import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QApplication, QFileDialog

from napari_tttunet import results_dock
from napari_tttunet.results_dock import ResultsDock
from napari_tttunet.sample_data import fluorescence, ovule_nuclei
from results import PATIENCE, click, find, measured, open_sample, opened

pytestmark = [
    pytest.mark.usefixtures("one_engine", "own_settings"),
    pytest.mark.filterwarnings("ignore:viewer.camera is a deprecated"),
]


@pytest.fixture
def dock(viewer: Any, own_settings: None) -> ResultsDock:
    """The dock in the window of `viewer`."""
    return opened(viewer)


def test_nothing_to_begin_with(viewer: Any, dock: ResultsDock, qtbot: Any) -> None:
    assert "to begin" in find(dock, "results_summary").text()
    for name in ("results_refresh", "results_save", "results_copy", "results_compare"):
        assert not find(dock, name).isEnabled()
    viewer.add_labels(np.zeros((20, 20), np.uint8), name="blank")
    measured(qtbot, dock)
    assert find(dock, "results_summary").text().startswith("No objects in 'blank'")
    assert not find(dock, "results_save").isEnabled()
    viewer.layers.clear()
    assert "to begin" in find(dock, "results_summary").text()
    assert dock.table is None


def test_every_control_is_named_and_explained(dock: ResultsDock) -> None:
    names = "labels image extent axes refresh table column histogram "
    names += "save copy truth compare_as threshold compare more scores show_all"
    for name in names.split():
        control = find(dock, f"results_{name}")
        assert control.toolTip(), name
        assert control.accessibleName() or control.text(), name
    assert dock.minimumSizeHint().width() <= 320


def test_the_table_of_a_sample(viewer: Any, dock: ResultsDock, qtbot: Any) -> None:
    _, labels = open_sample(viewer, fluorescence)
    table = measured(qtbot, dock)
    assert len(table) == labels.data.max()
    assert table.column("mean_0").title == "Mean of fluorescence"
    areas = np.bincount(labels.data.ravel())[1:]
    assert table.values["area"].tolist() == areas.tolist()
    summary = find(dock, "results_summary").text()
    assert summary.startswith(f"{len(areas)} objects \u00b7 Area: mean {areas.mean():.4g} px²")
    view = find(dock, "results_table")
    assert view.model().rowCount() == len(areas)
    assert view.model().index(0, 1).data() == str(areas[0])
    # sorted by a click on the header
    header = view.horizontalHeader()
    place = QPoint(header.sectionViewportPosition(1) + 5, 5)
    qtbot.mouseClick(header.viewport(), Qt.MouseButton.LeftButton, pos=place)
    shown = [float(view.model().index(row, 1).data()) for row in range(len(areas))]
    assert shown == sorted(areas)
    qtbot.mouseClick(header.viewport(), Qt.MouseButton.LeftButton, pos=place)
    assert float(view.model().index(0, 1).data()) == areas.max()


def test_a_row_leads_to_its_object_and_an_object_to_its_row(
    viewer: Any, dock: ResultsDock, qtbot: Any
) -> None:
    _, labels = open_sample(viewer, ovule_nuclei)
    table = measured(qtbot, dock)
    view = find(dock, "results_table")
    row = view.model().index(6, 2)
    view.scrollTo(row)
    qtbot.mouseClick(view.viewport(), Qt.MouseButton.LeftButton, pos=view.visualRect(row).center())
    assert labels.selected_label == table.values["label"][6]
    world = table.centres[6] * labels.scale
    assert viewer.dims.current_step[0] == round(table.centres[6][0])
    camera = getattr(viewer, "scene", viewer).camera
    assert np.allclose(camera.center[-2:], world[1:])
    # an object in the canvas: the first that is in the middle of this slice
    plane = labels.data[viewer.dims.current_step[0]]
    other = next(int(x) for x in np.unique(plane) if x and x != labels.selected_label)
    ys, xs = np.nonzero(plane == other)
    middle = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
    point = np.array([ys[middle], xs[middle]]) * labels.scale[1:]
    viewer.layers.selection.active = viewer.layers[0]
    canvas = viewer.window._qt_viewer.canvas
    native = canvas.native
    apart = (point - camera.center[-2:]) * camera.zoom
    place = QPoint(round(native.width() / 2 + apart[1]), round(native.height() / 2 + apart[0]))
    qtbot.mouseClick(native, Qt.MouseButton.LeftButton, pos=place)
    assert labels.selected_label == other
    assert table.values["label"][view.chosen_rows()].tolist() == [other]
    # the spin box of napari
    labels.selected_label = 3
    assert table.values["label"][view.chosen_rows()].tolist() == [3]
    labels.selected_label = 999
    assert len(view.chosen_rows()) == 0


def test_slices_by_themselves(viewer: Any, dock: ResultsDock, qtbot: Any) -> None:
    _, labels = open_sample(viewer, ovule_nuclei)
    assert measured(qtbot, dock).column("volume").unit == "µm³"
    extent = find(dock, "results_extent")
    assert extent.isVisible()
    extent.setFocus()
    qtbot.keyClick(extent, Qt.Key.Key_Down)
    qtbot.waitUntil(lambda: dock.table is not None and "slice" in dock.table.values)
    table = dock.table
    assert table.column("area").unit == "µm²"
    label = int(table.values["label"][0])
    planes = table.values["slice"][table.values["label"] == label]
    assert planes.tolist() == np.flatnonzero((labels.data == label).any((1, 2))).tolist()
    viewer.dims.set_point(0, planes[-1] * labels.scale[0])
    labels.selected_label = label + 1
    labels.selected_label = label
    (row,) = find(dock, "results_table").chosen_rows()
    assert table.values["slice"][row] == planes[-1]


def test_the_histogram_filters(viewer: Any, dock: ResultsDock, qtbot: Any) -> None:
    open_sample(viewer, fluorescence)
    table = measured(qtbot, dock)
    histogram, view = find(dock, "results_histogram"), find(dock, "results_table")
    assert histogram.counts.sum() == len(table)
    bar = int(np.argmax(histogram.counts))
    place = histogram.bar_rect(bar).center().toPoint()
    qtbot.mouseClick(histogram, Qt.MouseButton.LeftButton, pos=place)
    assert view.model().rowCount() == histogram.counts[bar] < len(table)
    assert f"{histogram.counts[bar]} of {len(table)} objects" in dock.form.summary.text()
    click(qtbot, dock, "results_show_all")
    assert view.model().rowCount() == len(table)
    assert histogram.bar is None
    histogram.setFocus()
    for _ in range(len(histogram.counts)):
        qtbot.keyClick(histogram, Qt.Key.Key_Right)
    assert view.model().rowCount() == histogram.counts[-1] > 0
    column = find(dock, "results_column")
    column.setCurrentText("Solidity")
    column.activated.emit(column.currentIndex())
    assert "Solidity: mean" in dock.form.summary.text()
    assert view.model().rowCount() == len(table)


def test_edits_are_measured(viewer: Any, dock: ResultsDock, qtbot: Any) -> None:
    _, labels = open_sample(viewer, fluorescence)
    before = measured(qtbot, dock)
    labels.selected_label = 200
    labels.brush_size = 9
    labels.paint((5, 5), 200)
    qtbot.waitUntil(lambda: 200 in dock.table.values["label"], timeout=5000)
    labels.undo()
    qtbot.waitUntil(lambda: 200 not in dock.table.values["label"], timeout=5000)
    assert np.array_equal(dock.table.values["area"], before.values["area"])
    same = dock.table
    labels.refresh()
    qtbot.wait(1000)
    assert dock.table is same, "nothing had changed"
    labels.scale = (0.5, 0.5)
    qtbot.waitUntil(lambda: dock.table is not same, timeout=5000)
    assert np.allclose(dock.table.values["area"], before.values["area"] / 4)


def test_large_layers_wait_for_refresh(
    viewer: Any, dock: ResultsDock, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_dock, "AUTOMATIC_PIXELS", 1000)
    _, labels = open_sample(viewer, fluorescence)
    assert "press Refresh" in dock.form.summary.text()
    assert dock.table is None
    assert not dock.busy
    click(qtbot, dock, "results_refresh")
    before = measured(qtbot, dock)
    labels.paint((5, 5), 200)
    assert "changed since" in dock.form.summary.text()
    click(qtbot, dock, "results_refresh")
    qtbot.waitUntil(lambda: dock.table is not before, timeout=5000)
    assert 200 in dock.table.values["label"]


def test_cancel_and_layers_that_vanish(viewer: Any, dock: ResultsDock, qtbot: Any) -> None:
    tiles = np.kron(np.arange(1, 40_001, dtype=np.int32).reshape(200, 200), np.ones((14, 14), int))
    labels = viewer.add_labels(tiles.astype(np.int32), name="many")
    assert dock.busy
    click(qtbot, dock, "results_refresh")
    assert not dock.busy
    assert "Cancelled" in dock.form.summary.text()
    click(qtbot, dock, "results_refresh")
    viewer.layers.remove(labels)
    assert not dock.busy
    qtbot.wait(500)
    assert dock.table is None
    _, labels = open_sample(viewer, fluorescence)
    assert len(measured(qtbot, dock)) == labels.data.max()


def test_a_saved_table_and_a_copied_one(
    viewer: Any, dock: ResultsDock, qtbot: Any, tmp_path: Path
) -> None:
    open_sample(viewer, ovule_nuclei)
    table = measured(qtbot, dock)
    click(qtbot, dock, "results_save")
    dialog = dock.findChild(QFileDialog, "results_save_dialog")
    assert dialog.selectedFiles()[0].endswith("ovule_nuclei_true_labels_objects.csv")
    dialog.setDirectory(str(tmp_path))
    dialog.selectFile("nuclei.csv")
    dialog.accept()
    qtbot.waitUntil(lambda: "saved to" in dock.form.export.outcome.text(), timeout=5000)
    assert str(tmp_path / "nuclei.csv") in dock.form.export.outcome.text()
    with (tmp_path / "nuclei.csv").open(encoding="ascii", newline="") as file:
        rows = list(csv.DictReader(file))
    volumes = [float(one["Volume (um^3)"]) for one in rows]
    assert np.allclose(volumes, table.values["volume"])
    (tmp_path / "folder.csv").mkdir()
    dock.form.export.save_table(str(tmp_path / "folder.csv"))
    qtbot.waitUntil(dock.form.problem.isVisible, timeout=5000)
    assert "is a folder" in find(dock, "message_text").text()
    click(qtbot, dock, "results_copy")
    qtbot.waitUntil(lambda: "copied" in dock.form.export.outcome.text(), timeout=5000)
    lines = QApplication.clipboard().text().splitlines()
    assert len(lines) == len(table) + 1
    assert lines[0].startswith("Label\tVolume (um^3)")
    assert not dock.form.problem.isVisible()


def test_axes_are_guessed_and_edited(viewer: Any, dock: ResultsDock, qtbot: Any) -> None:
    data = np.zeros((3, 20, 20), np.uint8)
    data[:, 4:8, 4:8] = 1
    viewer.add_labels(data)
    assert "volume" in measured(qtbot, dock).values
    click(qtbot, dock, "results_more")
    axes = find(dock, "results_axes")
    assert axes.text() == "ZYX"
    axes.selectAll()
    qtbot.keyClicks(axes, "tyx")
    qtbot.keyClick(axes, Qt.Key.Key_Return)
    qtbot.waitUntil(lambda: dock.table is not None and "frame" in dock.table.values)
    assert dock.table.values["frame"].tolist() == [0, 1, 2]
    axes.selectAll()
    qtbot.keyClicks(axes, "qyx")
    qtbot.keyClick(axes, Qt.Key.Key_Return)
    assert "'Q' is not the name of an axis" in find(dock, "message_text").text()


def test_100_000_rows_at_once(viewer: Any, dock: ResultsDock, qtbot: Any) -> None:
    tiles = np.arange(1, 102_401, dtype=np.int32).reshape(320, 320)
    labels = viewer.add_labels(np.kron(tiles, np.ones((3, 3), np.int32)), name="many")
    assert len(measured(qtbot, dock)) == 102_400
    view = find(dock, "results_table")
    labels.selected_label = 77_777
    assert dock.table.values["label"][view.chosen_rows()].tolist() == [77_777]
    assert view.visualRect(view.currentIndex()).isValid()
    view.setFocus()
    qtbot.keyClick(view, Qt.Key.Key_A, Qt.KeyboardModifier.ControlModifier)
    assert len(view.chosen_rows()) == 102_400
    qtbot.keyClick(view, Qt.Key.Key_C, Qt.KeyboardModifier.ControlModifier)
    outcome = dock.form.export.outcome
    qtbot.waitUntil(lambda: "102400 rows copied" in outcome.text(), timeout=PATIENCE)
    assert QApplication.clipboard().text().count("\n") == 102_400


# Life and death


def test_what_was_chosen_is_remembered(viewer: Any, dock: ResultsDock, qtbot: Any) -> None:
    open_sample(viewer, fluorescence)
    measured(qtbot, dock)
    column = find(dock, "results_column")
    column.setCurrentText("Perimeter (px)")
    column.activated.emit(column.currentIndex())
    find(dock, "results_threshold").setValue(0.7)
    click(qtbot, dock, "results_scores")
    dock._settings.save()
    second = opened(viewer)
    measured(qtbot, second)
    assert find(second, "results_column").currentText() == "Perimeter (px)"
    assert find(second, "results_threshold").value() == 0.7
    assert find(second, "results_compare").isVisibleTo(second)


def test_a_closed_dock_is_gone(viewer: Any, qtbot: Any) -> None:
    dock = opened(viewer)
    listeners = len(viewer.mouse_drag_callbacks)
    _, labels = open_sample(viewer, fluorescence)
    assert dock.busy
    state, reference = dock._state, weakref.ref(dock)
    viewer.window.remove_dock_widget(dock)
    dock.deleteLater()
    qtbot.waitUntil(lambda: state["closed"])
    assert len(viewer.mouse_drag_callbacks) == listeners - 1
    labels.selected_label = 5
    labels.data = labels.data.copy()
    viewer.layers.clear()
    del dock
    gc.collect()
    assert reference() is None
