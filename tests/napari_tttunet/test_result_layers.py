"""Labels find their layer: the plugin's own is replaced, a person's never; previews go."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel

from napari_tttunet.layers import label_grid
from napari_tttunet.map_images import MapImages, show_map_images
from napari_tttunet.result_layers import (
    PREVIEW_PIXELS,
    PreviewLayer,
    ResultLayers,
    accept,
    checksum,
    compose,
    is_accepted,
    is_result,
)


@pytest.fixture
def viewer() -> Any:
    return ViewerModel()


def image_in(viewer: Any, shape: tuple[int, ...] = (20, 30), **arguments: Any) -> Any:
    data = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    return viewer.add_image(data, name="cells", rgb=False, **arguments)


def result(shape: tuple[int, ...], *places: tuple[Any, ...]) -> np.ndarray:
    labels = np.zeros(shape, np.uint32)
    for number, place in enumerate(places, 1):
        labels[place] = number
    return labels


def show(
    layers: ResultLayers, image: Any, labels: np.ndarray, axes: str, bounds: Any = None
) -> Any:
    part, whole = label_grid(image, axes, bounds=bounds), label_grid(image, axes)
    old = layers.snapshot(image, "nuclei")
    composed = compose(labels, part, whole, True, old)
    return layers.commit(image, "nuclei", composed, {"count": int(labels.max())})


def test_a_checksum_tells_every_change() -> None:
    data = np.arange(60, dtype=np.int32).reshape(3, 4, 5)
    assert checksum(data) == checksum(data.copy())
    assert checksum(data.transpose(1, 0, 2)) == checksum(data.transpose(1, 0, 2).copy())
    changed = data.copy()
    changed[2, 3, 4] += 1
    assert checksum(changed) != checksum(data)


def test_the_same_layer_is_used_until_it_is_edited(viewer: Any) -> None:
    image, layers = image_in(viewer, scale=(2, 3), rotate=20), ResultLayers(viewer)
    first = show(layers, image, result((20, 30), np.s_[2:5, 2:5]), "YX")
    assert first.data.dtype == np.int32
    np.testing.assert_array_equal(first.rotate, image.rotate)
    assert show(layers, image, result((20, 30), np.s_[8:9, 8:9]), "YX") is first
    first.data_setitem((np.array([0]), np.array([0])), 5)
    other = show(layers, image, result((20, 30)), "YX")
    assert other is not first
    assert first.data[0, 0] == 5
    assert other.name != first.name


def test_what_is_edited_while_labels_are_arranged_stays(viewer: Any) -> None:
    image, layers = image_in(viewer), ResultLayers(viewer)
    first = show(layers, image, result((20, 30), np.s_[2:5, 2:5]), "YX")
    grid = label_grid(image, "YX")
    composed = compose(result((20, 30)), grid, grid, True, layers.snapshot(image, "nuclei"))
    assert composed.replaces is not None
    first.paint((10, 10), 3)
    assert layers.commit(image, "nuclei", composed, {}) is not first
    assert first.data[10, 10] == 3


def test_a_stroke_that_has_not_ended_counts(viewer: Any) -> None:
    image, layers = image_in(viewer), ResultLayers(viewer)
    first = show(layers, image, result((20, 30)), "YX")
    grid = label_grid(image, "YX")
    composed = compose(result((20, 30)), grid, grid, True, layers.snapshot(image, "nuclei"))
    first.mode = "paint"
    for callback in first.mouse_drag_callbacks:
        if callback.__module__ == "napari_tttunet.result_layers":
            callback(first, SimpleNamespace())
    assert layers.commit(image, "nuclei", composed, {}) is not first


def test_nothing_is_left_to_undo_after_new_labels(viewer: Any) -> None:
    image, layers = image_in(viewer), ResultLayers(viewer)
    first = show(layers, image, result((20, 30)), "YX")
    first.mode = "paint"
    first.paint((10, 10), 3)
    first.undo()
    assert show(layers, image, result((20, 30), np.s_[2:5, 2:5]), "YX") is first
    before = first.data.copy()
    first.redo()
    first.undo()
    np.testing.assert_array_equal(first.data, before)
    assert first.mode == "paint"
    assert first.editable


def test_a_part_is_added_to_what_is_there(viewer: Any) -> None:
    image, layers = image_in(viewer), ResultLayers(viewer)
    part = ((0, 10), (0, 10))
    first = show(layers, image, result((10, 10), np.s_[1:3, 1:3]), "YX", part)
    assert first.data.shape == (20, 30)
    part = ((5, 20), (15, 30))
    assert show(layers, image, result((15, 15), np.s_[1:3, 1:3]), "YX", part) is first
    assert sorted(np.unique(first.data)) == [0, 1, 2]
    assert first.data[6, 16] == 2


def test_other_axes_or_another_place_make_another_layer_in_its_stead(viewer: Any) -> None:
    image, layers = image_in(viewer, (4, 20, 30)), ResultLayers(viewer)
    first = show(layers, image, result((4, 20, 30)), "ZYX")
    image.scale = (2, 1, 1)
    second = show(layers, image, result((4, 20, 30)), "ZYX")
    assert first not in viewer.layers
    assert second.name == "cells: nuclei"
    np.testing.assert_array_equal(second.scale, (2, 1, 1))
    third = show(layers, image, result((20, 30)), "CYX")
    assert second not in viewer.layers
    assert third.ndim == 2


def test_accepted_labels_belong_to_the_person(viewer: Any) -> None:
    image, layers = image_in(viewer), ResultLayers(viewer)
    first = show(layers, image, result((20, 30)), "YX")
    accept(first)
    assert is_accepted(first)
    assert first.name == "cells: nuclei \N{CHECK MARK}"
    assert show(layers, image, result((20, 30)), "YX") is not first
    accept(first, False)
    assert not is_accepted(first)
    assert "\N{CHECK MARK}" not in first.name
    assert first.metadata["tttunet"]["axes"] == "YX"


def test_a_preview_comes_and_goes(viewer: Any) -> None:
    image = image_in(viewer, (3, 2, 20, 30))
    preview = PreviewLayer(viewer, label_grid(image, "TCYX"), "preview")
    assert len(viewer.layers) == 1
    viewer.layers.selection.active = image
    preview.paste(((1, 2), (5, 10), (0, 30)), np.ones((1, 5, 30), np.uint8))
    assert viewer.layers.selection.active is image
    assert preview.layer.data.shape == (3, 1, 20, 30)
    assert preview.layer.data.sum() == preview.layer.data[1, 0, 5:10].sum() == 150
    preview.close()
    preview.paste(((1, 2), (5, 10), (0, 30)), np.ones((1, 5, 30), np.uint8))
    assert list(viewer.layers) == [image]


def test_the_first_tiles_wait_for_the_preview(viewer: Any) -> None:
    image = image_in(viewer)
    preview = PreviewLayer(viewer, label_grid(image, "YX"), "preview")
    preview.paste(((0, 5), (0, 5)), np.ones((5, 5), np.uint8), show=False)
    assert list(viewer.layers) == [image]
    preview.paste(((5, 6), (0, 5)), np.ones((1, 5), np.uint8))
    assert preview.layer.data.sum() == 30


def test_a_preview_becomes_the_result(viewer: Any) -> None:
    image = image_in(viewer)
    grid = label_grid(image, "YX")
    preview, layers = PreviewLayer(viewer, grid, "preview"), ResultLayers(viewer)
    preview.paste(((0, 5), (0, 5)), np.ones((5, 5), np.uint32))
    shown = preview.layer
    labels = np.zeros(grid.shape, np.uint32)
    labels[3:9, 4:7] = 5
    composed = compose(labels, grid, grid, True, None)
    layer = layers.commit(image, "nuclei", composed, {"model": "nuclei"}, preview=preview)
    preview.close()
    assert layer is shown
    assert list(viewer.layers) == [image, layer]
    assert viewer.layers.selection.active is layer
    np.testing.assert_array_equal(layer.data, labels)
    fresh = viewer.add_labels(labels.view(np.int32))
    assert (layer.opacity, layer.editable) == (fresh.opacity, fresh.editable)
    assert is_result(layer)
    assert layer.name == f"{image.name}: nuclei"
    layer.fill((3, 4), 9)
    assert layer.data[3, 4] == 9
    layer.undo()
    np.testing.assert_array_equal(layer.data, labels)


def test_a_coarse_preview_does_not_become_the_result(viewer: Any) -> None:
    size = PREVIEW_PIXELS + 1
    image = viewer.add_image(np.zeros((size, 8), np.uint8))
    grid = label_grid(image, "YX")
    preview, layers = PreviewLayer(viewer, grid, "preview"), ResultLayers(viewer)
    preview.paste(((0, 5), (0, 5)), np.ones((5, 5), np.uint32))
    composed = compose(np.ones(grid.shape, np.uint32), grid, grid, True, None)
    layer = layers.commit(image, "nuclei", composed, {"model": "nuclei"}, preview=preview)
    preview.close()
    assert list(viewer.layers) == [image, layer]
    assert layer.data.shape == (size, 8)


def test_a_preview_that_is_removed_stays_away(viewer: Any) -> None:
    image = image_in(viewer)
    preview = PreviewLayer(viewer, label_grid(image, "YX"), "preview")
    part = ((0, 5), (0, 5)), np.ones((5, 5), np.uint8)
    preview.paste(*part)
    viewer.layers.remove(preview.layer)
    preview.paste(*part)
    assert list(viewer.layers) == [image]


def test_a_large_preview_is_coarse_and_in_place(viewer: Any) -> None:
    size = 2 * PREVIEW_PIXELS + 1
    image = viewer.add_image(np.zeros((size, 40), np.uint8), scale=(0.5, 0.5))
    preview = PreviewLayer(viewer, label_grid(image, "YX"), "preview")
    preview.paste(((100, 400), (0, 40)), np.ones((300, 40), np.uint8))
    data = preview.layer.data
    assert data.shape == (math.ceil(size / 3), 40)
    rows = np.nonzero(data[:, 0])[0]
    world = (
        preview.layer.data_to_world((rows[0], 0))[0],
        preview.layer.data_to_world((rows[-1], 0))[0],
    )
    assert abs(world[0] - 0.5 * 100) <= 1.5
    assert abs(world[1] - 0.5 * 399) <= 1.5


def test_uncertainty_is_entropy() -> None:
    maps = np.zeros((4, 2, 3), np.float32)
    maps[0], maps[3] = 1.0, 9.0
    maps[:3, 0, 0] = 1 / 3
    maps[:3, 0, 1] = 0, 0.5, 0.5
    layer = ViewerModel().add_image(np.zeros((2, 3)))
    images = MapImages(label_grid(layer, "YX"))
    images.add_maps(maps, {"task": "instance"}, True, True)
    found = images.images
    expected = [[1.0, math.log(2) / math.log(3), 0.0], [0.0] * 3]
    np.testing.assert_allclose(found["uncertainty"], expected, atol=1e-5)
    np.testing.assert_allclose(found["probability"], [[2 / 3, 1, 0], [0, 0, 0]], atol=1e-6)


def test_every_class_has_its_probability() -> None:
    maps = np.random.default_rng(0).dirichlet([1, 1, 1], (2, 3)).transpose(2, 0, 1)
    maps = maps.astype(np.float32)
    viewer = ViewerModel()
    layer = viewer.add_image(np.zeros((2, 3)), name="abdomen")
    labels = [{"value": 1, "name": "liver"}, {"value": 4, "name": "spleen"}]
    for count in (2, 1):
        images = MapImages(label_grid(layer, "YX"))
        model = {"task": "semantic", "labels": labels[:count]}
        images.add_maps(maps[: count + 1], model, True, False)
        show_map_images(viewer, layer, "organs", images)
        if count == 2:
            shown = {one.name: one for one in viewer.layers}
            assert shown.pop("abdomen: probability (organs)").visible
            for name, expected in zip(("liver", "spleen"), maps[1:], strict=True):
                found = shown.pop(f"abdomen: probability of {name} (organs)")
                np.testing.assert_array_equal(found.data, expected)
                assert not found.visible
            assert list(shown) == ["abdomen"]
            viewer.layers[:] = [layer]
    assert [one.name for one in viewer.layers] == ["abdomen", "abdomen: probability (organs)"]


def test_the_colours_of_the_adaptation_cover_its_values() -> None:
    before = np.linspace(1, 5, 10_000, dtype=np.float32).reshape(100, 100)
    before[0, 0] = 1000
    losses = np.stack([before, 0.25 * before])
    grid = label_grid(ViewerModel().add_image(np.zeros((100, 100))), "YX")
    for shown, factor in (("before", 1.0), ("after", 0.25), ("difference", 0.75)):
        images = MapImages(grid)
        images.add_losses(losses, shown)
        np.testing.assert_array_equal(images.images["adaptation"], factor * before)
        low, high = images.limits["adaptation"]
        assert factor < low < 1.1 * factor
        assert 4.9 * factor < high < 5 * factor, "one bright pixel makes nothing dark"
    images = MapImages(grid)
    images.add_losses(np.zeros((2, 100, 100), np.float32), "before")
    low, high = images.limits["adaptation"]
    assert low < high
