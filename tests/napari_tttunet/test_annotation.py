"""Painting, marking and regions decide what is vouched for, and napari's undo takes it along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")

from napari.layers import Labels

from napari_tttunet.annotation import BACKGROUND, OBJECT, UNKNOWN, Annotation
from napari_tttunet.annotation_restore import Stored
from tttunet.projects.regions import Region
from tttunet.projects.schema import ProjectError


def some_labels() -> np.ndarray:
    data = np.zeros((60, 80), np.int32)
    data[10:20, 10:20], data[10:20, 30:40], data[40:50, 60:75] = 1, 2, 3
    return data


def annotated(
    data: np.ndarray, axes: str = "YX", kept: str = "", **options: Any
) -> tuple[Labels, Annotation, list[Any]]:
    layer, heard = Labels(data), []
    options = {"task": "instance", "dim": 2, **options}
    annotation = Annotation(layer, axes, kept or axes, changed=heard.append, **options)
    return layer, annotation, heard


def restore(annotation: Annotation, stored: list[Stored], regions: Sequence[Region] = ()) -> None:
    for _ in annotation.restoring(annotation.plan(stored, regions)):
        pass


def stored_object() -> Stored:
    """Object 3 at another place than in `some_labels`."""
    stored = np.zeros((60, 80), np.int32)
    stored[30:35, 30:35] = 3
    return Stored(((0, 60), (0, 80)), stored, (stored > 0).astype(np.uint8))


def test_a_painted_object_is_checked_whole_with_its_rim() -> None:
    layer, annotation, heard = annotated(some_labels())
    layer.selected_label, layer.brush_size = 2, 3
    layer.paint((15, 41), 2)
    state = annotation.state
    assert (state[10:20, 30:40] == OBJECT).all()
    assert state[15, 41] == OBJECT
    assert (state[8:10, 28:40] == BACKGROUND).all()
    assert (state[10:20, 10:20] == UNKNOWN).all()
    ((top, bottom), (left, right)) = heard[-1]
    assert top <= 8
    assert bottom >= 22
    assert left <= 28
    assert right < 60, "the other objects are far away"


def test_an_erased_pixel_is_checked_background() -> None:
    layer, annotation, _ = annotated(some_labels())
    layer.brush_size = 1
    layer.paint((12, 12), 0)
    assert annotation.state[12, 12] == BACKGROUND
    assert (annotation.state > 0).sum() == (layer.data != some_labels()).sum()


@pytest.mark.parametrize("tool", ["paint", "fill", "set"])
def test_undo_and_redo_take_the_marks_along(tool: str) -> None:
    layer, annotation, heard = annotated(some_labels())
    if tool == "paint":
        layer.brush_size = 5
        layer.paint((30, 30), 9)
    elif tool == "fill":
        layer.fill((15, 15), 9)
    else:
        layer.data_setitem((np.array([30, 31]), np.array([30, 30])), 9)
    done, labels = annotation.state.copy(), layer.data.copy()
    assert (done[labels == 9] == OBJECT).all()
    assert (done == BACKGROUND).any()
    layer.undo()
    assert not annotation.state.any()
    np.testing.assert_array_equal(layer.data, some_labels())
    layer.redo()
    np.testing.assert_array_equal(annotation.state, done)
    layer.undo()
    layer.undo()  # nothing is left
    assert not annotation.state.any()
    count = len(heard)
    layer.refresh()
    assert len(heard) == count


def test_undo_leaves_what_was_marked_otherwise() -> None:
    layer, annotation, _ = annotated(some_labels())
    annotation.mark((45, 65))
    annotation.complete(Region(((0, 30), (0, 50))))
    layer.paint((15, 15), 7)
    layer.undo()
    assert (annotation.state[:30, :50] > 0).all()
    assert annotation.is_checked((45, 65))


def test_mark_and_unmark_an_object() -> None:
    layer, annotation, _ = annotated(some_labels())
    assert annotation.mark((0, 0)) == 0
    assert annotation.mark((15, 35)) == 2
    assert annotation.counts() == (1, 14 * 14)
    assert annotation.mark((15, 35), checked=False) == 2
    assert annotation.counts() == (0, 0)
    assert annotation.find(3, (0, 0)) == (40, 60)
    assert annotation.find(8, (0, 0)) is None
    assert layer.data[15, 35] == 2


def test_a_large_object_is_found_whole() -> None:
    data = np.zeros((300, 300), np.int32)
    data[20, 5:280] = 4
    data[20:290, 5] = 4
    _, annotation, _ = annotated(data)
    annotation.mark((20, 6))
    assert (annotation.state[data == 4] == OBJECT).all()


def test_an_erased_object_comes_back_with_undo() -> None:
    layer, annotation, _ = annotated(some_labels())
    assert annotation.erase((45, 65)) == 3
    assert not (layer.data == 3).any()
    assert (annotation.state[40:50, 60:75] == BACKGROUND).all()
    layer.undo()
    assert (layer.data == 3).sum() == 150
    assert not annotation.state.any()


def test_a_polygon_is_complete() -> None:
    _, annotation, _ = annotated(some_labels())
    region = Region.around([(5, 5), (5, 25), (25, 5)], (), (60, 80))
    annotation.complete(region)
    assert annotation.state[12, 12] == OBJECT
    assert annotation.state[7, 7] == BACKGROUND
    assert annotation.state[24, 24] == UNKNOWN
    with pytest.raises(ProjectError, match="no pixel"):
        annotation.complete(Region.around([(-9, -9), (-9, -5), (-5, -9)], (), (60, 80)))


def test_marks_of_a_slice_stay_in_it() -> None:
    data = np.stack([some_labels()] * 3)
    layer, annotation, _ = annotated(data, "ZYX")
    annotation.mark((1, 15, 15))
    layer.paint((2, 30, 30), 9)
    assert not annotation.state[0].any()
    assert (annotation.state[1] == OBJECT).sum() == 100
    assert (annotation.state[2] == OBJECT).sum() == (data[2] == 9).sum()


def test_a_volume_is_marked_through_its_slices() -> None:
    data = np.stack([some_labels()] * 3)
    _, annotation, _ = annotated(data, "ZYX", dim=3)
    annotation.mark((1, 15, 15))
    assert (annotation.state == OBJECT).sum() == 300


def test_thin_axes_are_not_the_projects() -> None:
    layer, annotation, _ = annotated(some_labels()[None], "ZYX", "YX")
    layer.paint((0, 15, 15), 1)
    labels, vouched, _ = annotation.read(((0, 60), (0, 80)))
    assert labels.shape == vouched.shape == (60, 80)
    assert vouched[15, 15]
    assert annotation.state.shape == (1, 60, 80)


def test_classes_are_vouched_for_where_they_are_painted() -> None:
    data = np.zeros((40, 40), np.uint8)
    data[5:10, 5:10] = data[20:30, 20:30] = 1
    layer, annotation, _ = annotated(data, task="semantic")
    layer.brush_size = 1
    layer.paint((35, 35), 1)
    assert (annotation.state > 0).sum() == 1
    annotation.mark((7, 7))
    assert (annotation.state > 0).sum() == 26, "the other piece of the class is not meant"


def test_stored_corrections_come_back_under_their_numbers() -> None:
    layer, annotation, _ = annotated(some_labels())
    annotation.mark((15, 15))
    stored = np.zeros((60, 80), np.int32)
    stored[30:35, 30:35], stored[12:18, 12:18] = 3, 8
    restore(annotation, [Stored(((0, 60), (0, 80)), stored, (stored > 0).astype(np.uint8))])
    assert (layer.data[30:35, 30:35] == 3).all()
    assert layer.data[45, 65] not in (0, 3), "an unchecked object made room"
    assert (layer.data[10:20, 10:20] == 1).all(), "what was checked here stays"
    assert (annotation.state[30:35, 30:35] == OBJECT).all()


def test_other_data_are_not_vouched_for_where_they_differ() -> None:
    layer, annotation, _ = annotated(some_labels())
    annotation.mark((15, 15))
    annotation.mark((45, 65))
    new = some_labels()
    new[45:, :] = 0
    layer.data = new
    assert (annotation.state[10:20, 10:20] == OBJECT).all()
    assert annotation.state[48, 65] == UNKNOWN
    layer.paint((30, 30), 9)
    assert annotation.state[30, 30] == OBJECT


def test_numbers_that_do_not_fit_are_refused() -> None:
    layer, annotation, _ = annotated(some_labels().astype(np.uint8))
    stored = np.full((60, 80), 300, np.int32)
    with pytest.raises(ProjectError, match="int32"):
        restore(annotation, [Stored(((0, 60), (0, 80)), stored, np.ones((60, 80), np.uint8))])
    np.testing.assert_array_equal(layer.data, some_labels())


def test_what_cannot_be_annotated_is_said() -> None:
    with pytest.raises(ProjectError, match="order"):
        annotated(np.zeros((4, 5, 6), int), "XYZ", "ZYX")


def test_a_region_is_taken_back_but_not_what_another_one_holds() -> None:
    _, annotation, heard = annotated(some_labels())
    small, large = Region(((5, 25), (5, 25))), Region(((0, 40), (0, 60)))
    annotation.complete(small)
    annotation.complete(large)
    assert annotation.region_at((10, 10)) is small, "the smaller one of two"
    assert annotation.region_at((30, 50)) is large
    assert annotation.region_at((50, 70)) is None
    annotation.remove_region(large)
    assert heard[-1] == large.bounds
    vouched = annotation.state != UNKNOWN
    assert vouched[5:25, 5:25].all()
    assert vouched.sum() == 400
    annotation.complete(large)
    annotation.remove_region(small)
    assert (annotation.state != UNKNOWN).sum() == 40 * 60
    with pytest.raises(ValueError, match="not in"):
        annotation.remove_region(small)


def test_a_region_that_goes_leaves_what_was_vouched_for_apart_from_it() -> None:
    layer, annotation, _ = annotated(some_labels())
    region = Region(((0, 30), (0, 50)))
    annotation.mark((15, 15))
    checked = annotation.state.copy()
    annotation.complete(region)
    annotation.remove_region(region)
    np.testing.assert_array_equal(annotation.state, checked)
    annotation.complete(region)
    annotation.mark((15, 35))  # while it is complete
    layer.brush_size = 1
    layer.paint((25, 25), 9)
    layer.paint((26, 45), 8)
    layer.undo()
    assert annotation.mark((15, 15), checked=False) == 1
    assert (annotation.state[:30, :50] > 0).all()
    annotation.remove_region(region)
    assert annotation.is_checked((15, 35))
    assert annotation.is_checked((25, 25))
    assert not annotation.is_checked((26, 45)), "it was undone"
    assert not annotation.is_checked((15, 15)), "it was taken back"
    assert annotation.counts() == (2, 14 * 14 + 5 * 5)
    layer.undo()
    assert annotation.counts() == (1, 14 * 14)


def test_a_negative_label_is_undone_in_a_region() -> None:
    layer, annotation, _ = annotated(some_labels())
    annotation.complete(Region(((0, 30), (0, 50))))
    layer.data_setitem((np.array([15]), np.array([15])), -1)
    assert annotation.state[15, 15] == UNKNOWN
    layer.undo()
    assert annotation.state[15, 15] == OBJECT


def test_a_polygon_is_found_by_its_inside() -> None:
    _, annotation, _ = annotated(some_labels())
    triangle = Region.around([(0, 0), (0, 40), (40, 0)], (), (60, 80))
    annotation.complete(triangle)
    assert annotation.region_at((5, 5)) is triangle
    assert annotation.region_at((35, 35)) is None


def test_a_project_without_corrections_keeps_what_can_be_undone() -> None:
    layer, annotation, _ = annotated(np.zeros((60, 80), np.int32))
    layer.data_setitem((np.array([5, 6]), np.array([5, 6])), 3)
    restore(annotation, [])
    layer.undo()
    assert not annotation.state.any()


def test_what_was_done_before_the_project_came_is_not_undone_halfway() -> None:
    layer, annotation, _ = annotated(some_labels())
    layer.mode, layer.brush_size = "paint", 3
    layer.paint((15, 15), 7)
    restore(annotation, [stored_object()])
    painted, state = layer.data.copy(), annotation.state.copy()
    layer.undo()
    np.testing.assert_array_equal(layer.data, painted)
    np.testing.assert_array_equal(annotation.state, state)
    assert layer.mode == "paint"
    layer.paint((50, 10), 20)
    layer.undo()
    np.testing.assert_array_equal(annotation.state, state)
    assert (layer.data != 20).all()
    layer.redo()
    assert annotation.state[50, 10] == OBJECT


def test_a_stroke_that_goes_on_while_the_project_comes_counts() -> None:
    layer, annotation, _ = annotated(some_labels())
    layer.brush_size = 1
    with layer.block_history():  # while the mouse is pressed
        layer.paint((50, 10), 8)
        plan = annotation.plan([stored_object()])
        annotation.settle()
        assert annotation.edits > plan.edits
        restore(annotation, [stored_object()])
        layer.paint((50, 11), 8)
    assert (annotation.state[50, 10:12] == OBJECT).all()


def test_only_clashing_numbers_change_when_room_is_made() -> None:
    data = some_labels()
    data[50:, :20], data[0, 0] = -1, 2**24
    layer, annotation, _ = annotated(data.copy())
    restore(annotation, [stored_object()])
    moved, stored = data == 3, stored_object().vouched > 0
    np.testing.assert_array_equal(layer.data[~moved & ~stored], data[~moved & ~stored])
    assert set(layer.data[moved].tolist()) == {2**24 + 1}


def test_numbers_of_one_byte_are_enough_for_a_few_objects() -> None:
    layer, annotation, _ = annotated((some_labels() * 60).astype(np.uint8))
    restore(annotation, [stored_object()])
    assert (layer.data[30:35, 30:35] == 3).all()


def test_a_stack_makes_room_in_all_slices_and_needs_no_look_at_the_rest() -> None:
    data = np.stack([some_labels()] * 3)
    layer, annotation, heard = annotated(data.copy(), "ZYX", dim=3)
    flat = stored_object()
    stored = Stored(((1, 2), (0, 60), (0, 80)), flat.labels[None], flat.vouched[None])
    regions = [Region(((1, 2), (0, 5), (0, 5)))]
    annotation.complete(regions[0])
    restore(annotation, [stored], regions)
    assert annotation.regions == regions, "the same region is there once"
    assert (layer.data[data == 3] == 4).all()
    assert annotation.find(4, (2, 0, 0)) == (2, 40, 60), "in the slice that is shown"
    assert annotation.find(3, (2, 0, 0)) == (1, 30, 30)
    assert annotation.vouched_bounds() == ((1, 2), (0, 60), (0, 80))
    plan = annotation.plan([])
    assert not plan.renumbered
    assert heard
