"""From image to image: the next place of a project lies where the model doubts the most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from finetuning import Tuning, make_project
from napari_tttunet import sample_data
from napari_tttunet.annotation import UNKNOWN
from napari_tttunet.session import session
from tttunet.measuring.places import ADDED_UP, Place, rank_groups
from tttunet.projects import Project, Region

pytestmark = pytest.mark.usefixtures("one_engine", "own_settings", "own_library")

SIZE = 128


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project of three images; of the first one, everything is complete."""
    folder = make_project(tmp_path, SIZE, width=SIZE)
    crowded = sample_data.fluorescence_crowded()[0][0]
    parts = {"crowded": crowded[:SIZE, :SIZE], "plain": np.full((SIZE, SIZE), 9, crowded.dtype)}
    with Project.open(folder) as project:
        for name, data in parts.items():
            project.add_image(data, axes="YX", name=name)
        project.set_setting("image", project.images[0].id)
    return folder


def doubts(folder: Path, name: str) -> list[Place]:
    """The places of an image, as the engine ranks them."""
    with Project.open(folder, read_only=True) as project:
        (image,) = (one for one in project.images if one.name == name)
    done = session().engine.review_image(folder, image.id, "nuclei").wait(120)
    return [
        Place(one["kind"], one["label"], tuple(one["centre"]), one["bounds"], one["doubt"])
        for one in done.result["places"]
    ]


def looks_at(tuning: Tuning, place: Place) -> bool:
    camera = getattr(tuning.viewer, "scene", tuning.viewer).camera
    return bool(np.allclose(tuple(camera.center)[-2:], place.centre, atol=0.5))


def test_the_next_place_is_in_another_image(tuning: Tuning, folder: Path) -> None:
    places = doubts(folder, "crowded")
    assert len(places) > ADDED_UP
    labels = tuning.open_project(folder)
    assert tuning.find("start_from").currentData() == "nuclei"
    tuning.press("next_unchecked")
    tuning.until(lambda: "'crowded': " in tuning.message)
    work = tuning.dock.work
    assert tuning.find("project_images").currentText() == "crowded"
    assert work.annotation.layer is not labels
    assert looks_at(tuning, places[0])
    assert "has no label" in tuning.message
    assert f"{len(places)} are not checked" in tuning.message
    assert not labels.visible
    assert not tuning.viewer.layers["fluorescence"].visible

    tuning.press("next_unchecked")
    tuning.until(lambda: looks_at(tuning, places[1]))

    # Back by the list of images: its labels are those from before, with all that was checked.
    names = {layer.name for layer in tuning.viewer.layers}
    combo = tuning.find("project_images")
    place = combo.findText("fluorescence")
    combo.activated.emit(place)
    tuning.until(lambda: work.annotation.layer is labels and not (work.annotation.marks == 0).any())
    assert labels.visible
    assert {layer.name for layer in tuning.viewer.layers} == names | {"checked"}
    assert not tuning.viewer.layers["crowded"].visible


def test_when_all_was_seen_it_begins_again(tuning: Tuning, folder: Path) -> None:
    places = doubts(folder, "crowded")
    with Project.open(folder) as project:
        (image,) = (one for one in project.images if one.name == "crowded")
        (top, bottom), (left, right) = places[0].bounds
        corrections = project.corrections(image.id)
        nothing = np.zeros((SIZE, SIZE), np.int32)
        corrections.complete(Region(((0, SIZE), (0, SIZE))), nothing)
        vouched = np.ones((SIZE, SIZE), np.uint8)
        vouched[top:bottom, left:right] = 0
        corrections.write(image.bounds, nothing, vouched)
    tuning.open_project(folder)
    tuning.press("next_unchecked")
    tuning.until(lambda: "'crowded': " in tuning.message)
    assert looks_at(tuning, places[0])
    tuning.press("next_unchecked")
    tuning.until(lambda: "on all 3 images" in tuning.message)


def test_five_places_then_the_most_doubtful_image(tuning: Tuning, folder: Path) -> None:
    """As long as an image has places, it is left only for one that is more doubtful."""
    with Project.open(folder) as project:
        first = project.images[0]
        project.corrections(first.id).remove_region(0)
    found = {name: doubts(folder, name) for name in ("fluorescence", "crowded")}
    tuning.open_project(folder)
    work = tuning.dock.work
    tuning.press("next_unchecked")  # corrections only: there is nothing to look at in them
    order: list[tuple[str, Place]] = []
    while len({name for name, _ in order}) < 2:
        left = [(n, p) for n, ps in found.items() for p in ps if (n, p) not in order]
        name = rank_groups(left)[0][0]
        order += [(name, p) for n, p in left if n == name][:ADDED_UP]
    assert len(order) > ADDED_UP
    for number, (name, place) in enumerate(order):
        if number:
            tuning.press("next_unchecked")
        tuning.until(lambda p=place: looks_at(tuning, p))  # type: ignore[misc]
        tuning.until(lambda n=name: f"'{n}': " in tuning.message)  # type: ignore[misc]
        assert work.image.name == name
    assert (work.annotation.state == UNKNOWN).any()


def test_what_cannot_be_read_is_left_out_with_a_word(
    tuning: Tuning, folder: Path, tmp_path: Path
) -> None:
    with Project.open(folder) as project:
        for image in project.images[1:]:
            (folder / "images" / f"{image.id}.npy").unlink()
    labels: Any = tuning.open_project(folder)
    tuning.press("next_unchecked")
    tuning.until(lambda: "Every place" in tuning.message)
    assert "'crowded'" in tuning.message
    assert tuning.dock.work.annotation.layer is labels
