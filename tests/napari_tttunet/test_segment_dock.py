"""The Segment dock in a real viewer, with a real worker and the shipped model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from napari.utils import progress
from qtpy.QtCore import Qt

from napari_tttunet import sample_data
from napari_tttunet.geometry import Transform
from napari_tttunet.result_layers import is_preview
from segmenting import PATIENCE, Dock, add_sample, same_place
from tttunet.models import list_models

pytestmark = pytest.mark.usefixtures("_spare_references", "one_engine", "own_settings")


def test_open_sample_press_segment(viewer: Any, dock: Dock) -> None:
    assert "Open an image" in dock.find("need").text()
    assert not dock.find("segment").isEnabled()
    image = viewer.open_sample("napari-tttunet", "fluorescence")[0]
    image.scale, image.translate, image.rotate = (0.5, 0.25), (3, 4), 30
    viewer.layers.selection.active = image
    dock.until(lambda: "Needs about" in dock.find("need").text())
    labels = dock.segment()
    assert dock.message() == ""
    assert 25 <= len(np.unique(labels.data)) - 1 <= 45, "33 in truth"
    assert labels.data.shape == image.data.shape[:2]
    same_place(labels, image)
    record = labels.metadata["tttunet"]
    assert record["model"]["name"] == "nuclei"
    assert record["model"]["sha256"]
    assert {"tile", "device", "date", "decoding", "backend", "software"} <= set(record)
    assert record["count"] == labels.data.max()
    assert not any("preview" in name for name in dock.names())


def test_cancel_in_the_middle_leaves_the_old_labels(viewer: Any, dock: Dock) -> None:
    image = add_sample(viewer)
    labels = dock.segment()
    before = labels.data.copy()
    # A stack of many slices: there is a middle.
    image.data = np.tile(image.data, (6, 6))
    dock.find("tile").setValue(64)
    dock.start()
    assert not dock.find("segment").isVisible()
    dock.until(lambda: any("preview" in name for name in dock.names()))
    dock.until(lambda: [bar.desc[:15] for bar in progress._all_instances] == ["finding objects"])
    dock.click("cancel")
    dock.until(lambda: not dock.widget.run.running)
    assert "Cancelled" in dock.message()
    assert not progress._all_instances, "napari's activity dock is empty again"
    assert labels in viewer.layers
    np.testing.assert_array_equal(labels.data, before)
    assert len(viewer.layers) == 2, "no preview is left"
    assert dock.find("segment").isVisible()


def test_nothing_is_accepted_that_no_model_made(viewer: Any, dock: Dock, qtbot: Any) -> None:
    image, truth = viewer.open_sample("napari-tttunet", "fluorescence")
    names = [layer.name for layer in viewer.layers]
    canvas = viewer.window._qt_viewer.canvas.native
    viewer.layers.selection.active = truth
    assert dock.find("next_object").isVisible()
    assert not dock.find("accept").isEnabled()
    qtbot.keyClick(canvas, Qt.Key.Key_K)
    assert dock.names() == names
    # While a result is on its way there is nothing to check.
    dock.find("tile").setValue(64)
    dock.find("mirror").setChecked(True)
    viewer.layers.selection.active = image
    dock.start()
    dock.until(lambda: any("preview" in name for name in dock.names()))
    (preview,) = (layer for layer in viewer.layers if "preview" in layer.name)
    for layer in (preview, truth):
        viewer.layers.selection.active = layer
        assert not dock.find("accept").isVisible()
        visible = layer.visible
        for key in (Qt.Key.Key_K, Qt.Key.Key_H, Qt.Key.Key_N):
            qtbot.keyClick(canvas, key)
        assert layer.visible == visible
    assert dock.widget.run.running, "else nothing was shown"
    assert dock.names() == [*names, preview.name]
    assert dock.labels() is truth, "a preview is not looked at"
    dock.until(lambda: not dock.widget.run.running)
    assert dock.labels() is not truth
    assert not is_preview(dock.labels()), "the preview became the result"
    qtbot.keyClick(canvas, Qt.Key.Key_K)
    assert dock.labels().name.endswith("\N{CHECK MARK}")


def test_a_rerun_replaces_its_own_layer_and_keeps_an_edited_one(viewer: Any, dock: Dock) -> None:
    add_sample(viewer)
    first = dock.segment()
    first.opacity = 0.3
    assert dock.segment() is first, "its look and its place in the list stay"
    assert len(viewer.layers) == 2
    first.paint((5, 5), 99)
    edited = first.data.copy()
    second = dock.segment()
    assert second is not first
    assert first in viewer.layers
    np.testing.assert_array_equal(first.data, edited)
    assert dock.segment() is second
    # Without an event: code of a person or of another plugin.
    second.data[:4, :4] = 7
    assert dock.segment() not in (first, second)
    assert len(viewer.layers) == 4


def test_an_undone_stroke_is_no_edit_and_leaves_nothing_to_undo(viewer: Any, dock: Dock) -> None:
    add_sample(viewer)
    labels = dock.segment()
    labels.paint((5, 5), 99)
    labels.undo()
    assert dock.segment() is labels
    found = labels.data.copy()
    labels.redo()
    labels.undo()
    np.testing.assert_array_equal(labels.data, found)


def test_accepted_labels_are_not_replaced(viewer: Any, dock: Dock) -> None:
    add_sample(viewer)
    labels = dock.segment()
    dock.click("accept")
    assert labels.metadata["tttunet"]["accepted"]
    assert labels.name.endswith("\N{CHECK MARK}")
    other = dock.segment()
    assert other is not labels
    assert not other.metadata["tttunet"]["accepted"]
    viewer.layers.selection.active = labels
    dock.click("accept")
    assert not labels.metadata["tttunet"]["accepted"]
    assert "\N{CHECK MARK}" not in labels.name


def test_current_view(viewer: Any, dock: Dock) -> None:
    image = add_sample(viewer, size=256, scale=(2.0, 2.0))
    dock.ready()
    camera = getattr(viewer, "scene", viewer).camera
    camera.center, camera.zoom = (0, 128, 128), 2.5
    dock.choose("where", "view")
    labels = dock.segment()
    assert labels.data.shape == image.data.shape
    same_place(labels, image)
    rows, columns = np.nonzero(labels.data)
    (low, high), (left, right) = labels.metadata["tttunet"]["region"]
    assert 0 < low <= rows.min() <= rows.max() < high < 256
    assert 0 < left <= columns.min() <= columns.max() < right < 256
    camera.center = (0, 400, 400)
    count = len(np.unique(labels.data))
    dock.segment()
    assert dock.labels() is labels, "the second view is added to the first"
    assert len(np.unique(labels.data)) > count


def test_rectangles(viewer: Any, dock: Dock) -> None:
    image = add_sample(viewer, size=256)
    dock.ready()
    dock.choose("where", "shapes")
    dock.click("segment")
    assert "rectangle" in dock.message()
    squares = [np.array([[10, 20], [10, 100], [90, 100], [90, 20]]) + at for at in (0, 120)]
    shapes = viewer.add_shapes(squares, shape_type="rectangle", name="regions")
    assert dock.find("shapes").currentText() == "regions"
    assert dock.find("image").currentText() == image.name, "shapes are no image"
    labels = dock.segment()
    inside = np.zeros(image.data.shape, bool)
    inside[10:91, 20:101] = inside[130:211, 140:221] = True
    assert labels.data[10:91, 20:101].any()
    assert labels.data[130:211, 140:221].any()
    assert not labels.data[~inside].any()
    viewer.layers.remove(shapes)
    assert dock.find("shapes").count() == 0


def test_a_slider_decodes_again_without_the_network(viewer: Any, dock: Dock) -> None:
    image = add_sample(viewer, size=200)
    labels = dock.segment()
    record = dict(labels.metadata["tttunet"])
    before = labels.data.copy()
    sizes = np.bincount(before[before > 0])[1:]
    smallest = int(np.median(sizes))
    dock.find("min_size_box").setValue(smallest)
    dock.until(lambda: "thresholds changed" in dock.find("result").text())
    now = labels.metadata["tttunet"]
    assert dock.labels() is labels
    assert now["maps_id"] == record["maps_id"], "every run of the network has its own"
    assert now["date"] == record["date"]
    assert now["decoding"]["min_size"] == smallest
    left = np.unique(labels.data[labels.data > 0])
    assert 0 < len(left) < len(sizes)
    assert now["count"] == len(left)
    # An edited layer stays as it is; what the slider does goes into another.
    labels.paint((5, 5), 99)
    edited = labels.data.copy()
    dock.find("min_size_box").setValue(15)
    dock.until(lambda: dock.labels() is not labels)
    np.testing.assert_array_equal(labels.data, edited)
    np.testing.assert_array_equal(dock.labels().data, before)
    assert image in viewer.layers


def test_a_stack_is_segmented_slice_by_slice(viewer: Any, dock: Dock) -> None:
    plane = sample_data.fluorescence()[0][0][:128, :128]
    stack = np.stack([plane, np.zeros_like(plane), plane[::-1]])
    image = viewer.add_image(stack, rgb=False, scale=(3, 1, 1), axis_labels=("z", "y", "x"))
    dock.ready()
    assert dock.find("axes").text() == "ZYX"
    assert "3 slices" in dock.find("dimensions").text()
    labels = dock.segment()
    assert labels.data.shape == image.data.shape
    same_place(labels, image)
    assert tuple(labels.axis_labels) == ("z", "y", "x")
    assert not labels.data[1].any()
    assert not np.intersect1d(labels.data[0][labels.data[0] > 0], labels.data[2]).size
    viewer.dims.set_current_step(0, 0)
    dock.choose("planes", "current")
    top = labels.data[2].copy()
    dock.segment()
    assert dock.labels() is labels
    np.testing.assert_array_equal(labels.data[2], top)
    assert labels.metadata["tttunet"]["region"][0] == [0, 1]


def test_rgb_and_copy_as_command_line(viewer: Any, dock: Dock, tmp_path: Path, qapp: Any) -> None:
    from PIL import Image

    data = sample_data.histology_white()[0][0][:128, :128]
    Image.fromarray(data[..., :3]).save(tmp_path / "a tissue.png")
    (image,) = viewer.open(tmp_path / "a tissue.png", plugin="napari")
    dock.ready()
    assert dock.find("axes").text() == "YXS"
    assert not dock.find("channel").isVisible()
    labels = dock.segment()
    assert dock.message() == ""
    assert labels.data.shape == (128, 128)
    assert labels.data.max() >= 3
    same_place(labels, image)
    dock.click("copy_command")
    text = qapp.clipboard().text()
    assert text.startswith(f"tttunet segment '{tmp_path}/a tissue.png'")
    assert "--model nuclei" in text


def test_wrong_axes_are_told_at_once(viewer: Any, dock: Dock, qtbot: Any) -> None:
    add_sample(viewer)
    dock.ready()
    line = dock.find("axes")
    line.selectAll()
    qtbot.keyClicks(line, "YQ")
    assert "'Q' is not the name of an axis" in dock.message()
    assert not dock.find("segment").isEnabled()
    line.selectAll()
    qtbot.keyClicks(line, "xy")
    assert dock.message() == ""
    assert dock.widget.image.axes == "XY"
    dock.ready()


def test_a_channel_is_chosen(viewer: Any, dock: Dock) -> None:
    plane = sample_data.fluorescence()[0][0][:96, :96]
    data = np.stack([np.zeros_like(plane), plane])
    viewer.add_image(data, axis_labels=("c", "y", "x"), rgb=False)
    dock.ready()
    assert dock.find("channel").isVisible()
    dock.choose("channel", "1")
    labels = dock.segment()
    assert dock.message() == ""
    assert labels.data.shape == (96, 96)
    assert labels.data.max() >= 1
    dock.choose("channel", "0")
    dock.segment()
    assert not dock.labels().data.any()
    assert "No objects were found" in dock.message()


def test_a_level_of_a_pyramid(viewer: Any, dock: Dock) -> None:
    data = sample_data.fluorescence()[0][0][:256, :256]
    image = viewer.add_image([data, data[::2, ::2]], multiscale=True, scale=(0.5, 0.5))
    dock.ready()
    dock.find("more_options_button").setChecked(True)
    assert dock.find("level").isVisible()
    dock.choose("level", 1)
    labels = dock.segment()
    assert labels.data.shape == (128, 128)
    corner = Transform.of(labels).to_world([-0.5, -0.5])
    np.testing.assert_allclose(corner, Transform.of(image).to_world([-0.5, -0.5]))
    corner = Transform.of(labels).to_world([127.5, 127.5])
    np.testing.assert_allclose(corner, Transform.of(image).to_world([255.5, 255.5]))


def test_probabilities_and_uncertainty(viewer: Any, dock: Dock) -> None:
    image = add_sample(viewer, scale=(2, 2))
    dock.find("probabilities").setChecked(True)
    dock.find("uncertainty").setChecked(True)
    labels = dock.segment()
    dock.segment()
    kinds = {x.metadata["tttunet"]["shows"]: x for x in viewer.layers if "tttunet" in x.metadata
             and "shows" in x.metadata["tttunet"]}  # fmt: skip
    assert len(viewer.layers) == 4, "a second run replaces them"
    for layer in kinds.values():
        same_place(layer, image)
        assert 0 <= layer.data.min() <= layer.data.max() <= 1
    inside = labels.data > 0
    probability = kinds["probability"].data
    assert probability[inside].mean() > 0.8 > 0.2 > probability[~inside].mean()
    assert dock.find("image").count() == 1, "they are not offered as images"


def test_the_image_follows_the_active_layer_until_it_is_pinned(viewer: Any, dock: Dock) -> None:
    first, second = add_sample(viewer, name="one"), add_sample(viewer, name="two")
    assert dock.widget.image.layer is second
    viewer.layers.selection.active = first
    assert dock.find("image").currentText() == "one"
    dock.find("image").setCurrentIndex(1)
    dock.find("image").activated.emit(1)
    assert dock.find("pin_image").isChecked()
    viewer.layers.selection.active = first
    assert dock.widget.image.layer is second
    second.name = "renamed"
    assert dock.find("image").currentText() == "renamed"
    viewer.layers.remove(second)
    assert dock.widget.image.layer is first
    viewer.layers.clear()
    assert dock.widget.image.layer is None
    assert "Open an image" in dock.find("need").text()


def test_the_model_is_explained_and_the_device_named(viewer: Any, dock: Dock) -> None:
    add_sample(viewer)
    dock.ready()
    card = dock.find("model").toolTip()
    for text in ("Trained on", "Licence", "CC0-1.0", "Scores", "fluorescence"):
        assert text in card
    assert dock.find("model").currentText() == "nuclei (2D)"
    assert dock.find("model_title").text() == "Nuclei in microscopy, 2D"
    dock.click("model_info")
    assert dock.find("model_card").isVisible()
    dock.until(lambda: "Will run on" in dock.find("device_used").text())


def test_a_damaged_model_cannot_be_chosen(
    viewer: Any, dock: Dock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_tttunet.session import session

    shipped = len(list_models())
    dock.until(lambda: dock.find("model").count() == shipped)
    (tmp_path / "models" / "broken").mkdir(parents=True)
    monkeypatch.setenv("TTTUNET_MODELS", str(tmp_path / "models"))
    session().models_changed.emit()
    dock.until(lambda: dock.find("model").count() == shipped + 1)
    assert dock.find("model").currentData() == "nuclei"
    assert not dock.find("model").model().item(shipped).isEnabled()


def test_choices_are_remembered(viewer: Any, qtbot: Any) -> None:
    first = Dock(viewer, qtbot)
    add_sample(viewer)
    first.ready()
    first.find("mirror").setChecked(True)
    first.find("tile").setValue(96)
    first.find("min_size_box").setValue(33)
    first.choose("where", "view")
    first.widget.settings.save()
    second = Dock(viewer, qtbot)
    second.ready()
    choices = second.widget.choices()
    assert (choices.mirror, choices.tile) == (True, (96,))
    assert choices.decoding == {"min_size": 33}
    assert second.widget.view.where_choice == "view"


def test_a_killed_worker_is_told_and_the_next_run_works(viewer: Any, dock: Dock) -> None:
    from napari_tttunet.session import session

    image = add_sample(viewer)
    labels = dock.segment()
    before = labels.data.copy()
    small, image.data = image.data, np.tile(image.data, (4, 4))
    dock.find("tile").setValue(64)
    dock.start()
    dock.until(lambda: any("preview" in name for name in dock.names()))
    os.kill(session().engine.worker_pid, signal.SIGKILL)
    dock.until(lambda: not dock.widget.run.running)
    assert "ended unexpectedly" in dock.message()
    np.testing.assert_array_equal(labels.data, before)
    assert len(viewer.layers) == 2
    image.data = small
    assert dock.segment() is labels
    assert dock.message() == ""


def test_the_image_goes_while_it_is_segmented(viewer: Any, dock: Dock) -> None:
    image = add_sample(viewer)
    image.data = np.tile(image.data, (8, 8))
    dock.find("tile").setValue(64)
    dock.start()
    dock.until(lambda: any("preview" in name for name in dock.names()))
    viewer.layers.remove(image)
    dock.until(lambda: not dock.widget.run.running)
    assert len(viewer.layers) == 0


def test_the_dock_is_closed_in_the_middle(viewer: Any, dock: Dock, qtbot: Any) -> None:
    from napari_tttunet.session import session

    image = add_sample(viewer)
    image.data = np.tile(image.data, (8, 8))
    dock.find("tile").setValue(64)
    dock.start()
    run, job = dock.widget.run, dock.widget.run._job
    dock.until(lambda: any("preview" in name for name in dock.names()))
    viewer.window.remove_dock_widget(dock.widget)
    dock.widget.deleteLater()
    qtbot.waitUntil(lambda: job.finished, timeout=PATIENCE)
    qtbot.wait(100)
    assert not run.running
    assert [layer.name for layer in viewer.layers] == [image.name]
    assert not viewer.keymap, "the keys are given back"
    assert session().engine.worker_pid


def test_the_viewer_is_closed_in_the_middle(make_napari_viewer: Any, qtbot: Any) -> None:
    viewer = make_napari_viewer(show=True)
    dock = Dock(viewer, qtbot)
    image = add_sample(viewer)
    image.data = np.tile(image.data, (8, 8))
    dock.find("tile").setValue(64)
    dock.start()
    job = dock.widget.run._job
    dock.until(lambda: any("preview" in name for name in dock.names()))
    viewer.close()
    qtbot.waitUntil(lambda: job.finished, timeout=PATIENCE)
    qtbot.wait(100)
    assert job.outcome.kind == "cancelled"


PROGRAM = """
import sys, time
import napari
from qtpy.QtWidgets import QApplication
import napari_tttunet.session as shared
import numpy as np

viewer = napari.Viewer(show=True)
start = time.perf_counter()
dock, widget = viewer.window.add_plugin_dock_widget("napari-tttunet", "Segment")
print("seconds", time.perf_counter() - start)
viewer.add_image(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))
until = time.monotonic() + 60
while not widget.view.result.text() and time.monotonic() < until:
    QApplication.processEvents()
    if widget.view.segment.isEnabled() and not widget.view.result.text():
        widget.view.segment.click()
    time.sleep(0.01)
print(widget.view.result.text())
print("heavy", sorted({"torch", "monai", "triton", "skimage", "scipy.ndimage"} & set(sys.modules)))
shared.close_session()
viewer.close()
"""


def test_the_window_never_imports_torch(screen: None, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    assert "object" in ran.stdout
    heavy = ran.stdout.rpartition("heavy")[2]
    assert "torch" not in heavy
    assert "monai" not in heavy
    assert "triton" not in heavy
