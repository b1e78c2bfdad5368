"""The part of the image that is meant: through sliders, shapes and the canvas of a viewer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Shapes

from napari_tttunet.layers import label_grid, layer_array
from napari_tttunet.regions import plane_bounds, shape_bounds, view_bounds
from tttunet.errors import ImageError

pytestmark = pytest.mark.filterwarnings(
    "ignore:Non-orthogonal slicing", "ignore:viewer.camera is a deprecated"
)


def rectangle(y: tuple[float, float], x: tuple[float, float], *planes: float) -> np.ndarray:
    corners = [(y[0], x[0]), (y[0], x[1]), (y[1], x[1]), (y[1], x[0])]
    return np.array([(*planes, *corner) for corner in corners])


def viewer_with(image: Image) -> ViewerModel:
    model = ViewerModel()
    model.add_layer(image)
    return model


def test_this_plane_and_this_frame() -> None:
    image = Image(
        np.zeros((4, 3, 7, 20, 30), np.uint8),
        rgb=False,
        scale=(1, 1, 5, 0.5, 0.5),
        translate=(0, 0, 100, 0, 0),
    )
    viewer = viewer_with(image)
    viewer.dims.set_point(0, 2)
    viewer.dims.set_point(2, 100 + 5 * 6)
    expected = ((2, 3), (0, 3), (6, 7), (0, 20), (0, 30))
    assert plane_bounds(viewer, image, "TCZYX") == expected
    viewer.dims.order = (0, 1, 3, 2, 4)  # seen from another side
    assert plane_bounds(viewer, image, "TCZYX")[3] != (0, 20)
    assert plane_bounds(viewer, image, "TCZYX")[2] == (0, 7)


def test_a_plane_beside_the_image_is_told() -> None:
    image = Image(np.zeros((4, 20, 30), np.uint8), rgb=False, name="small")
    viewer = viewer_with(image)
    viewer.add_layer(Image(np.zeros((40, 20, 30), np.uint8), rgb=False))
    viewer.dims.set_point(0, 30)
    with pytest.raises(ImageError, match="stand beside 'small'"):
        plane_bounds(viewer, image, "ZYX")


def test_layers_line_up_at_their_last_axes() -> None:
    image = Image(np.zeros((5, 20, 30), np.uint8), rgb=False)
    viewer = viewer_with(image)
    viewer.add_layer(Image(np.zeros((9, 5, 20, 30), np.uint8), rgb=False))
    viewer.dims.set_point(0, 8)
    viewer.dims.set_point(1, 3)
    assert plane_bounds(viewer, image, "ZYX") == ((3, 4), (0, 20), (0, 30))


def test_a_rectangle_over_a_transformed_image() -> None:
    """Pixels 5 to 9 by 10 to 19, given by their outer borders in the world."""
    image = Image(
        np.zeros((20, 30), np.uint8), scale=(0.3, 0.2), translate=(7, -3), rotate=90, units="um"
    )
    border = rectangle((4.5, 9.5), (9.5, 19.5))
    shapes = Shapes([[image.data_to_world(p) for p in border]], units="um")
    viewer = viewer_with(image)
    viewer.add_layer(shapes)
    assert shape_bounds(viewer, shapes, image, "YX") == [((5, 10), (10, 20))]
    shapes.translate = (0.3, 0)  # 1.5 pixels along the image's second axis
    ((rows, columns),) = shape_bounds(viewer, shapes, image, "YX")
    assert rows == (5, 10)
    assert columns == (8, 19) or columns == (11, 22)


def test_rectangles_in_stacks() -> None:
    image = Image(np.zeros((7, 20, 30), np.uint8), rgb=False, scale=(2, 1, 1))
    shapes = Shapes(
        [rectangle((2, 4), (5, 8), 6), rectangle((-50, 4), (25, 90), 12)], scale=(1, 1, 1)
    )
    viewer = viewer_with(image)
    viewer.add_layer(shapes)
    both = [((0, 7), (2, 5), (5, 9)), ((0, 7), (0, 5), (25, 30))]
    assert shape_bounds(viewer, shapes, image, "ZYX") == both
    shapes.selected_data = {1}
    found = shape_bounds(viewer, shapes, image, "ZYX", planes="current")
    assert found == [((6, 7), (0, 5), (25, 30))]
    flat = Shapes([rectangle((2, 4), (5, 8))])
    viewer.dims.set_point(0, 8)
    assert shape_bounds(viewer, flat, image, "ZYX") == [((0, 7), (2, 5), (5, 9))]
    assert shape_bounds(viewer, flat, image, "ZYX", "current") == [((4, 5), (2, 5), (5, 9))]


def test_useless_shapes_are_told() -> None:
    image = Image(np.zeros((20, 30), np.uint8))
    viewer = viewer_with(image)
    with pytest.raises(ImageError, match="has no shapes"):
        shape_bounds(viewer, Shapes(name="a"), image, "YX")
    with pytest.raises(ImageError, match="outside the image"):
        shape_bounds(viewer, Shapes([rectangle((50, 60), (0, 9))]), image, "YX")
    with pytest.raises(ImageError, match="single point"):
        shape_bounds(viewer, Shapes([rectangle((5, 5), (6, 6))]), image, "YX")


def test_units_are_converted_where_napari_does() -> None:
    image = Image(np.zeros((4, 20, 30), np.uint8), rgb=False, scale=(1000, 1, 1), units="nm")
    viewer = viewer_with(image)
    viewer.add_layer(Image(np.zeros((4, 20, 30), np.uint8), rgb=False, units="um"))
    viewer.dims.set_current_step(0, 2)
    if getattr(viewer.dims, "units", None) is None:
        pytest.skip("this napari has no units in its world")
    world = viewer.dims.point[0] * (1 * viewer.dims.units[0]).to("nm").magnitude
    assert plane_bounds(viewer, image, "ZYX")[0][0] == round(world / 1000)


def centre_of(viewer: Any) -> Any:
    return getattr(viewer, "scene", viewer).camera


def test_what_the_canvas_shows(viewer: Any, qtbot: Any) -> None:
    """Zoomed in, napari's own corners of the view are within what is segmented."""
    data = np.random.default_rng(0).integers(0, 255, (9, 400, 600), np.uint8)
    image = viewer.add_image(data, scale=(4, 0.5, 0.25), translate=(0, 3, 5), rotate=(0, 0, 20))
    pyramid = viewer.add_image([data[0], data[0, ::2, ::2]], scale=(0.5, 0.25))
    viewer.dims.set_point(0, 12)
    qtbot.wait(50)
    everything = view_bounds(viewer, image, "ZYX")
    assert everything == ((0, 9), (0, 400), (0, 600))

    camera = centre_of(viewer)
    camera.center = image.data_to_world((3, 200, 300))
    camera.zoom *= 8
    qtbot.wait(100)
    bounds = view_bounds(viewer, image, "ZYX", planes="current")
    assert bounds[0] == (3, 4)
    for (start, stop), low, high in zip(bounds, *image.corner_pixels, strict=True):
        assert abs(start - low) <= 1 or start == 3
        assert abs(stop - high) <= 1 or stop == 4
    assert layer_array(image, bounds=bounds).size < data[0].size / 10
    grid = label_grid(image, "ZYX", bounds=bounds)
    labels = viewer.add_labels(np.ones(grid.shape, np.int32), **grid.arguments())
    np.testing.assert_allclose(
        labels.data_to_world((0, 0, 0)), image.data_to_world([start for start, _ in bounds])
    )

    (top, bottom), (left, right) = view_bounds(viewer, pyramid, "YX")
    shown = [pyramid.data_to_world(p) for p in ((top, left), (bottom - 1, right - 1))]
    size = np.array(viewer.window._qt_viewer.canvas.size) / camera.zoom
    np.testing.assert_allclose(np.ptp(shown, axis=0), size, atol=1.0)
    np.testing.assert_allclose(np.mean(shown, axis=0), camera.center[-2:], atol=0.5)

    camera.center = (0, 5000, 5000)
    qtbot.wait(50)
    with pytest.raises(ImageError, match="outside the image"):
        view_bounds(viewer, image, "ZYX")


def test_the_view_in_3d_is_the_whole(viewer: Any) -> None:
    image = viewer.add_image(np.zeros((9, 40, 60), np.uint8))
    viewer.dims.ndisplay = 3
    assert view_bounds(viewer, image, "ZYX", "current") == ((0, 9), (0, 40), (0, 60))
