"""What is checked in several layers reaches the project, whichever of them is chosen."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from napari.layers import Image, Labels

from finetuning import Tuning, make_project
from napari_tttunet.annotation import OBJECT, Annotation
from napari_tttunet.finetune_begun import Begun, do_all, store_all
from napari_tttunet.finetune_images import Source
from segmenting import add_sample
from tttunet.errors import OutputError
from tttunet.projects import Project, Region

SIZE = 60


def begun_labels(seed: int = 0) -> Begun:
    """An object in an image of noise, with room for regions."""
    noise = np.random.default_rng(seed).integers(0, 255, (SIZE, SIZE), dtype=np.uint8)
    image, data = Image(noise, name=f"noise {seed}"), np.zeros((SIZE, SIZE), np.int32)
    data[10:20, 10:20] = 1
    labels = Labels(data)
    annotation = Annotation(labels, "YX", "YX", task="instance", dim=2, changed=lambda _: None)
    return Begun(annotation, Source(image, "YX"))


def stored(folder: Path, number: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and vouched mask of an image, as another program reads them."""
    with Project.open(folder, read_only=True) as project:
        image = project.images[number]
        return project.corrections(image).read(image.bounds)


def test_a_region_that_cannot_be_written_waits_for_the_disk(tmp_path: Path) -> None:
    begun, (first, second) = (
        begun_labels(),
        (Region(((5, 25), (5, 25))), Region(((30, 40), (0, 9)))),
    )
    with Project.create(tmp_path / "cells") as project:
        image = begun.place(project)()
        obstacle = project.folder / "corrections" / image.id
        obstacle.write_text("")
        for region in (first, second):
            begun.annotation.complete(region)
            begun.pending.append((region, True))
        begun.annotation.remove_region(first)
        begun.pending.append((first, False))
        with pytest.raises(OutputError):
            begun.write_regions(project, image)
        assert list(begun.pending) == [(first, True), (second, True), (first, False)]
        obstacle.unlink()
        begun.write_regions(project, image)
        assert not begun.pending
        assert project.corrections(image).regions == [second]


def test_labels_are_stored_beside_what_the_project_has(tmp_path: Path) -> None:
    begun, other = begun_labels(), begun_labels(1)
    with Project.create(tmp_path / "cells") as project:
        image = begun.place(project)()
        assert begun.place(project)() is image
        project.corrections(image).write(((40, 42), (40, 42)), np.full((2, 2), 7), np.ones((2, 2)))
        begun.annotation.mark((15, 15))
        begun.annotation.layer.data[50:, 50:] = 3  # nobody vouches for it
        other.annotation.mark((15, 15))
        store_all([begun, other], project)
    labels, vouched = stored(tmp_path / "cells")
    assert np.unique(labels).tolist() == [0, 1, 7]
    assert vouched.sum() == 14 * 14 + 4
    assert stored(tmp_path / "cells", 1)[1].sum() == 14 * 14


