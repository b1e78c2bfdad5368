"""The world coordinates of a pixel are the same through the image and through its labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from napari.layers import Image, Labels

from napari_tttunet.geometry import (
    Transform,
    bounds_of_points,
    full_bounds,
    pixel_bounds,
    scale_bounds,
)
from napari_tttunet.layers import label_grid, layer_spacing, levels
from tttunet.errors import ImageError

finite = st.floats(-100, 100)
sizes = st.floats(0.01, 50)


@st.composite
def transforms(draw: st.DrawFn, ndim: int) -> dict:
    """Keyword arguments of a layer: every part may be there, and mirrored."""
    n = ndim
    arguments: dict = {
        "scale": [draw(sizes) * draw(st.sampled_from([1, 1, -1])) for _ in range(n)],
        "translate": [draw(finite) for _ in range(n)],
    }
    if draw(st.booleans()):
        arguments["rotate"] = rotation(draw, n)
    if draw(st.booleans()):
        values = [draw(st.floats(-1, 1)) for _ in range(n * (n - 1) // 2)]
        lower = np.eye(n)
        lower[np.tril_indices(n, -1)] = values
        arguments["shear"] = draw(st.sampled_from([values, lower]))
    if draw(st.booleans()):
        affine = np.eye(n + 1)
        stretch = np.diag([draw(st.floats(0.2, 5)) for _ in range(n)])
        affine[:-1, :-1] = rotation(draw, n) @ stretch
        affine[:-1, -1] = [draw(finite) for _ in range(n)]
        arguments["affine"] = affine
    return arguments


def rotation(draw: st.DrawFn, n: int) -> np.ndarray:
    matrix = np.eye(n)
    for i in range(n):
        for j in range(i):
            angle = draw(st.floats(-3, 3)) * draw(st.integers(0, 1))
            turn = np.eye(n)
            turn[[i, i, j, j], [i, j, i, j]] = [
                np.cos(angle),
                -np.sin(angle),
                np.sin(angle),
                np.cos(angle),
            ]
            matrix = matrix @ turn
    return matrix


@st.composite
def part_of(draw: st.DrawFn, size: int) -> tuple[int, int]:
    start = draw(st.integers(0, size - 1))
    return start, draw(st.integers(start + 1, size))


# napari says so whenever it shows a plane of a layer that is turned out of the slices.
pytestmark = pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")

AXES = ["YX", "XY", "ZYX", "XYZ", "TYX", "CYX", "YXC", "CZYX", "ZCYX", "TCYX", "TZYX", "TZCYX"]


@settings(max_examples=60)
@given(data=st.data())
def test_labels_lie_where_the_image_lies(data: st.DataObject) -> None:
    axes = data.draw(st.sampled_from(AXES))
    shape = data.draw(st.tuples(*[st.integers(1, 6)] * len(axes)))
    units = data.draw(st.sampled_from(["pixel", "micrometer", "millimeter"]))
    image = Image(
        np.zeros(shape, np.uint8),
        **data.draw(transforms(len(axes))),
        rgb=False,
        units=units,
        axis_labels=list(axes.lower()),
    )
    starts = [data.draw(st.integers(0, n - 1)) for n in shape]
    bounds = tuple(
        (a, data.draw(st.integers(a + 1, n))) for a, n in zip(starts, shape, strict=True)
    )
    grid = label_grid(image, axes, bounds=bounds)
    labels = Labels(np.zeros(grid.shape, np.int32), **grid.arguments())

    point = {letter: data.draw(st.floats(0, n)) for letter, n in zip(axes, shape, strict=True)}
    here = np.array([point[letter] for letter in axes])
    channel = axes.find("C")
    if channel >= 0:
        # The middle of a plane that is as thick as all channels is that of the channels.
        here[channel] = (shape[channel] - 1) / 2
    first = dict(zip(grid.axes, [start for start, _ in grid.bounds], strict=True))
    there = [0.0 if letter == "C" else point[letter] - first[letter] for letter in grid.axes]
    expected = np.array(image.data_to_world(here))
    found = np.array(labels.data_to_world(there))
    if grid.axes == axes:
        np.testing.assert_allclose(found, expected, atol=1e-8)
    else:
        # The image's channel axis comes first and is independent of the others.
        assert axes[0] == "C"
        assert grid.axes == axes[1:]
        np.testing.assert_allclose(found, expected[1:], atol=1e-8)
    kept = [i for i, letter in enumerate(axes) if letter in grid.axes]
    assert labels.units == tuple(image.units[i] for i in kept)
    assert labels.axis_labels == tuple(image.axis_labels[i] for i in kept)


@settings(max_examples=10)
@given(data=st.data())
def test_thick_plane_covers_every_channel(data: st.DataObject) -> None:
    """Wherever the channel slider stands, napari finds the labels."""
    shape = (2, data.draw(st.integers(1, 5)), 3, 4)
    image = Image(np.zeros(shape, np.uint8), **data.draw(transforms(4)), rgb=False)
    grid = label_grid(image, "TCYX")
    assert grid.shape == (2, 1, 3, 4)
    labels = Labels(np.zeros(grid.shape, np.int32), **grid.arguments())
    for channel in range(shape[1]):
        world = image.data_to_world((1, channel, 2, 3))
        np.testing.assert_array_equal(np.round(labels.world_to_data(world)), (1, 0, 2, 3))


@settings(max_examples=50)
@given(data=st.data())
def test_transform_is_that_of_napari(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 4))
    arguments = data.draw(transforms(n))
    if n == 2 and data.draw(st.booleans()):
        arguments["rotate"] = data.draw(st.floats(-360, 360))
    if n == 3 and data.draw(st.booleans()):
        arguments["rotate"] = data.draw(st.tuples(*[st.floats(-360, 360)] * 3))
    image = Image(np.zeros((3,) * n, np.uint8), rgb=False, **arguments)
    point = np.array([data.draw(st.floats(-10, 10)) for _ in range(n)])
    world = image.data_to_world(point)
    for transform in (Transform.of(image), Transform.build(n, **arguments)):
        np.testing.assert_allclose(transform.to_world(point), world, atol=1e-8)
        np.testing.assert_allclose(transform.to_data(world), point, atol=1e-6)


@settings(max_examples=12)
@given(data=st.data())
def test_levels_share_their_outer_borders(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(8, 40), st.integers(8, 40)))
    step = data.draw(st.integers(2, 4))
    pyramid = [np.zeros(shape, np.uint8), np.zeros([-(-n // step) for n in shape], np.uint8)]
    image = Image(pyramid, multiscale=True, **data.draw(transforms(2)))
    grid = label_grid(image, "YX", level=1)
    labels = Labels(np.zeros(grid.shape, np.int32), **grid.arguments())
    for corner in ((0, 0), (0, 1), (1, 1)):
        full = np.array(corner) * shape - 0.5
        small = np.array(corner) * grid.shape - 0.5
        np.testing.assert_allclose(
            labels.data_to_world(small), image.data_to_world(full), atol=1e-8
        )


def test_levels_of_a_pyramid() -> None:
    image = Image([np.zeros((40, 60, 3), np.uint8), np.zeros((20, 30, 3), np.uint8)], scale=(2, 3))
    assert [(x.shape, x.factors) for x in levels(image)] == [
        ((40, 60), (1.0, 1.0)),
        ((20, 30), (2.0, 2.0)),
    ]
    assert layer_spacing(image, "YXS", level=1).values == (4.0, 6.0)


@settings(max_examples=25)
@given(data=st.data())
def test_spacing_is_a_length_in_the_world(data: st.DataObject) -> None:
    arguments = data.draw(transforms(3))
    image = Image(np.zeros((2, 3, 4), np.uint8), rgb=False, units="nm", **arguments)
    spacing = layer_spacing(image, "XYZ")
    assert spacing.unit == "micrometer"
    origin = np.array(image.data_to_world((0, 0, 0)))
    for axis, value in zip((2, 1, 0), spacing.values, strict=True):
        step = np.array(image.data_to_world(np.eye(3)[axis])) - origin
        assert value == pytest.approx(np.linalg.norm(step) * 1e-3)


@pytest.mark.parametrize(
    ("units", "unit", "values"),
    [
        (("pixel", "pixel", "pixel"), None, (2.0, 3.0)),
        (("second", "mm", "mm"), "millimeter", (2.0, 3.0)),
        (("pixel", "cm", "mm"), "millimeter", (20.0, 3.0)),
        (("pixel", "mm", "um"), "micrometer", (2000.0, 3.0)),
        (("pixel", "um", "pixel"), None, (2.0, 3.0)),
    ],
)
def test_units(units: tuple[str, ...], unit: str | None, values: tuple[float, ...]) -> None:
    image = Image(np.zeros((2, 3, 4), np.uint8), scale=(7, 2, 3), units=units, rgb=False)
    found = layer_spacing(image, "TYX")
    assert found.unit == unit
    assert found.values == pytest.approx(values)


def test_pixels_of_a_box() -> None:
    assert pixel_bounds((-0.5, 2.5), (3.5, 2.5000000001), (10, 10)) == ((0, 4), (3, 4))
    assert pixel_bounds((1.2,), (3.7,), (10,)) == ((1, 5),)
    assert pixel_bounds((-9.0,), (99.0,), (10,)) == ((0, 10),)
    assert pixel_bounds((-np.inf,), (1e300,), (10,)) == ((0, 10),)
    for low, high in ((-9, -2), (12, 14)):
        with pytest.raises(ImageError, match="outside"):
            pixel_bounds((low,), (high,), (10,))
    assert full_bounds((2, 3)) == ((0, 2), (0, 3))
    assert scale_bounds(((0, 10), (3, 5)), (2, 2), (5, 5)) == ((0, 5), (1, 3))


def test_a_flat_axis_is_told() -> None:
    transform = Transform.build(2, scale=(1, 0))
    with pytest.raises(ImageError, match="flat"):
        transform.to_data((1, 1))
    with pytest.raises(ImageError, match="flat"):
        bounds_of_points(transform, np.zeros((1, 2)), (0, 1), (4, 4))
    with pytest.raises(ImageError, match="not finite"):
        Transform.build(2, scale=(1, np.nan))
    with pytest.raises(ImageError, match="cannot be used"):
        Transform.build(2, affine=np.eye(5))


@settings(max_examples=50)
@given(data=st.data())
def test_pixels_come_back_from_their_world_coordinates(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    image = Image(np.zeros(shape, np.uint8), **data.draw(transforms(2)))
    transform = Transform.of(image)
    (a, b), (c, d) = bounds = tuple(data.draw(part_of(n)) for n in shape)
    edges = np.array([(y, x) for y in (a - 0.5, b - 0.5) for x in (c - 0.5, d - 0.5)])
    points = transform.to_world(edges)
    assert tuple(bounds_of_points(transform, points, (0, 1), shape).values()) == bounds
