"""The Results dock in a real viewer: labels are compared with true ones, and both are covered."""

from __future__ import annotations

import gc
import os
import signal
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QWidget

from napari_tttunet.results_dock import ResultsDock
from napari_tttunet.session import session
from results import PATIENCE, click, find, measured, opened
from tttunet.measuring.agreement import DIFFERENT, FALSE, MATCHED, MISSED

pytestmark = [
    pytest.mark.usefixtures("one_engine", "own_settings"),
    pytest.mark.filterwarnings("ignore:viewer.camera is a deprecated"),
]


@pytest.fixture
def dock(viewer: Any, own_settings: None) -> ResultsDock:
    """The dock in the window of `viewer`."""
    return opened(viewer)


def pair_with_one_of_each(viewer: Any) -> tuple[Any, Any]:
    """One object is matched, one missed, one false, and one has another outline."""
    pred, truth = np.zeros((60, 60), np.uint16), np.zeros((60, 60), np.uint16)
    truth[2:12, 2:12], pred[2:12, 2:11] = 3, 7
    truth[40:50, 2:12] = 5
    pred[2:12, 40:50] = 8
    truth[30:50, 30:50], pred[30:38, 30:50] = 6, 9
    return viewer.add_labels(truth, name="truth"), viewer.add_labels(pred, name="pred")


def score(dock: QWidget, name: str) -> float:
    return float(find(dock, f"results_score_{name}").text().split("<b>")[1].split("<")[0])


def compared(qtbot: Any, dock: ResultsDock, viewer: Any, name: str) -> Any:
    click(qtbot, dock, "results_compare")
    scores = dock.form.scores
    qtbot.waitUntil(lambda: not scores.busy, timeout=PATIENCE)
    assert find(dock, "message").text == ""
    return viewer.layers[name]


def test_matched_missed_and_false_objects(viewer: Any, dock: ResultsDock, qtbot: Any) -> None:
    truth, pred = pair_with_one_of_each(viewer)
    measured(qtbot, dock)
    click(qtbot, dock, "results_scores")
    shown = compared(qtbot, dock, viewer, "pred: comparison")
    assert score(dock, "f1") == pytest.approx(2 / 6, abs=1e-3)
    assert score(dock, "precision") == score(dock, "recall") == pytest.approx(1 / 3, abs=1e-3)
    assert score(dock, "ap") == pytest.approx(1 / 5, abs=1e-3)
    assert score(dock, "mean_ap") == pytest.approx(0.9 / 5, abs=1e-3)  # 0.9 is not above 0.9
    dice = 2 * (90 + 160) / ((90 + 100 + 160) + (100 + 100 + 400))
    assert score(dock, "dice") == pytest.approx(dice, abs=1e-3)
    assert shown.data[5, 5] == MATCHED
    assert shown.data[5, 11] == 0
    assert shown.data[45, 5] == shown.data[45, 40] == MISSED
    assert shown.data[5, 45] == FALSE
    assert shown.data[32, 40] == DIFFERENT
    assert np.allclose(shown.get_color(MISSED)[:3], (0xD5 / 255, 0x5E / 255, 0), atol=0.01)
    assert shown.get_color(0) is None or shown.get_color(0)[3] == 0
    legend = find(dock, "results_legend").text()
    assert all(words in legend for words in ("1 matched", "2 missed", "2 false"))
    inside = dock.form.widget()
    assert inside.minimumSizeHint().width() <= dock.form.viewport().width(), "cut off"
    assert dock.minimumSizeHint().width() <= 320
    assert viewer.layers.selection.active is pred
    assert dock.form.labels.currentText() == "pred"
    # at a lower overlap the other outline is a match
    find(dock, "results_threshold").setValue(0.4)
    again = compared(qtbot, dock, viewer, "pred: comparison")
    assert again is shown
    assert shown.data[32, 40] == MATCHED
    assert score(dock, "f1") == pytest.approx(4 / 6, abs=1e-3)
    pred.paint((55, 55), 20)
    assert "changed since" in find(dock, "results_compare_note").text()
    # what was painted into the comparison is kept
    shown.paint((55, 5), MATCHED)
    compared(qtbot, dock, viewer, "pred: comparison")
    assert len([x for x in viewer.layers if x.name.startswith("pred: comparison")]) == 2
    viewer.layers.remove(truth)
    assert not find(dock, "results_compare").isEnabled()
    assert dock.form.scores.grid.count() == 0
    assert find(dock, "results_legend").text() == ""