def test_one_error_stops_nothing_else() -> None:
    done: list[int] = []
    with pytest.raises(ZeroDivisionError):
        do_all([lambda: done.append(1), lambda: 1 // 0, lambda: [][1], lambda: done.append(2)])
    assert done == [1, 2]


@pytest.fixture
def two(viewer: Any, own_settings: None, own_library: None, tuning: Tuning) -> tuple[Any, Any]:
    """Two Labels layers on one image, the first one chosen."""
    image = add_sample(viewer, size=SIZE)
    layers = []
    for name in ("mine", "theirs"):
        data = np.zeros((SIZE, SIZE), np.int32)
        data[10:20, 10:20] = data[30:40, 30:40] = 1
        data[30:40, 30:40] = 2
        layers.append(viewer.add_labels(data, name=name, scale=image.scale, units=image.units))
    viewer.layers.selection.active = layers[0]
    tuning.qtbot.wait(50)
    return layers[0], layers[1]


def test_marks_without_a_project_wait_while_other_labels_are_chosen(
    tuning: Tuning, two: tuple[Any, Any], tmp_path: Path
) -> None:
    mine, theirs = two
    tuning.dock.work.annotation.mark((15, 15))
    state = tuning.dock.work.annotation.state
    tuning.viewer.layers.selection.active = theirs
    assert tuning.dock.work.annotation.layer is theirs
    assert "checked" not in tuning.viewer.layers
    tuning.viewer.layers.selection.active = mine
    assert tuning.dock.work.annotation.state is state, "it goes on where it was"
    assert "checked" in tuning.viewer.layers
    tuning.viewer.layers.selection.active = theirs
    mine.paint((50, 50), 9)  # by a script
    folder = tuning.new_project(tmp_path)
    tuning.until(lambda: "2 objects" in tuning.used)
    labels, vouched = stored(folder)
    np.testing.assert_array_equal(vouched, state > 0)
    assert (labels[state == OBJECT] > 0).all()


def test_marks_are_kept_while_their_file_is_still_read(
    tuning: Tuning, two: tuple[Any, Any], tmp_path: Path
) -> None:
    mine, theirs = two
    folder = tuning.new_project(tmp_path)
    project = tuning.dock.work.project
    with project._guard:  # as if a file of many gigabytes were hashed
        mine.paint((15, 25), 1)
        tuning.dock.work.complete(Region(((28, 45), (28, 45))))
        state = tuning.dock.work.annotation.state
        tuning.viewer.layers.selection.active = theirs
        theirs.paint((55, 5), 5)
        tuning.qtbot.wait(100)
    tuning.saved()
    tuning.until(lambda: not tuning.dock.work._storing)
    tuning.until(lambda: "1 complete region" in tuning.used)
    labels, vouched = stored(folder)
    assert vouched[state > 0].all()
    assert labels[15, 25] == 1
    assert labels[55, 5] == 5

    # Nor are they lost if the dock goes first.
    tuning.viewer.layers.selection.active = mine
    tuning.qtbot.wait(50)
    mine.paint((5, 50), 6)
    tuning.dock.work.close()
    assert stored(folder)[0][5, 50] == 6


def test_a_taken_back_region_keeps_no_removed_labels_alive(tuning: Tuning, tmp_path: Path) -> None:
    labels = tuning.open_project(make_project(tmp_path))
    correct, region = tuning.dock.corrections, tuning.dock.work.annotation.regions[0]
    correct.remove_region(region)
    assert correct.can_put_back
    tuning.viewer.layers.remove(labels)
    assert not correct.can_put_back

    def freed() -> bool:
        gc.collect()
        return not len(correct._removed)

    tuning.until(freed)


def test_corrections_of_a_large_image_come_little_by_little(
    tuning: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_tttunet.finetune_project._STEP", 0.0)
    folder, work = tmp_path / "cells", tuning.dock.work
    noise = np.random.default_rng(0).integers(0, 255, (600, 600), dtype=np.uint8)
    truth = np.kron(np.arange(1, 401, dtype=np.int32).reshape(20, 20), np.ones((30, 30), np.int32))
    with Project.create(folder) as project:
        image = project.add_image(noise, axes="YX", name="noise")
        project.corrections(image).complete(Region(((0, 600), (0, 500))), truth[:, :500])
    tuning.dock.open_project(folder)
    tuning.until(lambda: work.annotation is not None)
    annotation, steps = work.annotation, work._adding[:]
    assert steps, "only the first step is done"
    assert not annotation.state[:, :500].all()
    annotation.layer.paint((590, 10), 999)  # what is painted meanwhile stays
    annotation.layer.paint((5, 590), 998)
    tuning.saved()
    assert not work._adding
    shown, (labels, vouched) = annotation.labels, stored(folder)
    np.testing.assert_array_equal(vouched, annotation.state > 0)
    np.testing.assert_array_equal(labels[vouched > 0], shown[vouched > 0])
    assert annotation.state[:, :500].all()
    assert labels[590, 10] == 999
    assert labels[5, 590] == 998
    assert shown[300, 300] == truth[300, 300]


def test_what_is_marked_while_room_is_made_counts(
    tuning: Tuning, two: tuple[Any, Any], tmp_path: Path
) -> None:
    mine, _ = two
    folder, planned = tuning.new_project(tmp_path), []
    annotation = tuning.dock.work.annotation
    plan = annotation.plan

    def slow(*arguments: Any) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        planned.append(plan(*arguments))
        annotation.edits += len(planned) < 3  # as if something was painted just now
        return planned[-1]

    annotation.plan = slow
    mine.paint((15, 15), 1)
    tuning.saved()
    assert len(planned) == 3
    assert stored(folder)[0][15, 15] == 1
