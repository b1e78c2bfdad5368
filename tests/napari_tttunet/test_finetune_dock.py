"""The whole loop in a real viewer: correct, fine-tune, keep or revert, crash, come back."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from finetuning import Tuning, make_project
from napari_tttunet.annotation import BACKGROUND, OBJECT, UNKNOWN
from napari_tttunet.keys import FINETUNE_KEYS, KEYS
from segmenting import Dock, add_sample
from tttunet.projects import Project
from tttunet.projects.runs import remembered_run

pytestmark = pytest.mark.usefixtures("one_engine", "own_settings", "own_library")


def centre(labels: np.ndarray, number: int) -> tuple[int, int]:
    """The pixel of an object that is nearest to its middle."""
    places = np.argwhere(labels == number)
    y, x = places[((places - places.mean(0)) ** 2).sum(1).argmin()]
    return int(y), int(x)


def largest(labels: np.ndarray) -> int:
    counts = np.bincount(labels.ravel())
    counts[0] = 0
    return int(counts.argmax())


def test_segment_paint_mark_finetune_and_keep(viewer: Any, qtbot: Any, tmp_path: Path) -> None:
    add_sample(viewer, size=128)
    segment = Dock(viewer, qtbot)
    labels = segment.segment()
    segment.widget.parent().hide()
    tuning = Tuning(viewer, qtbot)
    assert "No project is open" in tuning.used
    assert not tuning.find("finetune").isEnabled()
    viewer.layers.selection.active = labels
    viewer.reset_view()
    qtbot.wait(200)

    # Before there is a project, nothing of this is lost.
    number = largest(labels.data)
    place = centre(labels.data, number)
    tuning.press("mark_checked", labels, place)
    assert f"Object {number} is checked" in tuning.message
    assert "checked" in viewer.layers
    project_folder = tuning.new_project(tmp_path)
    tuning.until(lambda: "1 object" in tuning.used)
    labels.selected_label, labels.mode, labels.brush_size = number, "paint", 4
    before = labels.data.copy()
    outside = np.argwhere(labels.data == 0)
    nearest = outside[((outside - place) ** 2).sum(1).argmin()]
    tuning.drag(labels, place, tuple(nearest))
    painted = labels.data != before
    assert painted.any()
    assert (tuning.dock.work.annotation.state[painted] == OBJECT).all()
    tuning.saved()
    with Project.open(project_folder, read_only=True) as project:
        (image,) = project.images
        stored, vouched = project.corrections(image).read(image.bounds)
        assert (stored[painted] == number).all()
        assert vouched[painted].all()

    # A single object: nothing is held out, so that the new model counts.
    tuning.tiny_budget(100)  # longer than the first preview takes to come
    tuning.click("finetune")
    tuning.until(lambda: any("preview" in layer.name for layer in viewer.layers))
    tuning.click("stop")
    tuning.finished()
    assert not any("preview" in layer.name for layer in viewer.layers)
    assert len(tuning.dock.view.curve.losses) > 0
    assert "no score can be told" in tuning.find("finetune_scores").text()
    assert tuning.dock.work.project.versions == []
    assert tuning.dock.work.project.model == "nuclei"
    assert tuning.find("keep").text() == "Keep as v2"
    tuning.click("keep")
    tuning.until(lambda: tuning.dock.work.project.model == "models/nuclei-v2")
    tuning.until(lambda: segment.find("model").findData("nuclei-v2") >= 0)
    assert tuning.find("start_from").currentData() == "models/nuclei-v2"
    assert "Kept as 'nuclei-v2'" in tuning.find("finetune_scores").text()
    assert remembered_run(tuning.dock.work.project) is None
    tuning.until(lambda: tuning.find("revert").isEnabled())
    tuning.click("revert")
    tuning.until(lambda: tuning.dock.work.project.model == "nuclei")
    assert [version.name for version in tuning.dock.work.project.versions] == ["nuclei-v2"]


def test_scores_and_pictures_then_revert(tuning: Tuning, tmp_path: Path) -> None:
    tuning.open_project(make_project(tmp_path))
    tuning.tiny_budget(3)
    tuning.find("preview").setChecked(False)
    tuning.find("share").setValue(40)
    tuning.find("blend").setValue(70)
    tuning.click("finetune")
    tuning.finished()
    text = tuning.find("finetune_scores").text()
    assert "held-out corrections" in text
    assert "\N{RIGHTWARDS ARROW}" in text
    assert "objects)" in text or "object)" in text
    (row, *_) = tuning.find("finetune_pictures").rows
    assert [name for name, _ in row] == ["truth", "before", "after"]
    project = tuning.dock.work.project
    (run,) = (project.folder / "runs").iterdir()
    record = json.loads((run / "training" / "finetune.json").read_text())
    assert (record["share"], record["settings"]["blend"]) == (0.4, 0.7)
    tuning.until(lambda: "result" in (remembered_run(project) or {}))
    tuning.click("revert")
    tuning.until(lambda: not run.exists())
    assert not tuning.find("keep").isVisible()
    assert project.model == "nuclei"
    assert project.versions == []
    assert "fine-tuning reverted" in [event["event"] for event in project.history()]

    # The next day: the project knows what it was told.
    tuning.find("steps").setValue(77)
    tuning.choose("parts", "decoder")
    tuning.find("learning_rate").clear()
    tuning.find("replay").setChecked(True)
    tuning.find("share").setValue(25)
    tuning.find("blend").setValue(0)
    assert "blend" not in tuning.dock.view.expert.options(), "that is automatic"
    tuning.open_project(project.folder)
    tuning.until(lambda: tuning.find("steps").value() == 3)
    assert tuning.find("parts").currentData() == "head"
    assert tuning.dock.view.expert.options()["learning_rate"] == 0.0003
    assert not tuning.find("replay").isChecked()
    assert tuning.dock.view.expert.options()["share"] == 0.4
    assert tuning.dock.view.expert.options()["blend"] == 0.7


def test_the_worker_is_killed_and_the_fine_tuning_resumed(tuning: Tuning, tmp_path: Path) -> None:
    from napari_tttunet.session import session

    labels = tuning.open_project(make_project(tmp_path, objects=1))
    before = labels.data.copy()
    tuning.tiny_budget(40)
    tuning.click("finetune")
    checkpoint = tmp_path / "cells" / "runs"
    tuning.until(lambda: bool(list(checkpoint.glob("*/training/checkpoint.pt"))))
    os.kill(session().engine.worker_pid, signal.SIGKILL)
    tuning.until(lambda: tuning.dock.view.message.kind == "error")
    assert "Press Resume" in tuning.message
    np.testing.assert_array_equal(labels.data, before)
    steps = tuning.dock.view.curve.losses[-1][0]
    assert steps < 40, "it must have been in the middle"
    tuning.click("resume")
    tuning.finished()
    assert tuning.dock.decision.run["result"]["steps"] == 40
    tuning.until(lambda: not tuning.find("resume").isVisible())
    assert tuning.find("keep").isEnabled()


def test_pause_stop_and_cancel(tuning: Tuning, tmp_path: Path) -> None:
    tuning.open_project(make_project(tmp_path, objects=1))
    project = tuning.dock.work.project
    tuning.tiny_budget(2000)
    tuning.click("finetune")
    losses = tuning.dock.view.curve.losses
    tuning.until(lambda: len(tuning.dock.view.curve.losses) > 1)
    tuning.click("pause")
    tuning.qtbot.wait(1500)  # a step may be under way
    count = len(tuning.dock.view.curve.losses)
    tuning.qtbot.wait(1500)
    assert len(tuning.dock.view.curve.losses) == count
    tuning.click("pause")
    tuning.until(lambda: len(tuning.dock.view.curve.losses) > count)
    tuning.click("stop")
    tuning.finished()
    assert 1 < tuning.dock.decision.run["result"]["steps"] < 2000
    assert losses is not None

    (old,) = (project.folder / "runs").iterdir()
    tuning.click("finetune")  # nobody decided: the old run goes, but not without a word
    assert "neither kept nor reverted" in tuning.message
    assert old.exists()
    assert tuning.find("keep").isEnabled()
    assert not tuning.dock.run.running
    tuning.click("finetune")
    tuning.until(lambda: not old.exists())
    tuning.until(lambda: len(tuning.dock.view.curve.losses) > 1)
    assert tuning.dock.run.running
    tuning.click("cancel_finetune")
    tuning.until(lambda: "Cancelled" in tuning.message)
    tuning.until(lambda: not list((project.folder / "runs").iterdir()))
    assert remembered_run(project) is None
    assert project.model == "nuclei"


def test_what_was_learnt_survives_a_failure(tuning: Tuning, tmp_path: Path) -> None:
    """A full disk, for example, ends a training; its last checkpoint does not go with it."""
    tuning.open_project(make_project(tmp_path, objects=1))
    tuning.find("preview").setChecked(False)
    tuning.tiny_budget(100)
    tuning.click("finetune")
    runs = tmp_path / "cells" / "runs"
    tuning.until(lambda: bool(list(runs.glob("*/training/checkpoint.pt"))))
    (training,) = runs.glob("*/training")
    history = training / "history.jsonl"
    history.rename(training / "kept.jsonl")
    history.mkdir()  # cannot be written any more
    tuning.until(lambda: tuning.dock.view.message.kind == "error")
    assert "Resume goes on" in tuning.message
    history.rmdir()
    (training / "kept.jsonl").rename(history)
    tuning.click("resume")
    tuning.finished()
    assert tuning.dock.decision.run["result"]["steps"] == 100


def test_the_viewer_is_closed_in_the_middle(
    make_napari_viewer: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari._qt.qt_main_window.SHOW_QT_WARNING", False, raising=False)
    viewer = make_napari_viewer(show=True)
    tuning = Tuning(viewer, qtbot)
    labels = tuning.open_project(make_project(tmp_path, objects=1))
    tuning.tiny_budget(2000)
    tuning.click("finetune")
    tuning.until(lambda: len(tuning.dock.view.curve.losses) > 0)
    labels.paint((100, 5), 77)
    job = tuning.dock.run._job
    viewer.close()
    qtbot.waitUntil(lambda: job.finished, timeout=120_000)
    with Project.open(tmp_path / "cells") as project:
        (image,) = project.images
        stored, vouched = project.corrections(image).read(image.bounds)
        assert stored[100, 5] == 77
        assert vouched[100, 5]


def test_corrections_come_back_the_next_day(tuning: Tuning, viewer: Any, tmp_path: Path) -> None:
    labels = tuning.open_project(make_project(tmp_path))
    annotation = tuning.dock.work.annotation
    labels.paint((100, 110), 50)
    number = int(labels.data[centre(labels.data, largest(labels.data))])
    tuning.press("take_back", labels, centre(labels.data, number))
    state, data = annotation.state.copy(), labels.data.copy()
    tuning.saved()
    viewer.window.remove_dock_widget(tuning.dock)
    tuning.dock.deleteLater()
    tuning.qtbot.wait(100)
    viewer.layers.clear()

    again = Tuning(viewer, tuning.qtbot)
    combo = again.find("project")
    again.until(lambda: combo.findText("cells") >= 0)
    place = combo.findText("cells")
    assert combo.itemData(place) == str(tmp_path / "cells")
    combo.activated.emit(place)
    again.until(lambda: again.dock.work.annotation is not None)
    restored = again.dock.work.annotation
    assert "fluorescence" in viewer.layers
    np.testing.assert_array_equal(restored.state, state)
    np.testing.assert_array_equal(restored.labels[state > 0], data[state > 0])
    again.until(lambda: "complete region" in again.used)


def test_a_region_is_drawn_and_the_next_place_found(tuning: Tuning, tmp_path: Path) -> None:
    labels = tuning.open_project(make_project(tmp_path, objects=2))
    annotation, viewer = tuning.dock.work.annotation, tuning.viewer
    tuning.click("complete_region")
    assert viewer.layers.selection.active.mode == "add_rectangle"
    tuning.drag(viewer.layers.selection.active, (90, 90), (100, 100), (120, 124))
    tuning.until(lambda: "1 region completed" in tuning.message)
    assert viewer.layers.selection.active is labels
    assert "complete region" not in viewer.layers
    assert (annotation.state[92:118, 92:122] != UNKNOWN).all()
    tuning.until(lambda: "1 complete region" in tuning.used)

    # A polygon of a layer of one's own, by the key.
    shapes = viewer.add_shapes([np.array([[5, 100], [5, 125], [25, 125]])], shape_type="polygon")
    viewer.layers.selection.active = shapes
    tuning.press("complete_region")
    assert annotation.state[8, 120] != UNKNOWN
    assert annotation.state[22, 102] == UNKNOWN
    tuning.until(lambda: "2 complete regions" in tuning.used)

    viewer.layers.selection.active = labels
    labels.data_setitem((np.array([60, 61, 60, 61]), np.array([5, 5, 6, 6])), 90)
    labels.selected_label = 90
    tuning.click("take_back")
    assert annotation.state[60, 5] == UNKNOWN
    tuning.press("next_unchecked")
    tuning.until(lambda: "not checked" in tuning.message and "sizes first" in tuning.message)
    assert labels.selected_label == 90
    tuning.click("erase_object")
    assert labels.data[60, 5] == 0
    assert annotation.state[60, 5] == BACKGROUND
    labels.undo()
    assert labels.data[60, 5] == 90
    tuning.click("add_object")
    assert labels.mode == "paint"
    assert labels.selected_label == labels.data.max() + 1


def test_the_overlay_is_seen(tuning: Tuning, tmp_path: Path) -> None:
    labels = tuning.open_project(make_project(tmp_path, objects=1))
    before = tuning.viewer.screenshot(flash=False).astype(int)
    tuning.dock.work.complete(region := _region())
    tuning.qtbot.wait(200)
    after = tuning.viewer.screenshot(flash=False).astype(int)
    assert (np.abs(after - before).max(-1) > 8).mean() > 0.02
    assert region.bounds[0][1] <= labels.data.shape[0]


def _region() -> Any:
    from tttunet.projects import Region

    return Region(((100, 128), (0, 128)))


def test_what_cannot_be_trained_on_is_said(tuning: Tuning, tmp_path: Path) -> None:
    labels = tuning.open_project(make_project(tmp_path, objects=1))
    for number in np.unique(labels.data)[1:]:
        labels.selected_label = int(number)
        tuning.click("erase_object")
    tuning.click("finetune")
    tuning.until(lambda: bool(tuning.dock.view.message.kind == "warning"))
    assert "Only background is checked" in tuning.message
    assert tuning.find("finetune").isEnabled()
    assert not tuning.dock.run.running


def test_labels_are_removed_while_they_are_corrected(tuning: Tuning, tmp_path: Path) -> None:
    labels = tuning.open_project(make_project(tmp_path, objects=1))
    labels.paint((100, 100), 60)
    tuning.viewer.layers.remove(labels)
    tuning.qtbot.wait(100)
    assert tuning.dock.work.annotation is None
    assert "checked" not in tuning.viewer.layers
    tuning.click("complete_region") if tuning.find("complete_region").isEnabled() else None
    with Project.open(tmp_path / "cells", read_only=True) as project:
        image = project.images[0]
        tuning.until(lambda: bool(project.corrections(image).read(image.bounds)[1][100, 100]))


def test_a_stack_is_corrected_slice_by_slice(tuning: Tuning, viewer: Any, tmp_path: Path) -> None:
    from napari_tttunet.sample_data import ovule_nuclei

    data, given, _ = ovule_nuclei()[0]
    given = {**given, "name": "stack"}
    image = viewer.add_image(data[:6, :60, :70], **given)
    truth, _, _ = ovule_nuclei()[1]
    labels = viewer.add_labels(
        np.array(truth[:6, :60, :70], np.int32), scale=image.scale, units=image.units
    )
    viewer.dims.set_point(0, 3 * image.scale[0])
    viewer.reset_view()
    tuning.qtbot.wait(200)
    number = largest(labels.data[3])
    tuning.press("mark_checked", labels, (3, *centre(labels.data[3], number)))
    assert f"Object {number} is checked" in tuning.message
    tuning.click("complete_region")
    drawn = viewer.layers.selection.active
    tuning.drag(drawn, (3, 5, 5), (3, 10, 10), (3, 25, 30))
    tuning.until(lambda: "1 region completed" in tuning.message)
    state = tuning.dock.work.annotation.state
    assert (state[3, 7:23, 7:28] != UNKNOWN).all()
    assert not state[[0, 1, 2, 4, 5]].any()

    tuning.find("region_depth").setValue(1)
    tuning.click("complete_region")
    drawn = viewer.layers.selection.active
    tuning.drag(drawn, (3, 30, 35), (3, 35, 40), (3, 50, 60))
    tuning.until(lambda: (state[2:5, 32:48, 38:58] != UNKNOWN).all())
    assert not state[[0, 1, 5]].any()

    # There was no project until now: it gets all of this.
    folder = tuning.new_project(tmp_path, "stack")
    tuning.until(lambda: "2 complete regions on 1 image" in tuning.used)
    with Project.open(folder, read_only=True) as project:
        (reference,) = project.images
        assert reference.axes == "ZYX"
        assert reference.spacing == pytest.approx(tuple(image.scale))
        regions = project.corrections(reference).regions
        assert [region.bounds[0] for region in regions] == [(3, 4), (2, 5)]
        stored, vouched = project.corrections(reference).read(reference.bounds)
    np.testing.assert_array_equal(vouched, state > 0)
    np.testing.assert_array_equal(stored[state > 0], labels.data[state > 0])


def test_our_keys_are_free_in_napari() -> None:
    from napari import layers
    from napari.utils.key_bindings import coerce_keybinding

    from napari_tttunet.keys import taken_keys

    ours = {coerce_keybinding(key) for key in FINETUNE_KEYS.values()}
    assert len(ours) == len(FINETUNE_KEYS)
    assert not ours & taken_keys()
    for kind in (layers.Image, layers.Labels, layers.Shapes):
        assert not ours & set(kind.class_keymap), kind
    assert set(FINETUNE_KEYS.values()) & set(KEYS.values()) == {"N"}