def test_what_was_compared_is_hidden_behind_the_comparison(
    viewer: Any, dock: ResultsDock, qtbot: Any
) -> None:
    truth, pred = pair_with_one_of_each(viewer)
    truth.visible = False
    table = measured(qtbot, dock)
    click(qtbot, dock, "results_scores")
    shown = compared(qtbot, dock, viewer, "pred: comparison")
    assert [shown.visible, pred.visible, truth.visible] == [True, False, False]
    # A click on an object still leads to its row: [5, 45] is object 8.
    canvas = viewer.window._qt_viewer.canvas.native
    camera = getattr(viewer, "scene", viewer).camera
    apart = (np.array([5, 45]) - camera.center[-2:]) * camera.zoom
    place = QPoint(round(canvas.width() / 2 + apart[1]), round(canvas.height() / 2 + apart[0]))
    qtbot.mouseClick(canvas, Qt.MouseButton.LeftButton, pos=place)
    assert pred.selected_label == 8
    chosen = find(dock, "results_table").chosen_rows()
    assert table.values["label"][chosen].tolist() == [8]
    # Whoever was visible comes back with the eye of the comparison, and goes with it.
    shown.visible = False
    assert [pred.visible, truth.visible] == [True, False]
    shown.visible = True
    assert not pred.visible
    # A second comparison hides no more and forgets nothing.
    again = compared(qtbot, dock, viewer, "pred: comparison")
    assert again is shown
    assert not pred.visible
    # Other labels, e.g. of the next run, are seen at once.
    pred.data = pred.data.copy()
    assert [shown.visible, pred.visible] == [False, True]
    compared(qtbot, dock, viewer, "pred: comparison")
    assert not pred.visible
    # The dock may be gone.
    viewer.window.remove_dock_widget(dock)
    dock.deleteLater()
    qtbot.wait(100)
    gc.collect()
    viewer.layers.remove(shown)
    assert [pred.visible, truth.visible] == [True, False]


def test_frames_are_compared_by_themselves(viewer: Any, dock: ResultsDock, qtbot: Any) -> None:
    truth, pred = np.zeros((2, 20, 20), np.uint8), np.zeros((2, 20, 20), np.uint8)
    truth[:, 2:8, 2:8] = 1
    pred[0, 2:8, 2:8] = 1
    pred[1, 12:18, 12:18] = 1
    viewer.add_labels(truth, name="truth", axis_labels=("t", "y", "x"))
    viewer.add_labels(pred, name="pred", axis_labels=("t", "y", "x"), scale=(1, 1, 1))
    click(qtbot, dock, "results_scores")
    shown = compared(qtbot, dock, viewer, "pred: comparison")
    assert (shown.data[0, 4, 4], shown.data[1, 4, 4]) == (MATCHED, MISSED)
    assert shown.data[1, 14, 14] == FALSE
    assert score(dock, "f1") == 0.5


def test_classes(viewer: Any, dock: ResultsDock, qtbot: Any) -> None:
    truth_layer, pred_layer = pair_with_one_of_each(viewer)
    truth_layer.data = (truth_layer.data > 0).astype(np.uint8)
    pred_layer.data = (pred_layer.data > 0).astype(np.uint8) + (pred_layer.data == 9)
    click(qtbot, dock, "results_scores")
    kind = find(dock, "results_compare_as")
    kind.setFocus()
    qtbot.keyClick(kind, Qt.Key.Key_Down)
    assert not find(dock, "results_threshold").isEnabled()
    shown = compared(qtbot, dock, viewer, "pred: comparison")
    assert score(dock, "dice_of_1") == pytest.approx(2 * 90 / (190 + 600), abs=1e-3)
    assert score(dock, "mean_dice") == pytest.approx(90 / (190 + 600), abs=1e-3)
    assert shown.data[32, 40] == DIFFERENT


def test_the_truth_lies_on_the_same_pixels(viewer: Any, dock: ResultsDock) -> None:
    whole = np.zeros((40, 50), np.uint8)
    viewer.add_labels(whole, name="whole", scale=(2, 2))
    viewer.add_labels(whole, name="other scale")
    viewer.add_labels(whole[5:20, 10:30], name="part", scale=(2, 2), translate=(10, 20))
    truth = find(dock, "results_truth")
    assert dock.form.labels.currentText() == "part"
    assert [truth.itemText(i) for i in range(truth.count())] == ["whole"]
    viewer.layers.selection.active = viewer.layers["other scale"]
    assert truth.count() == 0
    assert not find(dock, "results_compare").isEnabled()


def test_a_worker_that_is_killed_and_a_comparison_that_is_cancelled(
    viewer: Any, dock: ResultsDock, qtbot: Any
) -> None:
    pair_with_one_of_each(viewer)
    click(qtbot, dock, "results_scores")
    compared(qtbot, dock, viewer, "pred: comparison")  # the worker is there from now on
    viewer.layers.clear()
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 2**30, (3000, 3000)).astype(np.int32)
    viewer.add_labels(noise, name="truth")
    viewer.add_labels(noise[::-1].copy(), name="pred")
    click(qtbot, dock, "results_compare")
    note = find(dock, "results_compare_note")
    qtbot.waitUntil(lambda: note.text() == "Comparing ...", timeout=PATIENCE)
    os.kill(session().engine.short_worker_pid, signal.SIGKILL)
    qtbot.waitUntil(dock.form.problem.isVisible, timeout=PATIENCE)
    assert "ended unexpectedly" in find(dock, "message_text").text()
    click(qtbot, dock, "results_compare")
    assert find(dock, "results_compare").text() == "Cancel"
    click(qtbot, dock, "results_compare")
    assert find(dock, "results_compare").text() == "Compare"
    assert not dock.form.problem.isVisible()
    viewer.layers.clear()
    pair_with_one_of_each(viewer)
    compared(qtbot, dock, viewer, "pred: comparison")
    assert score(dock, "f1") == pytest.approx(2 / 6, abs=1e-3)
