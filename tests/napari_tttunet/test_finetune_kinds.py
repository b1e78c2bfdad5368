"""Fine-tuning what is not the usual: classes, a new model, colours, a stack, and absurd labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from finetuning import Tuning, make_project
from napari_tttunet import sample_data
from napari_tttunet.class_labels import classes_text, parse_classes
from napari_tttunet.finetune_view import NEW_MODEL
from segmenting import add_sample
from tttunet.models.card import read_config
from tttunet.projects import Project, Region
from tttunet.projects.runs import remembered_run

pytestmark = pytest.mark.usefixtures("one_engine", "own_settings", "own_library")


def add_labels(tuning: Tuning, image: Any, data: np.ndarray, name: str = "labels") -> Any:
    """Labels on an image, which are to be corrected."""
    labels = tuning.viewer.add_labels(
        np.array(data, np.int32), name=name, scale=image.scale, units=image.units
    )
    tuning.viewer.layers.selection.active = labels
    tuning.viewer.reset_view()
    tuning.qtbot.wait(200)
    return labels


def truth_of(sample: str, size: int = 128) -> np.ndarray:
    return np.array(getattr(sample_data, sample)()[1][0][:size, :size], np.int32)


def draw_region(tuning: Tuning, *corners: tuple[float, ...]) -> None:
    """Complete a rectangle by the button and the mouse."""
    tuning.click("complete_region")
    tuning.drag(tuning.viewer.layers.selection.active, *corners)
    tuning.until(lambda: "1 region completed" in tuning.message)


def test_classes_are_learnt_and_both_models_kept(tuning: Tuning, tmp_path: Path) -> None:
    image = add_sample(tuning.viewer)
    truth = truth_of("fluorescence")
    classes = np.where(truth > 0, 1 + (truth % 2), 0)
    add_labels(tuning, image, classes)
    folder = tuning.new_project(tmp_path, task="semantic", classes="odd, even, other")
    assert not [word for word in ("object",) if word in tuning.used]
    draw_region(tuning, (2, 2), (60, 60), (125, 100))
    tuning.until(lambda: "pixels of 2 classes and 1 complete region" in tuning.used)
    tuning.choose("start_from", "nuclei")
    tuning.until(lambda: "Nothing is marked as 'other'" in tuning.used)
    tuning.type_in("known_classes", "odd, even")
    tuning.find("known_classes").editingFinished.emit()
    tuning.until(lambda: "Nothing is marked" not in tuning.used)
    tuning.tiny_budget(3)
    tuning.click("finetune")
    tuning.finished()
    result = tuning.dock.decision.run["result"]
    assert result["steps"] == 3
    assert "Dice" in tuning.find("finetune_scores").text()
    tuning.click("keep_both")
    project = tuning.dock.work.project
    tuning.until(lambda: [one.name for one in project.versions] == ["nuclei-v2"])
    tuning.until(lambda: tuning.dock.work.project.model != "models/nuclei-v2")
    tuning.until(lambda: "goes on with the old one" in tuning.find("finetune_scores").text())
    kept = read_config(folder / "models" / "nuclei-v2")
    assert kept.task == "semantic"
    assert [label.name for label in kept.labels] == ["odd", "even"]
    assert tuning.find("start_from").findData("models/nuclei-v2") >= 0
    tuning.until(lambda: any(entry["name"] == "nuclei-v2" for entry in tuning.dock.models))
    tuning.until(lambda: tuning.find("revert").isEnabled())
    assert tuning.find("revert").text() == "Close"
    tuning.click("revert")
    assert not tuning.find("revert").isVisible()
    assert (folder / "models" / "nuclei-v2").is_dir(), "what was kept stays"


def test_a_new_model_from_my_labels(tuning: Tuning, tmp_path: Path) -> None:
    tuning.open_project(make_project(tmp_path))
    tuning.choose("start_from", NEW_MODEL)
    tuning.tiny_budget(2)
    tuning.click("finetune")
    tuning.finished()
    text = tuning.find("finetune_scores").text()
    assert "held-out corrections" in text or "Nothing better" in text
    run = tuning.dock.decision.run
    tuning.until(lambda: "result" in (remembered_run(tuning.dock.work.project) or {}))
    assert run["model"] == ""
    found = read_config(Path(run["result"]["folder"]))
    assert found.task == "instance"
    assert found.card.parent is None


def test_colours(tuning: Tuning, tmp_path: Path) -> None:
    data, given, _ = sample_data.histology_white()[0]
    image = tuning.viewer.add_image(data[:128, :128], name="tissue", rgb=True)
    labels = add_labels(tuning, image, truth_of("histology_white"))
    folder = tuning.new_project(tmp_path)
    draw_region(tuning, (2, 2), (60, 60), (125, 125))
    tuning.tiny_budget(60)  # longer than the first preview takes to come
    tuning.click("finetune")
    tuning.until(lambda: any("preview" in layer.name for layer in tuning.viewer.layers))
    tuning.finished()
    with Project.open(folder, read_only=True) as project:
        (reference,) = project.images
        assert (reference.axes, reference.rgb) == ("CYX", True)
        np.testing.assert_array_equal(
            project.load(reference).array, np.moveaxis(image.data[..., :3], -1, 0)
        )
    assert given["rgb"]
    assert labels in tuning.viewer.layers
    (row, *_) = tuning.find("finetune_pictures").rows
    assert row[0][1].allGray() is False


def test_a_slice_of_a_stack(tuning: Tuning, viewer: Any, tmp_path: Path) -> None:
    data, given, _ = sample_data.ovule_nuclei()[0]
    image = viewer.add_image(data[:4, :96, :96], **{**given, "name": "stack"})
    truth = sample_data.ovule_nuclei()[1][0][:4, :96, :96]
    labels = add_labels(tuning, image, truth)
    viewer.dims.set_point(0, 2 * image.scale[0])
    tuning.qtbot.wait(100)
    tuning.new_project(tmp_path)
    draw_region(tuning, (2, 2, 2), (2, 40, 40), (2, 93, 93))
    tuning.tiny_budget(60)
    tuning.click("finetune")
    tuning.until(lambda: any("preview" in layer.name for layer in viewer.layers))
    preview = next(layer for layer in viewer.layers if "preview" in layer.name)
    assert preview.data.shape[0] == 1
    assert preview.data_to_world((0, 0, 0))[0] == pytest.approx(2 * image.scale[0])
    tuning.finished()
    np.testing.assert_array_equal(labels.data, truth)
    assert "held-out corrections" in tuning.find("finetune_scores").text()
    tuning.click("revert")
    tuning.until(lambda: not list((tuning.dock.work.project.folder / "runs").iterdir()))


def refused(tuning: Tuning) -> str:
    """Press Fine-tune; what the dock says instead of training."""
    tuning.dock.view.message.clear()
    tuning.click("finetune")
    tuning.until(lambda: tuning.dock.view.message.kind in ("warning", "error"))
    tuning.until(tuning.find("finetune").isEnabled)
    assert not tuning.dock.run.running
    assert tuning.find("finetune").isVisible()
    assert not list((tuning.dock.work.project.folder / "runs").glob("*"))
    return tuning.message


def test_absurd_labels_are_told(tuning: Tuning, tmp_path: Path) -> None:
    image = add_sample(tuning.viewer)
    labels = add_labels(tuning, image, np.zeros((128, 128), int))
    tuning.new_project(tmp_path, task="semantic", classes="cell")
    assert "Nothing is checked yet" in refused(tuning)
    labels.data_setitem((np.repeat(np.arange(20, 30), 10), np.tile(np.arange(20, 30), 10)), 7)
    tuning.until(lambda: "100 pixels" in tuning.used)
    assert "Class 7 is painted, but the project has no such class" in refused(tuning)
    labels.undo()
    tuning.until(lambda: "nothing is checked" in tuning.used)
    assert "Nothing is checked yet" in refused(tuning)


def test_a_disk_that_cannot_be_written_is_told(tuning: Tuning, tmp_path: Path) -> None:
    tuning.open_project(make_project(tmp_path))
    runs = tuning.dock.work.project.folder / "runs"
    if runs.is_dir():
        runs.rmdir()
    runs.write_text("somebody's file")
    tuning.click("finetune")
    tuning.until(lambda: tuning.dock.view.message.kind == "error")
    tuning.until(tuning.find("finetune").isVisible)
    assert not tuning.find("cancel_finetune").isVisible()
    runs.unlink()
    tuning.tiny_budget(2)
    tuning.click("finetune")
    tuning.finished()


def test_doubtful_labels_are_told_but_trained_on(tuning: Tuning, tmp_path: Path) -> None:
    labels = tuning.open_project(make_project(tmp_path, objects=2))
    corner = np.repeat(np.arange(5), 5), np.tile(np.arange(5), 5)
    labels.data_setitem((corner[0] + 2, corner[1] + 2), 99)
    labels.data_setitem((corner[0] + 110, corner[1] + 110), 99)
    tuning.saved()
    tuning.tiny_budget(2)
    tuning.click("finetune")
    tuning.until(lambda: "pieces far apart" in tuning.message)
    assert "Object 99" in tuning.message
    tuning.finished()
    assert "pieces far apart" in tuning.message, "it is still there to read"


def test_what_a_project_cannot_take_is_told(tuning: Tuning, tmp_path: Path) -> None:
    image = add_sample(tuning.viewer)
    half = tuning.viewer.add_labels(np.ones((64, 64), np.int32), scale=image.scale, name="half")
    tuning.viewer.layers.selection.active = half
    tuning.press("mark_checked", half, (30, 30))
    tuning.until(lambda: "No image lies under all of 'half'" in tuning.message)
    tuning.new_project(tmp_path)
    tuning.dock.view.message.clear()
    tuning.dock.create_project(tmp_path / "cells", name="again")
    tuning.until(lambda: tuning.dock.view.message.kind == "error")
    assert "is not empty" in tuning.message


def test_a_volume_is_learnt_with_a_preview(tuning: Tuning, viewer: Any, tmp_path: Path) -> None:
    """Of what is seen, a slice, a 3D model needs the neighbours, too."""
    from napari_tttunet.sample_data import ovule_nuclei

    data, _, _ = ovule_nuclei()[0]
    truth, _, _ = ovule_nuclei()[1]
    data, truth = np.asarray(data)[:12, :64, :64], np.asarray(truth)[:12, :64, :64]
    folder = tmp_path / "volume"
    classes = {1: "nucleus"}
    with Project.create(folder, task="semantic", dim=3, classes=classes) as project:
        image = project.add_image(data, axes="ZYX", name="stack")
        whole = tuple((0, n) for n in data.shape)
        project.corrections(image).complete(Region(whole), (truth > 0).astype(np.int32))
    tuning.open_project(folder)
    # None of the library: there, 3D models are for heads.
    assert tuning.find("start_from").currentData() == NEW_MODEL
    tuning.tiny_budget(300)
    tuning.choose("parts", "auto")
    assert tuning.find("preview").isChecked()
    tuning.click("finetune")
    tuning.until(lambda: any("preview" in layer.name for layer in viewer.layers))
    shown = next(layer for layer in viewer.layers if "preview" in layer.name)
    assert shown.data.shape == data.shape
    tuning.click("stop")
    tuning.finished()
    assert tuning.find("keep").isEnabled()
    assert "preview is left out" not in tuning.message


def test_a_class_is_added_later(tuning: Tuning, tmp_path: Path) -> None:
    from qtpy.QtCore import Qt

    image = add_sample(tuning.viewer)
    classes = np.where(truth_of("fluorescence") > 0, 1, 0)
    classes[:20, :20] = 2
    add_labels(tuning, image, classes)
    folder = tuning.new_project(tmp_path, task="semantic", classes="nucleus")
    draw_region(tuning, (2, 2), (60, 60), (125, 100))
    tuning.until(lambda: "1 complete region" in tuning.used)
    assert "Class 2 is painted" in refused(tuning)
    field = tuning.find("known_classes")
    assert field.text() == "nucleus"
    tuning.type_in("known_classes", "nucleus, 1: frame")
    tuning.qtbot.keyClick(field, Qt.Key.Key_Return)
    assert "Number 1 is 'nucleus' already" in tuning.message
    tuning.type_in("known_classes", "nucleus, frame")
    tuning.qtbot.keyClick(field, Qt.Key.Key_Return)
    tuning.until(lambda: tuning.dock.work.project.classes == {1: "nucleus", 2: "frame"})
    with Project.open(folder, read_only=True) as project:
        assert project.classes == {1: "nucleus", 2: "frame"}
    tuning.tiny_budget(2)
    tuning.click("finetune")
    tuning.finished()


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        ({1: "cell", 2: "nucleus"}, "cell, nucleus"),
        ({1: "spleen", 4: "liver"}, "1: spleen, 4: liver"),
        ({1: "small, round", 2: "large"}, '"small, round",large'),
    ],
)
def test_classes_are_typed_as_they_are_shown(classes: dict[int, str], text: str) -> None:
    assert classes_text(classes) == text
    assert parse_classes(text) == classes


def test_typed_classes_need_numbers_of_their_own() -> None:
    assert parse_classes(" 4 = liver , bile,, ") == {4: "liver", 5: "bile"}
    assert parse_classes("") == {}
    for text in ("1: a, 1: b", "2: a, 1: b, c", "0: nothing"):
        with pytest.raises(ValueError, match=r"is .* already"):
            parse_classes(text)
