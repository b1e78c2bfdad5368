"""What the Fine-tune dock helps with: regions taken back, the next place, the time it will take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from finetuning import Tuning, make_project
from napari_tttunet.annotation import OBJECT, UNKNOWN
from napari_tttunet.finetune_estimate import TRAINING_FACTOR, TimeEstimate
from napari_tttunet.settings import Settings
from segmenting import Dock, add_sample
from tttunet.projects import Project

pytestmark = pytest.mark.usefixtures("one_engine", "own_settings", "own_library")


def on_the_disk(folder: Path) -> tuple[int, np.ndarray]:
    """How many complete regions there are, and what is vouched for."""
    with Project.open(folder, read_only=True) as project:
        (image,) = project.images
        corrections = project.corrections(image)
        return len(corrections.regions), corrections.read(image.bounds)[1]


def test_a_region_is_removed_and_put_back(tuning: Tuning, tmp_path: Path) -> None:
    labels = tuning.open_project(make_project(tmp_path))
    viewer, annotation = tuning.viewer, tuning.dock.work.annotation
    assert tuning.find("complete_regions").count() == 1
    assert not tuning.find("put_back").isVisible()
    tuning.click("complete_region")
    tuning.drag(viewer.layers.selection.active, (90, 70), (100, 100), (120, 124))
    tuning.until(lambda: "2 complete regions" in tuning.used)
    tuning.until(lambda: tuning.find("complete_regions").count() == 2)
    state = annotation.state.copy()
    assert tuning.find("complete_regions").currentText().startswith("2: ")

    tuning.click("remove_region")
    tuning.until(lambda: "1 complete region on" in tuning.used)
    assert (annotation.state[:, 80:] == UNKNOWN).all()
    assert (annotation.state[:, :80] == state[:, :80]).all(), "they lie in the other region as well"
    tuning.saved()
    count, vouched = on_the_disk(tmp_path / "cells")
    assert count == 1
    np.testing.assert_array_equal(vouched != 0, annotation.state != UNKNOWN)

    tuning.click("put_back")
    tuning.until(lambda: "2 complete regions" in tuning.used)
    np.testing.assert_array_equal(annotation.state, state)
    tuning.until(lambda: not tuning.find("put_back").isVisible())

    # By the key: that under the mouse, of two the smaller one.
    tuning.press("remove_region", labels, (100, 75))
    tuning.until(lambda: "1 complete region on" in tuning.used)
    assert (annotation.state[:, 80:] == UNKNOWN).all()
    tuning.press("remove_region", labels, (60, 110))
    assert "no complete region under the mouse" in tuning.message
    tuning.press("remove_region", labels, (60, 20))
    tuning.until(lambda: "nothing is checked" in tuning.used)
    assert not annotation.state.any()
    tuning.saved()
    tuning.until(lambda: on_the_disk(tmp_path / "cells")[0] == 0)
    assert not on_the_disk(tmp_path / "cells")[1].any()


def test_a_region_before_there_is_a_project(tuning: Tuning, tmp_path: Path) -> None:
    image = add_sample(tuning.viewer)
    labels = tuning.viewer.add_labels(np.zeros((128, 128), np.int32), scale=image.scale)
    tuning.viewer.reset_view()
    tuning.qtbot.wait(200)
    for corner in (10, 70):
        tuning.click("complete_region")
        drawn = tuning.viewer.layers.selection.active
        tuning.drag(drawn, (corner, corner), (corner + 9, corner + 9), (corner + 30, corner + 30))
        tuning.until(lambda: "1 region completed" in tuning.message)
        tuning.dock.view.message.clear()
    tuning.press("remove_region", labels, (20, 20))
    tuning.until(lambda: tuning.find("complete_regions").count() == 1)
    folder = tuning.new_project(tmp_path)
    tuning.until(lambda: "1 complete region on" in tuning.used)
    tuning.saved()
    count, vouched = on_the_disk(folder)
    assert count == 1
    assert not vouched[:60, :60].any()
    assert vouched[75:95, 75:95].all()


def test_the_next_place_is_the_most_doubtful(viewer: Any, qtbot: Any) -> None:
    from napari_tttunet.session import session

    add_sample(viewer, scale=(2, 2))
    segment = Dock(viewer, qtbot)
    labels = segment.segment()
    tuning = Tuning(viewer, qtbot)
    viewer.layers.selection.active = labels
    job = session().engine.review(labels.data, labels.metadata["tttunet"]["maps_id"])
    places = job.wait(60).result["places"]
    assert len(places) > 3

    def goes_to(place: dict[str, Any]) -> None:
        camera = getattr(viewer, "scene", viewer).camera
        there = labels.data_to_world(place["centre"])
        tuning.until(lambda: np.allclose(tuple(camera.center)[-2:], there))
        tuning.until(lambda: "the most doubtful first" in tuning.message)
        if place["label"]:
            assert labels.selected_label == place["label"]
        else:
            assert "No label here" in tuning.message

    tuning.press("next_unchecked")
    goes_to(places[0])
    tuning.press("next_unchecked")
    goes_to(places[1])

    # What is checked meanwhile drops out.
    checked = next(place for place in places[2:] if place["label"])
    labels.selected_label = checked["label"]
    tuning.click("mark_checked")
    assert (tuning.dock.work.annotation.state[labels.data == checked["label"]] == OBJECT).all()
    following = [place for place in places[2:] if place is not checked]
    tuning.click("next_unchecked")
    goes_to(following[0])
    assert f"{len(places) - 1} are not checked" in tuning.message


def test_the_time_is_told_before_it_begins(tuning: Tuning, tmp_path: Path) -> None:
    tuning.open_project(make_project(tmp_path))
    time = tuning.find("finetune_time")
    tuning.until(lambda: "at most" in time.text())
    assert " steps" in time.text()
    tuning.tiny_budget(24)
    tuning.until(lambda: "24 steps" in time.text())
    assert "Guessed" in time.toolTip()
    tuning.click("finetune")
    tuning.until(lambda: not time.isVisible())
    tuning.finished()
    tuning.click("revert")
    tuning.until(lambda: "24 steps" in time.text())
    assert "As fast as the last fine-tuning" in time.toolTip()
    assert tuning.dock.settings.get("finetune.seconds_per_pixel", {}).keys() == {"nuclei"}
    tuning.find("minutes").setValue(0.1)
    tuning.find("steps").setValue(5000)
    tuning.until(lambda: time.text().startswith("About 6"))
    assert "5000 steps" in time.text()


@pytest.mark.parametrize(
    ("rate", "learnt", "told"),
    [
        (None, None, "120 steps at most; how long one takes is not known yet."),
        (2e-5, None, "About 1 min 40 s at most (120 steps)."),
        (1e-5, 1e-5, "About 25 s at most (120 steps)."),
    ],
)
def test_the_time_in_words(
    qtbot: Any, tmp_path: Path, rate: float | None, learnt: float | None, told: str
) -> None:
    settings = Settings(tmp_path / "own.json")
    estimate = TimeEstimate(settings)
    estimate._rate_key, estimate._pixels = "nuclei", 20_833
    if learnt is not None:
        estimate.learn(100, 100 * 20_833 * learnt)
    plan = {"steps": 120, "minutes": None, "pixels": 20_833, "rate": rate, "held_out": 1}
    text, how = estimate._in_words(plan)
    assert text.replace("\N{NO-BREAK SPACE}", " ") == told
    assert "held-out score" in how or rate is None
    assert TRAINING_FACTOR == 2
    limited, _ = estimate._in_words({**plan, "steps": None, "minutes": 2.0})
    assert limited.replace("\N{NO-BREAK SPACE}", " ") == "About 2 min 0 s at most."
